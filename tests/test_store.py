from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import make_rows
from cxu import engine, files, store, table
from cxu.errors import FormatError, MissingInputError, UsageError


@pytest.fixture
def home(tmp_path):
    return store.Home(tmp_path / "home")


def publish(home, source, frame, *tables, partial=None, sha256="f" * 64):
    """Publish tables as the parts of one file of a source."""
    staged = home.staging(source, frame, sha256)
    parts = []
    for index, rows in enumerate(tables):
        path = staged / f"part-{sha256[:12]}-{index:05d}.parquet"
        store.write_table(rows, path)
        parts.append(store.Part(path.name, len(rows), files.sha256_of(path)))
    file = store.SourceFile("file.csv", sha256, sum(map(len, tables)), 0, parts=tuple(parts))
    listing = store.SourceListing(source, frame, (file,), partial)
    home.publish(listing, staged)
    return listing


def save_selection(home, name, rows):
    store.write_table(table.with_facts(rows, {"kind": "selection"}), home.selection_path(name))


def ids(stored):
    return stored.read(["image_id"])["image_id"].to_pylist()


# -- the home


def test_the_home_is_the_one_named_or_that_of_the_environment_or_here(monkeypatch, tmp_path):
    assert store.Home(tmp_path).root == tmp_path
    assert str(store.Home().root) == "cxu-data"
    monkeypatch.setenv("CXU_HOME", str(tmp_path / "elsewhere"))
    assert store.Home().root == tmp_path / "elsewhere"
    assert store.Home(tmp_path).root == tmp_path


def test_a_home_that_does_not_exist_is_empty_and_stays_so(home):
    assert home.listing("mimic", "model") == store.SourceListing("mimic", "model")
    assert home.listings() == []
    assert home.selections() == []
    assert not home.root.exists()


# -- sources


def test_a_published_listing_comes_back_and_its_rows_with_it(home):
    listing = publish(home, "mimic", "model", make_rows(3), make_rows(2, view="AP"))
    assert home.listing("mimic", "model") == listing
    assert listing.rows == 5
    assert home.listings() == [listing]
    stored = home.open_source("mimic", "model")
    assert (stored.name, stored.kind, stored.rows) == ("mimic/model", "source", 5)
    assert stored.facts["partial"] is None
    assert stored.read().equals(pa.concat_tables([make_rows(3), make_rows(2, view="AP")]))
    names = sorted(path.name for path in home.source_folder("mimic", "model").iterdir())
    assert names == ["part-ffffffffffff-00000.parquet", "part-ffffffffffff-00001.parquet", "source.json"]


def test_parts_that_the_new_listing_does_not_name_are_removed(home):
    publish(home, "mimic", "model", make_rows(3), make_rows(3), sha256="a" * 64, partial=6)
    assert home.open_source("mimic", "model").facts["partial"] == 6
    publish(home, "mimic", "model", make_rows(4), sha256="b" * 64)
    folder = home.source_folder("mimic", "model")
    assert [path.name for path in folder.glob("*.parquet")] == ["part-bbbbbbbbbbbb-00000.parquet"]
    assert home.open_source("mimic", "model").rows == 4


def test_parts_count_only_once_they_are_listed(home):
    publish(home, "mimic", "model", make_rows(2))
    folder = home.source_folder("mimic", "model")
    store.write_table(make_rows(9), folder / "part-000000000000-00000.parquet")
    assert home.open_source("mimic", "model").rows == 2


def test_staging_is_beside_the_source_and_starts_empty(home):
    staged = home.staging("mimic", "model", "a" * 64)
    (staged / "left over").write_text("x")
    assert home.staging("mimic", "model", "a" * 64) == staged
    assert list(staged.iterdir()) == []
    assert staged.parent == home.source_folder("mimic", "model")
    assert home.listings() == []


def test_tidying_removes_what_a_killed_run_left_and_nothing_else(home):
    publish(home, "mimic", "model", make_rows(2))
    publish(home, "mimic", "image", make_rows(1))
    folder = home.source_folder("mimic", "model")
    there = sorted(folder.iterdir())
    (home.staging("mimic", "model", "a" * 64) / "part-0.parquet").write_bytes(b"half")
    (folder / f"{files.TEMP_PREFIX}1-source.json").write_text("{")
    (folder / "part-000000000000-00000.parquet").write_bytes(b"not listed")
    home.tidy("mimic", "model")
    assert sorted(folder.iterdir()) == there
    assert (home.open_source("mimic", "model").rows, home.open_source("mimic", "image").rows) == (2, 1)
    home.tidy("vindr", "image")  # holds nothing
    assert not home.source_folder("vindr", "image").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"files": [], "part',
        b"[]",
        b"{}",
        b'{"files": 3, "partial": null}',
        b'{"files": [{"name": "x"}], "partial": null}',
        b'{"files": [{"name": "x", "sha256": "", "rows": 1, "malformed": 0, "parts": [1]}], "partial": null}',
        b'{"files": [], "partial": "\xff"}',
    ],
)
def test_a_damaged_listing_says_which_file_and_what_to_do(home, content):
    publish(home, "mimic", "model", make_rows(1))
    path = home.source_folder("mimic", "model") / "source.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"source\.json is damaged .*; remove .*model and import again"):
        home.open_source("mimic", "model")


def test_a_damaged_listing_leaves_other_sources_alone(home):
    for source in ("mimic", "vindr"):
        publish(home, source, "model", make_rows(1))
    (home.source_folder("mimic", "model") / "source.json").write_text("{")
    assert home.open("vindr").rows == 1
    assert [listing.source for listing in home.listings(["vindr"])] == ["vindr"]
    assert [listing.source for listing in home.readable_listings()] == ["vindr"]
    assert home.places() == [("mimic", "model"), ("vindr", "model")]
    for damaged in (home.listings, lambda: home.open("mimic")):
        with pytest.raises(FormatError, match=r"mimic.model.source\.json is damaged"):
            damaged()
    with pytest.raises(MissingInputError, match="sources: vindr"):
        home.open("padchest")


def test_a_listed_part_that_is_gone_is_named(home):
    listing = publish(home, "mimic", "model", make_rows(1))
    (home.source_folder("mimic", "model") / listing.parts[0].name).unlink()
    with pytest.raises(MissingInputError, match=rf"{listing.parts[0].name} is gone though source\.json lists it"):
        home.open_source("mimic", "model")


def test_listings_are_in_order_and_without_what_holds_nothing(home):
    publish(home, "vindr", "image", make_rows(1))
    publish(home, "chexpert", "model", make_rows(1))
    publish(home, "chexpert", "image", make_rows(1))
    home.publish(store.SourceListing("mimic", "model"), home.staging("mimic", "model", "x"))
    files.write_json(home.root / "sources" / "chexpert" / "other" / "source.json", {"files": [], "partial": None})
    found = [(listing.source, listing.frame) for listing in home.listings()]
    assert found == [("chexpert", "image"), ("chexpert", "model"), ("vindr", "image")]


def test_the_digest_of_a_source_changes_with_its_rows(home):
    publish(home, "mimic", "model", make_rows(2))
    first = home.open_source("mimic", "model").digest
    assert home.open_source("mimic", "model").digest == first
    publish(home, "mimic", "model", make_rows(2, view="PA"))
    assert home.open_source("mimic", "model").digest != first


# -- names of selections


@pytest.mark.parametrize("name", ["latest", "strict", "train-2", "été", "v1.2"])
def test_plain_names_are_selections(home, name):
    assert home.selection_path(name) == home.root / "selections" / f"{name}.parquet"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "../latest", "a\\b", "C:a", "con", "a.", "a ", "x.excluded", "a\0b", "%41"]
)
def test_names_that_could_leave_the_folder_are_refused(home, name):
    with pytest.raises(UsageError, match="expected a plain file name"):
        home.selection_path(name)


def test_selections_are_listed_without_their_excluded_rows_and_temporaries(home):
    for name in ("strict", "latest"):
        save_selection(home, name, make_rows(1))
    folder = home.root / "selections"
    store.write_table(make_rows(1), folder / "latest.excluded.parquet")
    (folder / f"{files.TEMP_PREFIX}1-new.parquet").write_bytes(b"half")
    assert home.selections() == ["latest", "strict"]


# -- opening by name


def test_without_a_name_the_latest_selection_is_opened(home):
    save_selection(home, "latest", make_rows(2))
    stored = home.open()
    assert (stored.name, stored.kind, stored.rows) == ("latest", "selection", 2)


def test_without_a_selection_the_error_says_what_there_is(home):
    with pytest.raises(MissingInputError, match=r"no selection yet .*it is empty: start with cxu fetch or cxu import"):
        home.open()
    publish(home, "mimic", "model", make_rows(1))
    save_selection(home, "strict", make_rows(1))
    with pytest.raises(MissingInputError, match=r"run cxu filter first.*selections: strict; sources: mimic"):
        home.open()


def test_a_name_is_a_selection_before_it_is_a_source(home):
    publish(home, "mimic", "model", make_rows(3))
    assert home.open("mimic").kind == "source"
    save_selection(home, "mimic", make_rows(1))
    assert (home.open("mimic").kind, home.open("mimic").rows) == ("selection", 1)


def test_a_source_in_two_frames_needs_a_choice(home):
    publish(home, "chexpert", "model", make_rows(1))
    publish(home, "chexpert", "image", make_rows(2, frame="image"))
    with pytest.raises(UsageError, match="in the frames image and model: choose with --frame"):
        home.open("chexpert")
    assert home.open("chexpert", frame="image").rows == 2
    assert home.open("chexpert", frame="model").rows == 1


def test_a_source_that_is_not_there_in_the_frame_asked_for_is_missing(home):
    publish(home, "chexpert", "model", make_rows(1))
    assert home.open("chexpert", frame="model").rows == 1
    with pytest.raises(MissingInputError, match="chexpert is here in the frame model only, not in image"):
        home.open("chexpert", frame="image")


def test_a_name_that_means_nothing_lists_what_there_is(home):
    publish(home, "mimic", "model", make_rows(1))
    with pytest.raises(MissingInputError, match=r"called 'padchest' in .*sources: mimic") as caught:
        home.open("padchest")
    assert caught.value.exit_code == 2


def test_a_parquet_file_or_a_folder_of_them_is_opened_by_its_path(home, tmp_path):
    folder = tmp_path / "tables"
    store.write_table(make_rows(1, image_id=["second"]), folder / "b.parquet")
    store.write_table(make_rows(1, image_id=["first"]), folder / "a.parquet")
    assert ids(home.open(str(folder))) == ["first", "second"]
    one = home.open(str(folder / "b.parquet"))
    assert (one.kind, ids(one)) == ("file", ["second"])


# -- tables on disk


def test_a_selection_is_known_by_its_own_facts(tmp_path):
    store.write_table(table.with_facts(make_rows(1), {"kind": "selection"}), tmp_path / "t.parquet")
    assert store.open_table(tmp_path / "t.parquet").kind == "selection"


@pytest.mark.parametrize("facts", [{"digest": "d"}, {"kind": "selection", "digest": "d"}])
def test_a_digest_in_a_file_does_not_outlive_its_rows(tmp_path, facts):
    path = tmp_path / "t.parquet"
    store.write_table(table.with_facts(make_rows(3), facts), path)
    before = store.open_table(path).digest
    assert store.open_table(path).digest == before
    pq.write_table(pq.read_table(path).slice(1), path)
    assert store.open_table(path).facts["digest"] == "d"
    assert store.open_table(path).digest != before


def test_the_digest_of_a_folder_changes_with_any_file(tmp_path):
    for name in "ab":
        store.write_table(table.with_facts(make_rows(2), {"digest": "d"}), tmp_path / f"{name}.parquet")
    before = store.open_table(tmp_path).digest
    store.write_table(table.with_facts(make_rows(2, seed=1), {"digest": "d"}), tmp_path / "a.parquet")
    assert store.open_table(tmp_path).digest != before


def facts_of_folder(folder, *facts):
    for index, one in enumerate(facts):
        store.write_table(table.with_facts(make_rows(1), one), folder / f"{index}.parquet")
    stored = store.open_table(folder)
    return stored.kind, {key: value for key, value in stored.facts.items() if key != "schema_version"}


def test_a_folder_has_the_facts_that_all_of_its_files_share(tmp_path):
    first = {"kind": "selection", "thresholds": {"min_rca": 0.1}, "limits_px": [], "where": ["a"], "partial": True}
    assert facts_of_folder(tmp_path, first) == ("selection", first)
    assert facts_of_folder(tmp_path, first, first) == ("selection", first)
    second = {**first, "where": ["b"], "partial": False}
    shared = {"kind": "selection", "thresholds": {"min_rca": 0.1}, "limits_px": [], "partial": True}
    assert facts_of_folder(tmp_path, first, second) == ("selection", shared)


def test_a_folder_of_other_selections_is_none_itself(tmp_path):
    first = {"kind": "selection", "thresholds": {"min_rca": 0.1}, "limits_px": [], "partial": False}
    other = {**first, "thresholds": {"min_rca": 0.2}}
    assert facts_of_folder(tmp_path, first, other) == ("file", {"limits_px": [], "partial": False})
    assert facts_of_folder(tmp_path, {}, {"partial": True}) == ("file", {"partial": True})


def test_files_still_being_written_are_no_tables(home, tmp_path):
    folder = home.root / "predictions"
    store.write_table(make_rows(1), folder / "a.parquet")
    (folder / f"{files.TEMP_PREFIX}1-b.parquet").write_bytes(b"half")
    assert home.predictions() == [folder / "a.parquet"]
    assert store.open_table(folder).paths == (folder / "a.parquet",)
    (folder / "a.parquet").unlink()
    with pytest.raises(UsageError, match="expected a plain file name"):
        home.open(str(folder))


@pytest.mark.parametrize("name", ["none.parquet", "none", "empty"])
def test_a_table_that_does_not_exist_is_a_missing_input(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInputError, match="does not exist"):
        store.open_table(tmp_path / name)


def test_files_that_are_no_tables_of_ours_are_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("id,x\n")
    with pytest.raises(FormatError, match=r"text\.parquet is no readable Parquet file"):
        store.open_table(tmp_path / "text.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(FormatError, match=r"foreign\.parquet is no cxu table"):
        store.open_table(tmp_path / "foreign.parquet")


def test_a_truncated_table_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    store.write_table(make_rows(5), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match="no readable Parquet file"):
        store.open_table(path)


def test_shards_are_row_groups_cut_at_the_shard_size(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_ROWS", 4)
    store.write_table(make_rows(10), tmp_path / "a.parquet")
    store.write_table(make_rows(3, image_id=["x", "y", "z"]), tmp_path / "b.parquet")
    stored = store.open_table(tmp_path)
    shards = [(shard.path.name, shard.row_group, shard.rows) for shard in stored.shards()]
    assert shards == [("a.parquet", 0, 4), ("a.parquet", 1, 4), ("a.parquet", 2, 2), ("b.parquet", 0, 3)]
    assert stored.rows == 13
    assert stored.shards()[2].read(["image_id"])["image_id"].to_pylist() == ["image0008", "image0009"]
    assert ids(stored) == [f"image{index:04d}" for index in range(10)] + ["x", "y", "z"]


def test_columns_without_a_value_can_be_left_unread(tmp_path):
    latent = np.full((4, 64), np.nan)
    latent[3] = 1.0
    rows = make_rows(4, view=["PA", None, None, None], latent_sigma=latent, rca_mean=np.array([np.nan] * 4))
    store.write_table(rows, tmp_path / "t.parquet")
    (shard,) = store.open_table(tmp_path / "t.parquet").shards()
    content = shard.read()
    left_out = set(content.column_names) - set(shard.read(blank=False).column_names)
    assert left_out == {name for name in content.column_names if content[name].null_count == 4}
    assert {"rca_mean", "sigma_xy", "seed", "frame_offset_xy", "spacing_mm_xy"} <= left_out
    assert shard.read(["image_id", "view", "seed"], blank=False).column_names == ["image_id", "view"]


def test_of_a_file_with_columns_in_parts_every_column_is_read(tmp_path):
    rows = make_rows(2).append_column("record", pa.array([{"x": 1, "y": None}] * 2))
    store.write_table(rows, tmp_path / "t.parquet")
    (shard,) = store.open_table(tmp_path / "t.parquet").shards()
    assert shard.read(blank=False).column_names == shard.read().column_names


def test_only_the_columns_asked_for_are_read_and_unknown_ones_left_out(tmp_path):
    store.write_table(make_rows(2, rle_heart=["1 2", "3 4"]), tmp_path / "a.parquet")
    store.write_table(make_rows(1), tmp_path / "b.parquet")
    stored = store.open_table(tmp_path)
    read = stored.read(["rle_heart", "image_id", "no such column"])
    assert read.column_names == ["rle_heart", "image_id"]
    # the second file has no such column: null there
    assert read["rle_heart"].to_pylist() == ["1 2", "3 4", None]
    assert stored.schema.names == [*table.SCHEMA.names, "rle_heart"]
    assert stored.read().num_rows == 3


def test_rows_come_back_from_disk_as_they_were(tmp_path):
    sigma_xy = np.arange(480, dtype=np.float32).reshape(2, 120, 2)
    sigma_xy[0] = np.nan
    rows = make_rows(2, **table.sigma_columns(sigma_xy), confident=np.ones((2, 120), bool))
    store.write_table(rows, tmp_path / "t.parquet")
    assert store.open_table(tmp_path / "t.parquet").read().equals(rows)


def test_the_digest_of_a_file_changes_with_its_rows(tmp_path):
    store.write_table(make_rows(2), tmp_path / "a.parquet")
    store.write_table(make_rows(2), tmp_path / "b.parquet")
    store.write_table(make_rows(2, seed=1), tmp_path / "c.parquet")
    digests = [store.open_table(tmp_path / f"{name}.parquet").digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_the_same_rows_are_the_same_bytes(tmp_path):
    for name in "ab":
        store.write_table(make_rows(50), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_table_written_in_pieces_is_whole_or_not_there(tmp_path):
    path = tmp_path / "t.parquet"

    def write(*, fail):
        with store.table_writer(path, make_rows(0).schema) as writer:
            writer.write(make_rows(2))
            writer.write(make_rows(0))
            writer.add_facts({"rows_kept": 2})
            if fail:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(fail=True)
    assert list(tmp_path.iterdir()) == []
    write(fail=False)
    stored = store.open_table(path)
    assert stored.rows == 2
    assert stored.facts == {"schema_version": "1", "rows_kept": 2}


# -- runs


def numbered(n_rows):
    return make_rows(n_rows, sigma_xy=np.arange(240 * n_rows, dtype=np.float32).reshape(n_rows, 240))


@pytest.mark.parametrize("workers", [1, 3])
def test_shards_that_threads_encode_are_the_bytes_of_a_table_written_in_one_go(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(store, "SHARD_ROWS", 4)
    rows = numbered(18)
    with store.table_writer(tmp_path / "plain.parquet", rows.schema) as writer:
        writer.write(rows)
        writer.add_facts({"kept": 18})
    with (
        engine.Threads(workers) as pool,
        store.table_joiner(tmp_path / "joined.parquet", rows.schema, pool) as joiner,
    ):
        joiner.write_shards(rows.slice(at, 4) for at in range(0, 18, 4))
        joiner.add_facts({"kept": 18})
    assert (tmp_path / "joined.parquet").read_bytes() == (tmp_path / "plain.parquet").read_bytes()
    joined = store.open_table(tmp_path / "joined.parquet")
    assert joined.facts["kept"] == 18
    assert [shard.rows for shard in joined.shards()] == [4, 4, 4, 4, 2]
    assert joined.shards()[3].read().equals(rows.slice(12, 4))
    assert joined.read().equals(rows)


def test_a_joined_table_is_whole_or_not_there(tmp_path):
    path = tmp_path / "t.parquet"
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt),
        engine.open_pool() as pool,
        store.table_joiner(path, make_rows(0).schema, pool) as joiner,
    ):
        joiner.write_shards([make_rows(3)])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with engine.open_pool() as pool, store.table_joiner(path, make_rows(0).schema, pool):
        pass
    assert store.open_table(path).read().equals(make_rows(0))


def test_runs_are_recorded_one_file_each(home):
    paths = [home.record_run("filter", {"rows": count}) for count in (1, 2)]
    assert paths[0] != paths[1]
    assert {path.parent for path in paths} == {home.root / "runs"}
    record = json.loads(paths[1].read_text())
    assert record["command"] == "filter"
    assert record["rows"] == 2
    assert record["finished"].endswith("+00:00")


def test_a_table_without_rows_reads_as_one(tmp_path):
    path = tmp_path / "empty.parquet"
    store.write_table(make_rows(0), path)
    stored = store.open_table(path)
    assert stored.rows == 0
    assert stored.read().schema.names == make_rows(0).schema.names
    assert stored.read(["image_id", "no_such"]).column_names == ["image_id"]


def test_a_source_may_be_named_by_an_alias(home):
    publish(home, "chestxray8", "image", make_rows(2, frame="image"))
    assert home.open("NIH").name == home.open("chestxray8").name


def test_a_table_may_be_named_by_text(tmp_path):
    store.write_table(make_rows(2), tmp_path / "rows.parquet")
    assert store.open_table(str(tmp_path / "rows.parquet")).rows == 2


def test_a_manifest_that_cannot_be_written_is_warned_of(home, caplog):
    home.root.mkdir(exist_ok=True)
    (home.root / "runs").write_text("a file where the folder should be")
    home.record_run("filter", {})
    assert "could not be written" in caplog.text


def test_a_table_that_is_replaced_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    store.write_table(make_rows(3), path)
    first, *_ = store.open_table(path).shards()
    assert len(first.read()) == 3
    store.write_table(make_rows(4), path)
    with pytest.raises(FormatError, match=r"t\.parquet was changed while it was read: run the command again"):
        first.read(["image_id"])
