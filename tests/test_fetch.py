"""Fetch: matching, planning, and carrying a plan out against a loopback Hub, killed at any moment."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from builders import published_csv, published_row
from cxu import hub
from cxu.catalog import SOURCES
from cxu.errors import (
    DiskSpaceError,
    FormatError,
    HubError,
    HubNotFoundError,
    IntegrityError,
    OutputExistsError,
    UsageError,
)
from cxu.fetch import carry_out, prepare_fetch, read_held
from cxu.fetch_match import recognise
from cxu.fetch_plan import FetchOptions, list_published, plan_fetch, select_sources
from cxu.hub import HubFile, Listing
from cxu.ingest import import_file
from cxu.ingest_parts import ImportOptions
from cxu.store import Home, Part, SourceFile, SourceListing
from hub_server import HubServer

REPO = "mcosarinsky/CheXmask-U"
MIMIC = "Preprocessed/MIMIC-CXR-JPG.csv"
VINDR = "OriginalResolution/VinDr-CXR.csv"
NIH = "OriginalResolution/ChestX-Ray8.csv"


def mimic_id(index):
    return "-".join([f"{index:08x}"] * 5)


def csv_of(id_column, ids, **fields):
    rows = [published_row(image_id, **fields) for image_id in ids]
    return published_csv(rows, rename={"Image Index": id_column}).encode()


def mimic_csv(n_rows=20, **fields):
    return csv_of("dicom_id", map(mimic_id, range(n_rows)), **fields)


def repository():
    return {
        MIMIC: mimic_csv(),
        VINDR: csv_of("image_id", [f"{index:032x}" for index in range(7)], Height="2048", Width="2048"),
        NIH: csv_of("Image Index", [f"{index:08d}_000.png" for index in range(5)]),
        "README.md": b"# CheXmask-U\n",
    }


@pytest.fixture
def pauses(monkeypatch):
    waited = []
    monkeypatch.setattr("cxu.hub_retry.sleep", waited.append)
    return waited


@pytest.fixture
def server(tmp_path, monkeypatch, pauses):
    with HubServer() as running:
        running.add(REPO, repository())
        running.lead_here(monkeypatch, tmp_path / "hf")
        yield running


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def fetch(home, *names, repo=REPO, revision=None, **options):
    plan = prepare_fetch(select_sources(names), home, FetchOptions(**options), repo=repo, revision=revision)
    return carry_out(plan, home).results


def cached(tmp_path, pattern="blobs/*"):
    return sorted(path.name for path in tmp_path.glob(f"hf/hub/datasets--*/{pattern}"))


def tables(home):
    """Return what a home holds under final names, and anything else that is not the record of a run or a lock."""
    kept = {path for path in home.root.rglob("*") if path.is_file() and "runs" not in path.parts}
    return {path.relative_to(home.root).as_posix(): path.read_bytes() for path in kept if path.suffix != ".lock"}


# Matching


@pytest.mark.parametrize(
    ("path", "source", "frame"),
    [
        ("OriginalResolution/ChestX-ray8.csv", "chestxray8", "image"),
        ("OriginalResolution/ChestX-Ray8.csv", "chestxray8", "image"),
        ("OriginalResolution/NIH.csv", "chestxray8", "image"),
        ("OriginalResolution/nih_v2.csv", "chestxray8", "image"),
        ("OriginalResolution/ChestX-ray14.csv", "chestxray8", "image"),
        ("OriginalResolution/CheXpert_2.csv", "chexpert", "image"),
        ("Preprocessed/CheXpert.csv", "chexpert", "model"),
        ("Preprocessed/MIMIC-CXR-JPG.csv", "mimic", "model"),
        ("Preprocessed/MIMIC.csv", "mimic", "model"),
        ("Preprocessed/mimic_cxr_jpg-v2.CSV", "mimic", "model"),
        ("Preprocessed/MIMIC-CXR-JPG-2.0.0.csv.gz", "mimic", "model"),
        ("Preprocessed/Padchest.csv", "padchest", "model"),
        ("Preprocessed/PadChest (1).csv", "padchest", "model"),
        ("OriginalResolution/VinDr-CXR_v2.csv", "vindr", "image"),
        ("OriginalResolution/VinBigData.csv", "vindr", "image"),
        ("a/b/original_resolution/deep/VINDR.csv", "vindr", "image"),
        ("Original Resolution/vindr.csv", "vindr", "image"),
        ("pre-processed_v2/mimic.csv", "mimic", "model"),
        ("OriginalResolution/Preprocessed/mimic.csv", "mimic", "model"),
        ("MIMIC_Preprocessed_v2.csv", "mimic", "model"),
        ("csv/original-resolution-chexpert.csv", "chexpert", "image"),
        ("OriginalResolution/mimic_preprocessed.csv", "mimic", "model"),
    ],
)
def test_a_path_names_source_and_frame(path, source, frame):
    found = recognise(HubFile(path, 1, None, None))
    assert (found.source.name, found.frame) == (source, frame)


@pytest.mark.parametrize(
    "path",
    [
        "Preprocessed/MIMIC-IV.csv",
        "Preprocessed/MIMIC3.csv",
        "Preprocessed/MIMIC_test.csv",
        "Preprocessed/mimicry.csv",
        "Preprocessed/not-mimic.csv",
        "Preprocessed/CheXpertPlus.csv",
        "Preprocessed/chexmask.csv",
        "Preprocessed/ChestX-ray80.csv",
        "Preprocessed/ChestX-Det10.csv",
        "Preprocessed/unihosp.csv",
        "Preprocessed/VinDr-PCXR.csv",
        "Preprocessed/CANDID-PTX.csv",
        "Preprocessed/MIMIC.csv.zip",
        "Preprocessed/MIMIC.parquet",
        "Preprocessed/MIMIC",
        "Preprocessed/.csv",
        "MIMIC.csv",
        "Unpreprocessed/MIMIC.csv",
        "Preprocessed_old/MIMIC.csv",
        "OriginalResolution/Preprocessed-backup/MIMIC.csv",
        "Preprocessed_OriginalResolution/MIMIC.csv",
        "Preprocessed/MIMIC.csv/README.md",
    ],
)
def test_other_paths_name_none(path):
    assert recognise(HubFile(path, 1, None, None)) is None


@pytest.mark.parametrize("source", SOURCES.values())
def test_every_alias_is_recognised_in_any_spelling(source):
    for alias in (source.name, *source.aliases):
        for name in (alias, alias.upper(), alias.replace("-", "_"), alias.replace("-", " "), f"{alias}_v2"):
            found = recognise(HubFile(f"Preprocessed/{name}.csv", 1, None, None))
            assert found.source == source, name


# Planning


def listing_of(*paths, commit="c" * 40):
    files = tuple(
        HubFile(path, size, hashlib.sha256(f"{path}{size}".encode()).hexdigest(), None)
        for path, size in (path if isinstance(path, tuple) else (path, 1000) for path in paths)
    )
    return Listing(REPO, "dataset", "main", commit, files)


def held_of(source, frame, *files, partial=None):
    return {(source, frame): SourceListing(source, frame, files, partial)}


def held_file(listing, index=0, **facts):
    file = listing.files[index]
    given = {"sha256": file.sha256, "repo": listing.repo, "revision": listing.commit, **facts}
    return SourceFile(file.path, rows=5, malformed=0, parts=(Part("part-0.parquet", 5, ""),), **given)


def plan_one(listing, source, held=None, **options):
    plan = plan_fetch(listing, [SOURCES[source]], FetchOptions(**options), held or {})
    return plan.items[0]


def test_a_source_comes_in_its_reference_frame():
    listing = listing_of(
        *(f"{folder}/{name}.csv" for folder in ("Preprocessed", "OriginalResolution") for name in SOURCES)
    )
    plan = plan_fetch(listing, select_sources(["all"]), FetchOptions(), {})
    assert {item.source.name: item.frame for item in plan.items} == {
        name: source.reference_frame for name, source in SOURCES.items()
    }
    assert plan_one(listing, "mimic", frame="image").file.path == "OriginalResolution/mimic.csv"
    assert plan.to_download == 5000


def test_the_other_frame_is_taken_where_there_is_no_other_and_said():
    item = plan_one(listing_of("Preprocessed/vindr.csv"), "vindr")
    assert (item.frame, item.file.path) == ("model", "Preprocessed/vindr.csv")
    assert "VinDr-CXR is published as frame model only" in item.notes[0]


def test_a_frame_that_is_asked_for_and_not_there_is_an_error_naming_what_is():
    with pytest.raises(HubNotFoundError, match=r"no VinDr-CXR in frame image .*frame model: Preprocessed/vindr\.csv"):
        plan_one(listing_of("Preprocessed/vindr.csv"), "vindr", frame="image")


@pytest.mark.parametrize(("folder", "frame"), [("OriginalResolution", "model"), ("Preprocessed", "image")])
def test_the_frames_of_a_native_source_coincide(folder, frame):
    item = plan_one(listing_of(f"{folder}/ChestX-ray8.csv"), "chestxray8", frame=frame)
    assert (item.frame, item.file.path) == (frame, f"{folder}/ChestX-ray8.csv")
    assert f"coincide: stored as frame {frame}" in item.notes[0]


def test_a_native_source_is_taken_from_the_frame_s_own_folder_where_it_is():
    listing = listing_of("OriginalResolution/nih.csv", "Preprocessed/nih.csv")
    assert plan_one(listing, "chestxray8", frame="model").file.path == "Preprocessed/nih.csv"


def test_the_newest_version_is_taken_and_the_others_are_named():
    item = plan_one(listing_of(*(f"Preprocessed/MIMIC{version}.csv" for version in ("_v9", "", "_v10", "-2"))), "mimic")
    assert item.file.path == "Preprocessed/MIMIC_v10.csv"
    assert item.notes[0] == (
        "Preprocessed/MIMIC_v10.csv is taken, as the newest; left: "
        "Preprocessed/MIMIC_v9.csv, Preprocessed/MIMIC.csv, Preprocessed/MIMIC-2.csv"
    )


def test_the_folder_s_version_counts_before_the_file_s():
    listing = listing_of("Preprocessed/MIMIC_v3.csv", "Preprocessed_v2/MIMIC.csv")
    assert plan_one(listing, "mimic").file.path == "Preprocessed_v2/MIMIC.csv"


def test_of_a_table_packed_and_unpacked_the_smaller_is_taken():
    item = plan_one(listing_of(("Preprocessed/MIMIC.csv", 900), ("Preprocessed/MIMIC.csv.gz", 300)), "mimic")
    assert (item.file.path, item.to_download) == ("Preprocessed/MIMIC.csv.gz", 300)
    assert "left: Preprocessed/MIMIC.csv" in item.notes[0]


def test_several_files_that_could_be_meant_are_an_error_that_shows_a_way_out():
    with pytest.raises(
        HubError, match=r"Preprocessed/MIMIC-CXR\.csv, Preprocessed/MIMIC\.csv.*cxu import FILE"
    ) as error:
        plan_one(listing_of("Preprocessed/MIMIC.csv", "Preprocessed/MIMIC-CXR.csv"), "mimic")
    assert "--source mimic --frame model" in str(error.value)


def test_nothing_of_a_source_is_an_error_naming_what_is_there():
    with pytest.raises(
        HubNotFoundError, match=r"no file of PadChest.*Padchest or PadChest.*there is: Preprocessed/x\.csv\."
    ):
        plan_one(listing_of("Preprocessed/x.csv", "README.md"), "padchest")
    with pytest.raises(HubNotFoundError, match=r"there is: README\.md\."):
        plan_one(listing_of("README.md"), "padchest")
    with pytest.raises(HubNotFoundError, match=r"a19\.csv and 5 more"):
        plan_one(listing_of(*(f"a{index:02}.csv" for index in range(25))), "padchest")


def test_what_is_here_is_not_fetched_again():
    listing = listing_of("Preprocessed/MIMIC.csv")
    held = held_of("mimic", "model", held_file(listing, revision="d" * 40))  # the same content at another commit
    item = plan_one(listing, "mimic", held)
    assert (item.action, item.to_download) == ("already", 0)
    assert "--force fetches it again" in item.notes[0]
    assert plan_one(listing, "mimic", held, force=True).action == "fetch"
    assert plan_one(listing, "mimic", held, keep_rle=True).action == "fetch"
    assert plan_one(listing, "mimic", held, limit_rows=3).action == "already"


def test_a_file_listed_without_its_hash_is_known_by_its_place():
    listing = listing_of("Preprocessed/MIMIC.csv")
    plain = Listing(
        *(getattr(listing, name) for name in ("repo", "repo_type", "revision", "commit")),
        (HubFile("Preprocessed/MIMIC.csv", 1000, None, "0" * 40),),
    )
    assert plan_one(plain, "mimic", held_of("mimic", "model", held_file(listing))).action == "already"
    moved = held_file(listing, revision="d" * 40)
    assert plan_one(plain, "mimic", held_of("mimic", "model", moved)).action == "fetch"


def test_another_revision_is_replaced():
    listing = listing_of("Preprocessed/MIMIC.csv")
    held = held_of("mimic", "model", held_file(listing, sha256="e" * 64, revision="d" * 40))
    item = plan_one(listing, "mimic", held)
    assert (item.action, item.notes[0]) == ("fetch", "replaces 5 rows of commit dddddddddddd")


def test_rows_imported_by_hand_are_not_replaced_without_force():
    listing = listing_of("Preprocessed/MIMIC.csv")
    by_hand = held_file(listing, sha256="e" * 64, repo=None, revision=None)
    held = held_of("mimic", "model", held_file(listing, sha256="d" * 64), by_hand)
    with pytest.raises(OutputExistsError, match=r"imported from Preprocessed/MIMIC\.csv, not fetched\. Use --force"):
        plan_one(listing, "mimic", held)
    assert plan_one(listing, "mimic", held, force=True).action == "fetch"
    assert plan_one(listing, "mimic", held, limit_rows=3).action == "already"


def test_the_same_file_imported_by_hand_is_enough():
    listing = listing_of("Preprocessed/MIMIC.csv")
    held = held_of("mimic", "model", held_file(listing, repo=None, revision=None))
    item = plan_one(listing, "mimic", held)
    assert (item.action, "imported from a file of the same content" in item.notes[0]) == ("already", True)


def test_a_beginning_never_counts_as_fetched():
    listing = listing_of("Preprocessed/MIMIC.csv")
    held = held_of("mimic", "model", held_file(listing, sha256=""), partial=5)
    assert plan_one(listing, "mimic", held).action == "fetch"
    assert plan_one(listing, "mimic", held, limit_rows=5).action == "already"
    assert plan_one(listing, "mimic", held, limit_rows=6).action == "fetch"
    moved = held_of("mimic", "model", held_file(listing, sha256="", revision="d" * 40), partial=5)
    assert plan_one(listing, "mimic", moved, limit_rows=5).action == "fetch"


def test_names_of_sources():
    assert [source.name for source in select_sources(["MIMIC-CXR", "mimic", "VinDr"])] == ["mimic", "vindr"]
    assert [source.name for source in select_sources(["vindr", "ALL"])] == [
        "vindr",
        "mimic",
        "chexpert",
        "chestxray8",
        "padchest",
    ]
    with pytest.raises(UsageError, match=r"name at least one source: mimic, .*, or all"):
        select_sources([])
    with pytest.raises(UsageError, match=r"did you mean 'mimic'.*known sources: mimic, chexpert, chestxray8, padchest"):
        select_sources(["mimick"])


def test_the_list_tells_what_is_here():
    listing = listing_of("Preprocessed/MIMIC.csv", "OriginalResolution/nih.csv", "Preprocessed/vindr.csv", "README.md")
    held = {
        **held_of("chestxray8", "model", held_file(listing, 1)),
        **held_of("mimic", "model", held_file(listing, 0, sha256=""), partial=5),
        **held_of("vindr", "model", held_file(listing, 2, sha256="e" * 64)),
    }
    listed = list_published(listing, held)
    assert [(file.source, file.frame, file.state) for file in listed] == [
        ("mimic", "model", "partial"),
        ("chestxray8", "image", "fetched"),
        ("vindr", "model", "another file"),
        (None, None, ""),
    ]
    assert [file.state for file in list_published(listing, {}, [SOURCES["mimic"]])] == ["no"]


# Carrying out


def test_fetch_leaves_the_table_its_provenance_and_a_manifest(server, home, tmp_path):
    (result,) = fetch(home, "mimic")
    commit = server.repos["dataset", REPO].branches["main"]
    sha256 = hashlib.sha256(repository()[MIMIC]).hexdigest()
    rows = home.open("mimic").read()
    assert rows["image_id"].to_pylist() == [mimic_id(index) for index in range(20)]
    for column, value in {
        "source": "mimic",
        "frame": "model",
        "repo": REPO,
        "revision": commit,
        "file_sha256": sha256,
    }.items():
        assert rows[column].unique().to_pylist() == [value]
    assert (result.rows, result.malformed, result.sha256, result.partial) == (20, 0, sha256, None)
    assert "20 rows; the published table of MIMIC-CXR-JPG is known to have 243,334" in result.unexpected_count
    record = json.loads(next(home.root.glob("runs/*-fetch.json")).read_text())
    facts = {name: record["sources"][0][name] for name in ("file", "bytes", "sha256", "rows", "malformed")}
    assert facts == {"file": MIMIC, "bytes": len(repository()[MIMIC]), "sha256": sha256, "rows": 20, "malformed": 0}
    assert (record["repo"], record["revision"], record["commit"], record["error"]) == (REPO, "main", commit, None)
    assert cached(tmp_path) == cached(tmp_path, "snapshots/*") == cached(tmp_path, "refs/*") == []


def test_a_fetch_equals_an_import_but_for_where_it_came_from(server, home, tmp_path):
    fetch(home, "vindr")
    path = tmp_path / "by-hand.csv"
    path.write_bytes(repository()[VINDR])
    other = Home(tmp_path / "other")
    import_file(path, SOURCES["vindr"], other, ImportOptions("image"))
    fetched, imported = (held.open("vindr").read().drop_columns(["repo", "revision"]) for held in (home, other))
    assert fetched.equals(imported)


def test_again_asks_for_the_listing_only(server, home):
    fetch(home, "mimic")
    before = tables(home)
    server.requests.clear()
    assert fetch(home, "mimic")[0].item.action == "already"
    assert {request.stage for request in server.requests} == {"api"}
    assert tables(home) == before
    assert server.bytes_sent(MIMIC) == len(repository()[MIMIC])


def test_force_fetches_again_and_gives_the_same_bytes(server, home):
    fetch(home, "mimic")
    before = tables(home)
    assert fetch(home, "mimic", force=True)[0].item.action == "fetch"
    assert tables(home) == before
    assert server.bytes_sent(MIMIC) == 2 * len(repository()[MIMIC])


def test_a_part_that_is_gone_is_fetched_again(server, home):
    fetch(home, "mimic")
    before = tables(home)
    next(home.root.glob("sources/mimic/model/part-*")).unlink()
    assert fetch(home, "mimic")[0].item.action == "fetch"
    assert tables(home) == before


def test_a_new_revision_takes_the_place_of_the_old_one(server, home):
    old = server.repos["dataset", REPO].branches["main"]
    fetch(home, "mimic")
    new = server.add(REPO, {MIMIC: mimic_csv(3)})
    fetch(home, "mimic")
    assert home.open("mimic").read()["revision"].to_pylist() == [new] * 3
    assert len(list(home.root.glob("sources/mimic/model/part-*"))) == 1
    fetch(home, "mimic", revision=old)
    assert home.open("mimic").rows == 20


def test_both_frames_stand_side_by_side(server, home):
    server.add(REPO, {**repository(), "OriginalResolution/MIMIC.csv": mimic_csv(4, Height="2048", Width="2048")})
    fetch(home, "mimic")
    fetch(home, "mimic", frame="image")
    assert {key: held.rows for key, held in read_held(home).items()} == {("mimic", "model"): 20, ("mimic", "image"): 4}


def test_a_native_source_is_stored_as_the_frame_asked_for(server, home):
    fetch(home, "chestxray8", frame="model")
    rows = home.open("chestxray8").read()
    assert set(rows["frame"].to_pylist()) == {"model"}
    assert set(rows["frame_side"].to_pylist()) == {1024.0}


def test_a_packed_file(server, home, tmp_path):
    server.add(REPO, {"Preprocessed/mimic.CSV.GZ": gzip.compress(mimic_csv())})
    assert fetch(home, "mimic", limit_rows=3)[0].rows == 3
    assert fetch(home, "mimic")[0].rows == 20
    assert cached(tmp_path) == []


def test_a_small_file_that_git_holds_itself(server, home, monkeypatch):
    monkeypatch.setattr("hub_server.LFS_SUFFIXES", ())
    server.add(REPO, repository())
    assert fetch(home, "mimic")[0].rows == 20
    assert fetch(home, "mimic")[0].item.action == "already"


def test_rle_is_kept_on_request(server, home):
    assert "rle_heart" not in (fetch(home, "mimic") and home.open("mimic").schema.names)
    fetch(home, "mimic", keep_rle=True)
    assert home.open("mimic").read()["rle_heart"].unique().to_pylist() == ["20 1"]
    assert fetch(home, "mimic")[0].item.action == "already"


def test_malformed_rows_are_reported_with_their_line(server, home):
    rows = [published_row(mimic_id(0)), "too,short", published_row(mimic_id(1), Height="0")]
    server.add(REPO, {MIMIC: published_csv(rows, rename={"Image Index": "dicom_id"}).encode()})
    (result,) = fetch(home, "mimic")
    assert [problem.line for problem in result.report.problems] == [3, 4]
    assert str(result.report.problems[0]).startswith(f"{MIMIC}, line 3: ")
    record = json.loads(next(home.root.glob("runs/*-fetch.json")).read_text())
    assert len(record["sources"][0]["problems"]) == 2


def test_a_source_fails_the_ones_before_are_kept(server, home):
    server.add(REPO, {**repository(), VINDR: b"no,table\n1,2\n"})
    with pytest.raises(FormatError, match="no column for the id of VinDr-CXR"):
        fetch(home, "mimic", "vindr", "chestxray8")
    assert [listing.source for listing in home.listings()] == ["mimic"]
    assert not (home.root / "sources/vindr").exists()
    record = json.loads(next(home.root.glob("runs/*-fetch.json")).read_text())
    assert ([entry["source"] for entry in record["sources"]], "VinDr-CXR" in record["error"]) == (["mimic"], True)


# The beginning only


def test_limit_rows_streams_the_beginning_and_marks_it(server, home, tmp_path):
    head, _, rows = mimic_csv().partition(b"\n")
    server.add(REPO, {MIMIC: head + b"\n" + rows * (48_000_000 // len(rows))})
    server.rate = 20e6
    (result,) = fetch(home, "mimic", limit_rows=4)
    assert (result.rows, result.partial, result.unexpected_count) == (4, 4, None)
    assert home.listing("mimic", "model").partial == 4
    assert home.open("mimic").read()["file_sha256"].null_count == 4  # nobody has verified the whole
    assert server.bytes_sent(MIMIC) < 24e6  # what is read ahead, and what the system's buffers took in
    assert cached(tmp_path) == []


def test_a_beginning_is_replaced_by_the_whole_but_never_replaces_it(server, home):
    fetch(home, "mimic", limit_rows=4)
    assert fetch(home, "mimic", limit_rows=4)[0].item.action == "already"
    assert fetch(home, "mimic", limit_rows=6)[0].rows == 6
    assert (fetch(home, "mimic")[0].rows, home.listing("mimic", "model").partial) == (20, None)
    before = tables(home)
    result = fetch(home, "mimic", limit_rows=4)[0]
    assert (result.item.action, result.rows, result.partial) == ("already", 20, None)
    assert tables(home) == before


# The CSV in the cache


def test_keep_csv_keeps_it_and_the_next_fetch_uses_it(server, home, tmp_path):
    fetch(home, "mimic", keep_csv=True)
    assert cached(tmp_path) == [hashlib.sha256(repository()[MIMIC]).hexdigest()]
    fetch(Home(tmp_path / "other"), "mimic")
    assert len(cached(tmp_path)) == 1  # the user's: no fetch of ours brought it
    assert server.bytes_sent(MIMIC) == len(repository()[MIMIC])


def test_a_file_that_the_user_keeps_in_the_cache_stays(server, home, tmp_path):
    listing = hub.list_files(REPO)
    hub.download(listing, next(file for file in listing.files if file.path == MIMIC))
    fetch(home, "mimic")
    assert len(cached(tmp_path)) == 1


def test_a_fetch_that_failed_to_convert_still_owns_its_csv(server, home, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("cxu.fetch.import_stream", lambda *_, **__: (_ for _ in ()).throw(FormatError("no")))
        with pytest.raises(FormatError):
            fetch(home, "mimic")
    assert len(cached(tmp_path)) == 1
    fetch(home, "mimic")
    assert cached(tmp_path) == []
    assert server.bytes_sent(MIMIC) == len(repository()[MIMIC])


@pytest.mark.parametrize("changed", [True, False])
def test_what_a_fetch_of_an_older_commit_left_goes_too(server, home, tmp_path, changed):
    server.fail(MIMIC, stop_at=2000, times=None)
    with pytest.raises(IntegrityError, match="truncated"):
        fetch(home, "mimic")
    server.heal()
    server.add(REPO, {**repository(), "README.md": b"new", **({MIMIC: mimic_csv(21)} if changed else {})})
    assert fetch(home, "mimic")[0].rows == 20 + changed
    assert cached(tmp_path) == cached(tmp_path, "snapshots/*") == []
    assert (home.root / "cache/fetch/mimic-model.json").exists() is False


# Offline


@pytest.mark.parametrize("variable", [False, True])
def test_offline_converts_what_is_cached(server, home, tmp_path, monkeypatch, variable):
    fetch(home, "mimic", keep_csv=True)
    server.requests.clear()
    if variable:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    other = Home(tmp_path / "other")
    assert fetch(other, "mimic", offline=not variable)[0].rows == 20
    assert fetch(Home(tmp_path / "third"), "mimic", offline=not variable, limit_rows=2)[0].rows == 2
    assert tables(other) == tables(home)
    assert server.requests == []
    assert len(cached(tmp_path)) == 1


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_offline_knows_what_is_fetched_although_the_csv_is_gone(server, home, revision):
    fetch(home, "mimic", "vindr")
    commit = server.repos["dataset", REPO].branches["main"]
    server.requests.clear()
    revision = commit if revision == "commit" else revision
    results = fetch(home, "vindr", "mimic", offline=True, revision=revision)
    assert [(result.item.source.name, result.item.action) for result in results] == [
        ("vindr", "already"),
        ("mimic", "already"),
    ]
    assert f"of commit {commit[:12]}; offline" in results[0].item.notes[0]
    assert server.requests == []
    with pytest.raises(HubError, match="nothing of dataset repository"):
        fetch(home, "mimic", offline=True, revision="f" * 40)
    with pytest.raises(HubError, match="nothing of dataset repository"):
        fetch(home, "mimic", offline=True, force=True)


def test_offline_takes_each_source_from_where_it_is(server, home):
    fetch(home, "mimic")
    fetch(Home(home.root.parent / "other"), "vindr", keep_csv=True)
    results = fetch(home, "mimic", "vindr", offline=True)
    assert [result.item.action for result in results] == ["already", "fetch"]
    with pytest.raises(HubNotFoundError, match=r"no file of ChestX-ray8 in the cache \(offline\)"):
        fetch(home, "chestxray8", offline=True)


# Disk


def on_disk(monkeypatch, free):
    asked = []
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: asked.append(folder) or usage)
    return asked


def test_the_disk_is_checked_before_anything_is_downloaded(server, home, monkeypatch):
    on_disk(monkeypatch, len(repository()[MIMIC]))
    with pytest.raises(DiskSpaceError, match=r"for the download and the tables of mimic: .* needed"):
        fetch(home, "mimic")
    assert server.bytes_sent(MIMIC) == 0
    assert not home.root.exists()
    on_disk(monkeypatch, int(1.2 * len(repository()[MIMIC])))
    fetch(home, "mimic")


def test_a_disk_each_for_cache_and_home(server, home, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "on_same_disk", lambda *_: False)
    on_disk(monkeypatch, len(repository()[MIMIC]) - 1)
    with pytest.raises(DiskSpaceError, match=rf"for the download of mimic: .* free in {tmp_path / 'hf'}"):
        fetch(home, "mimic")
    asked = on_disk(monkeypatch, len(repository()[MIMIC]))
    fetch(home, "mimic")
    assert len(asked) == 2


# Interruptions


def test_a_broken_connection_is_continued(server, home):
    server.fail(MIMIC, drop_after=4096)
    fetch(home, "mimic")
    assert server.bytes_sent(MIMIC) == len(repository()[MIMIC])


def test_an_altered_file_is_refused_and_fetched_afresh(server, home, tmp_path):
    server.fail(MIMIC, alter=True)
    with pytest.raises(IntegrityError, match="is damaged"):
        fetch(home, "mimic")
    assert (cached(tmp_path), home.listings()) == ([], [])
    assert fetch(home, "mimic")[0].rows == 20


def test_a_second_fetch_waits_for_the_first_and_finds_its_work(server, home):
    server.rate = 100_000
    results, plan = [], prepare_fetch(select_sources(["mimic"]), home, FetchOptions())
    threads = [threading.Thread(target=lambda: results.extend(carry_out(plan, home).results)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(result.item.action for result in results) == ["already", "fetch"]
    assert server.bytes_sent(MIMIC) == len(repository()[MIMIC])


@pytest.fixture
def undisturbed(server, tmp_path):
    """What an undisturbed fetch of mimic leaves."""
    other = Home(tmp_path / "undisturbed")
    fetch(other, "mimic")
    return tables(other)


def start_fetch(server, tmp_path, code="from cxu.__main__ import main; main()"):
    # from here, not by monkeypatch: a process reads its environment at start
    environment = {**os.environ, **server.environment(tmp_path / "hf"), "CXU_HOME": str(tmp_path / "home")}
    return subprocess.Popen(
        [sys.executable, "-c", code, "fetch", "mimic"], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def wait_for(condition, process, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_finishes(server, home, tmp_path, undisturbed):
    """Run the same command again: the same tables, byte for byte, and nothing else left."""
    with start_fetch(server, tmp_path) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert tables(home) == undisturbed
    assert cached(tmp_path) == cached(tmp_path, "snapshots/*") == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_during_the_download(server, home, tmp_path, undisturbed, number):
    sent = server.bytes_sent(MIMIC)
    server.rate = 15_000  # long enough for a busy machine to be in time
    with start_fetch(server, tmp_path) as process:
        partial = lambda: [path for path in tmp_path.glob("hf/hub/*/blobs/*.incomplete") if path.stat().st_size > 4096]  # noqa: E731
        wait_for(partial, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert b"the same command continues" in errors or number == signal.SIGKILL
    arrived = partial()[0].stat().st_size
    assert 4096 < arrived < len(repository()[MIMIC])
    assert home.listings() == []
    server.rate = None
    check_finishes(server, home, tmp_path, undisturbed)
    assert f"bytes={arrived}-" in {request.range for request in server.seen(MIMIC, stage="storage")}
    assert server.bytes_sent(MIMIC) < sent + 2 * len(repository()[MIMIC])


# Where a fetch kills itself: the function, and whether before or after it has done its work.
MOMENTS = {
    "the download is complete but not entered": ("cxu.hub._link", "before"),
    "the download is entered": ("cxu.hub_cache.record_ref", "before"),
    "conversion begins": ("cxu.fetch.import_stream", "before"),
    "a part is written but not named": ("cxu.files.sha256_of", "before"),
    "conversion ends": ("cxu.store.Home.publish", "before"),
    "the parts are in their place but not listed": ("cxu.store.asdict", "before"),
    "the source is complete": ("cxu.store.Home.publish", "after"),
    "the CSV is removed": ("cxu.hub.discard", "after"),
    "the manifest is due": ("cxu.store.Home.record_run", "before"),
}


def killing_code(target, when):
    module, _, name = target.partition(".Home.") if ".Home." in target else target.rpartition(".")
    owner = f"sys.modules[{module!r}]" + (".Home" if ".Home." in target else "")
    order = ("os.kill(os.getpid(), 9)", "return work(*a, **k)")
    body = order if when == "before" else ("work(*a, **k)", "os.kill(os.getpid(), 9)")
    return (
        f"import os, sys, cxu.fetch\nfrom cxu.__main__ import main\nowner = {owner}\nwork = owner.{name}\n"
        f"def last(*a, **k):\n    {body[0]}\n    {body[1]}\nowner.{name} = last\nmain()"
    )


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_when(server, home, tmp_path, undisturbed, moment):
    before = server.bytes_sent(MIMIC)
    with start_fetch(server, tmp_path, killing_code(*MOMENTS[moment])) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors.decode()
    for path in home.root.rglob("source.json"):
        assert home.open_source(*path.parts[-3:-1]).rows == 20  # what is listed is whole
    check_finishes(server, home, tmp_path, undisturbed)
    assert server.bytes_sent(MIMIC) - before == len(repository()[MIMIC])


def test_killed_while_another_revision_is_replaced(server, home, tmp_path):
    fetch(home, "mimic")
    server.add(REPO, {MIMIC: mimic_csv(5)})
    other = Home(tmp_path / "undisturbed")
    fetch(other, "mimic")
    moment = MOMENTS["the parts are in their place but not listed"]
    with start_fetch(server, tmp_path, killing_code(*moment)) as process:
        process.communicate(timeout=60)
    assert home.open("mimic").read()["image_id"].to_pylist() == [mimic_id(index) for index in range(20)]
    check_finishes(server, home, tmp_path, tables(other))
