from __future__ import annotations

import json
import logging
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxu import image_index
from cxu.catalog import SOURCES, source_or_custom
from cxu.errors import CxuError, ImageError, MissingInputError, UsageError
from cxu.image_index import build_index, load_index, resolve
from cxu.image_listing import ImageFile

MIMIC, CHEXPERT, NIH, OWN = SOURCES["mimic"], SOURCES["chexpert"], SOURCES["chestxray8"], source_or_custom("mine")
DICOM_ID = "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root


def make_zip(path: Path, *members: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            archive.writestr(member, member)
    return path


def relatives(index) -> list[str]:
    return [file.relative.as_posix() for file in index]


@pytest.fixture
def no_listing(monkeypatch):
    """Fail where a folder would be walked."""

    def refuse(folder):
        raise AssertionError(f"{folder} was listed")

    return lambda: monkeypatch.setattr(os, "scandir", refuse)


# --- id rules ---


def test_mimic_is_found_by_stem_however_deep(tmp_path):
    touch(tmp_path, f"files/p10/p10000032/s50414267/{DICOM_ID}.jpg", "files/p10/p10000032/s50414267/index.html")
    file = build_index(tmp_path).find(MIMIC, DICOM_ID)
    assert file.path == tmp_path / f"files/p10/p10000032/s50414267/{DICOM_ID}.jpg"
    assert file.relative.as_posix() == f"files/p10/p10000032/s50414267/{DICOM_ID}.jpg"
    assert file.member is None
    assert build_index(tmp_path).find(MIMIC, DICOM_ID[:-1]) is None


@pytest.mark.parametrize("root", [".", "CheXpert-v1.0-small", "CheXpert-v1.0-small/train/patient00001/study1"])
def test_chexpert_is_found_by_four_parts_from_any_root(tmp_path, root):
    touch(
        tmp_path / "CheXpert-v1.0-small",
        "train/patient00001/study1/view1_frontal.jpg",
        "train/patient00001/study2/view1_frontal.jpg",
        "valid/patient00001/study1/view1_frontal.jpg",
    )
    image_id = CHEXPERT.canonical_id("CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg")
    file = build_index(tmp_path / root).find(CHEXPERT, image_id)
    assert file.path == tmp_path / "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"


def test_own_ids_use_as_many_parts_as_they_have(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png", "b/c/2.png")
    index = build_index(tmp_path)
    assert index.find(OWN, "a/1").path == tmp_path / "a/1.png"
    assert index.find(OWN, "b/1").path == tmp_path / "b/1.png"
    assert index.find(OWN, "2").path == index.find(OWN, "b/c/2").path == tmp_path / "b/c/2.png"
    assert index.find(OWN, "a/2") is None


def test_own_ids_with_dots(tmp_path):
    touch(tmp_path, "1.2.840.113.dcm")
    assert build_index(tmp_path).find(OWN, "1.2.840.113").path.name == "1.2.840.113.dcm"


def test_keys_are_compared_exactly(tmp_path):
    index = build_index(touch(tmp_path, "Ab.PNG"))
    assert index.find(NIH, "Ab").path.name == "Ab.PNG"
    assert index.find(NIH, "ab") is None
    assert index.find(NIH, "Ab.PNG") is None


parts = st.text("ab.-_", min_size=1, max_size=4)


@given(st.lists(parts, min_size=1, max_size=5), st.integers(1, 5))
def test_key_is_the_end_of_the_path(names, depth):
    file = ImageFile("/r/o/o/t/s", "/".join(names) + ".png")
    assert file.key(depth) == "/".join(["r", "o", "o", "t", "s", *names][-depth:])


# --- what a spec names ---


def test_folders_are_walked_in_order_without_hidden_files(tmp_path):
    touch(tmp_path, "b.png", "a/z.JPEG", "a/deep/er/x.tiff", "c.dicom", "c.dcm", "d.tif", "e.jpg")
    touch(tmp_path, ".hidden.png", ".cache/x.png", "__MACOSX/b.png", "a/._z.jpg", "notes.txt", "x.npy", "png")
    (tmp_path / "folder.png").mkdir()
    touch(tmp_path / "folder.png", "inside.png")
    assert relatives(build_index(tmp_path)) == [
        "b.png",
        "c.dcm",
        "c.dicom",
        "d.tif",
        "e.jpg",
        "a/z.JPEG",
        "a/deep/er/x.tiff",
        "folder.png/inside.png",
    ]


def test_very_deep_folders(tmp_path):
    folder = tmp_path.joinpath(*["d"] * 300)
    folder.mkdir(parents=True)
    touch(folder, "x.png")
    assert len(build_index(tmp_path)) == 1


def test_links_are_followed_without_circles_or_copies(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    touch(inside, "real/1.png")
    touch(outside, "far/2.png", "3.png")
    (inside / "file.png").symlink_to(outside / "3.png")
    (inside / "elsewhere").symlink_to(outside / "far")
    (inside / "again").symlink_to(outside / "far")
    (inside / "sibling").symlink_to(inside / "real")
    (inside / "real" / "up").symlink_to(tmp_path)
    (inside / "self.png").symlink_to(inside / "self.png")
    (inside / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    assert relatives(build_index(inside)) == ["file.png", "again/2.png", "real/1.png"]


def test_zips_in_subfolders_are_opened(tmp_path):
    make_zip(tmp_path / "padchest/0.ZIP", "7.png", "sub/8.png", "readme.md", "__MACOSX/._7.png", ".DS_Store", "sub/")
    make_zip(tmp_path / "padchest/1.zip", "9.png")
    index = build_index(tmp_path)
    assert relatives(index) == ["padchest/7.png", "padchest/sub/8.png", "padchest/9.png"]
    file = index.find(SOURCES["padchest"], "8")
    assert (file.path, file.member) == (tmp_path / "padchest/0.ZIP", "sub/8.png")
    assert file.name == f"{tmp_path / 'padchest/0.ZIP'}!sub/8.png"
    with file.open() as stream:
        assert stream.read() == b"sub/8.png"


def test_zip_in_chexpert_layout_and_windows_slashes(tmp_path):
    path = make_zip(tmp_path / "train/images.zip", "patient1/study1/view1_frontal.jpg")
    # the zip module turns backslashes into slashes on Windows only
    make_zip(tmp_path / "valid.zip", r"valid\patient2\study1\view1_frontal.jpg")
    index = build_index(tmp_path)
    assert index.find(CHEXPERT, "train/patient1/study1/view1_frontal").path == path
    with index.find(CHEXPERT, "valid/patient2/study1/view1_frontal").open() as stream:
        assert stream.read().startswith(b"valid")


def test_members_that_climb_stay_below_the_folder_in_relative(tmp_path):
    make_zip(tmp_path / "z/x.zip", "../../etc/1.png", "/abs/2.png")
    assert relatives(build_index(tmp_path)) == ["z/etc/1.png", "z/abs/2.png"]


def test_zip_members_are_read_by_threads(tmp_path):
    names = [f"{number}.png" for number in range(50)]
    index = build_index(make_zip(tmp_path / "x.zip", *names))

    def content(file):
        with file.open() as stream:
            return stream.read().decode()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(content, index)) == names


def test_single_files_and_several_specs(tmp_path):
    touch(tmp_path, "a/1.png", "b/2.png", "b/3.png")
    path = make_zip(tmp_path / "c.zip", "d/4.png")
    assert relatives(build_index(tmp_path / "a/1.png")) == ["1.png"]
    assert relatives(build_index(str(path))) == ["d/4.png"]
    assert relatives(build_index([tmp_path / "a/1.png", str(tmp_path / "b"), path])) == [
        "1.png",
        "2.png",
        "3.png",
        "d/4.png",
    ]


def test_relative_specs_are_relative_to_the_working_folder(tmp_path, monkeypatch):
    touch(tmp_path, "in/a/1.png")
    monkeypatch.chdir(tmp_path / "in")
    for spec in ("a", "./a/", "../in/a", "a/*.png"):
        (file,) = build_index(spec)
        assert (file.path, file.relative.as_posix()) == (tmp_path / "in/a/1.png", "1.png")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["x.png"]),
        ("p1*/s?/*.jpg", ["p10/s1/1.jpg", "p11/s1/2.jpg"]),
        ("p1[0-1]", ["p10/s1/1.jpg", "p10/s1/t/3.png", "p11/s1/2.jpg"]),
        ("**/*.jpg", ["p10/s1/1.jpg", "p11/s1/2.jpg", "p20/4.jpg"]),
        ("**", ["x.png", "p10/s1/1.jpg", "p10/s1/t/3.png", "p11/s1/2.jpg", "p20/4.jpg", "p20/5.png"]),
        ("p2*/*", ["p20/4.jpg", "p20/5.png"]),
        ("p2*/*.zip", ["p20/5.png"]),
    ],
)
def test_globs(tmp_path, pattern, expected):
    touch(tmp_path, "x.png", "p10/s1/1.jpg", "p10/s1/t/3.png", "p11/s1/2.jpg", "p20/4.jpg", "p20/notes.txt")
    make_zip(tmp_path / "p20/z.zip", "5.png")
    assert relatives(build_index(tmp_path / pattern)) == expected


def test_an_existing_path_is_no_glob(tmp_path):
    touch(tmp_path, "a[1]/x.png", "a1/y.png")
    assert relatives(build_index(tmp_path / "a[1]")) == ["x.png"]


@pytest.mark.parametrize("suffix", [".txt", ".lst"])
def test_lists_hold_a_path_a_line(tmp_path, suffix):
    touch(tmp_path, "lists/in/1.png", "other/2.png", "zips/keep")
    make_zip(tmp_path / "zips/z.zip", "3.png")
    path = tmp_path / f"lists/mine{suffix}"
    path.write_text(f"\ufeffin/1.png\n\n  ../other/2.png \r\n{tmp_path}/zips/z.zip\n", encoding="utf-8")
    index = build_index(path)
    below = tmp_path.as_posix().lstrip("/")
    assert relatives(index) == ["in/1.png", f"{below}/other/2.png", f"{below}/zips/3.png"]
    assert [file.path for file in index][:2] == [tmp_path / "lists/in/1.png", tmp_path / "other/2.png"]


def test_csv_lists_use_the_first_field(tmp_path, caplog):
    touch(tmp_path, "a, b.png", "c.png")
    (tmp_path / "list.csv").write_text('path,label\n"a, b.png",1\nc.png,0\n\n')
    assert relatives(build_index(tmp_path / "list.csv")) == ["a, b.png", "c.png"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_lines_without_an_image_are_logged(tmp_path, caplog):
    touch(tmp_path, "1.png", "notes.pdf")
    (tmp_path / "list.txt").write_text("1.png\n2.png\nnotes.pdf\n")
    assert relatives(build_index(tmp_path / "list.txt")) == ["1.png"]
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "2 lines name no existing image; first: line 2 '2.png'" in message


def test_names_that_are_not_utf8(tmp_path):
    try:
        touch(tmp_path, os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system refuses such names")
    (file,) = load_index(tmp_path, tmp_path / "cache")
    assert file.name.encode("utf-8").endswith(b"\\udcff.png")
    (again,) = load_index(tmp_path, tmp_path / "cache")
    assert again == file
    with again.open() as stream:
        assert stream.read(1)


# --- errors ---


@pytest.mark.parametrize("spec", ["nowhere", "nowhere.png", "no*thing", "a/nowhere/**/*.png"])
def test_missing_specs_are_named(tmp_path, spec):
    with pytest.raises(MissingInputError, match=spec.replace("*", r"\*")):
        build_index(tmp_path / spec)


def test_nothing_found_is_an_error(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(MissingInputError, match=r"no image in .*\.png"):
        build_index(tmp_path)
    with pytest.raises(MissingInputError, match=r"no image in"):
        build_index(tmp_path / "notes.txt")


def test_other_files_are_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"x\.pdf is no folder"):
        build_index(touch(tmp_path, "x.pdf") / "x.pdf")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more"])
def test_corrupt_zip_is_named(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    for spec in (tmp_path, tmp_path / "a.zip"):
        with pytest.raises(ImageError, match=r"a\.zip is no readable zip"):
            build_index(spec)


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="nothing is unreadable to root")
def test_unreadable_folder_is_named(tmp_path):
    touch(tmp_path, "x.png", "closed/y.png")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(MissingInputError, match="closed cannot be listed"):
        build_index(tmp_path)


def test_files_that_went_away_or_are_encrypted(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png does not exist"):
        ImageFile.at(tmp_path / "gone.png").open()
    make_zip(tmp_path / "x.zip", "1.png")
    with pytest.raises(ImageError, match=r"x\.zip!2\.png cannot be opened"):
        ImageFile(str(tmp_path), "2.png", "x.zip").open()
    raw = bytearray((tmp_path / "x.zip").read_bytes())
    for offset in (6, raw.index(b"PK\x01\x02") + 8):
        raw[offset] |= 1  # the flag of an encrypted member, in the local and the central header
    (tmp_path / "locked.zip").write_bytes(raw)
    (file,) = build_index(tmp_path / "locked.zip")
    with pytest.raises(ImageError, match="encrypted"):
        file.open()


def test_files_travel_to_worker_processes(tmp_path):
    file = build_index(make_zip(tmp_path / "x.zip", "1.png")).find(OWN, "1")
    assert pickle.loads(pickle.dumps(file)) == file


# --- duplicates ---


def test_duplicates_are_an_error_only_where_asked_for(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.jpg", "b/2.png")
    index = build_index(tmp_path)
    assert index.find(NIH, "2").path.name == "2.png"
    with pytest.raises(UsageError, match=r"'1' \(.*a/1\.png and .*b/1\.jpg\)"):
        index.find(NIH, "1")
    assert index.find(OWN, "a/1").path == tmp_path / "a/1.png"


def test_all_duplicates_stand_in_one_error(tmp_path):
    for number in range(5):
        touch(tmp_path, f"a/{number}.png", f"b/{number}.png")
    with pytest.raises(UsageError, match=r"^5 image id\(s\).*'0'.*'1'.*'2'.*and 2 more") as caught:
        build_index(tmp_path).find_all(NIH, [str(number) for number in range(5)])
    assert "'3'" not in str(caught.value)


def test_a_plain_file_and_a_zipped_copy_are_duplicates(tmp_path):
    touch(tmp_path, "1.png")
    make_zip(tmp_path / "z.zip", "1.png")
    with pytest.raises(UsageError, match=r"1\.png and .*z\.zip!1\.png"):
        build_index(tmp_path).find(NIH, "1")


def test_overlapping_specs_are_no_duplicates(tmp_path):
    touch(tmp_path, "a/1.png")
    make_zip(tmp_path / "a/z.zip", "2.png")
    index = build_index([tmp_path, tmp_path / "a", tmp_path / "a/1.png", tmp_path / "a/*", tmp_path / "a/z.zip"])
    assert index.find(NIH, "1").path == tmp_path / "a/1.png"
    assert index.find(NIH, "2").member == "2.png"


def test_find_all_keeps_the_order_of_the_missing(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    found, missing = build_index(tmp_path).find_all(NIH, ["9", "2", "7", "1"])
    assert list(found) == ["2", "1"]
    assert missing == ["9", "7"]


# --- cache ---


def test_second_call_does_not_list(tmp_path, no_listing):
    images, cache = touch(tmp_path / "images", "a/1.png", "2.png"), tmp_path / "cache"
    make_zip(images / "z/z.zip", "3.png")
    first = load_index(images, cache)
    assert not first.cached
    no_listing()
    second = load_index(images, cache)
    assert second.cached
    assert second.files == first.files
    with pytest.raises(AssertionError, match="was listed"):
        load_index(images, cache, refresh=True)
    with pytest.raises(AssertionError, match="was listed"):
        load_index([images, images / "a"], cache)


def test_cache_is_one_json_file_for_the_absolute_specs(tmp_path, monkeypatch):
    images, cache = touch(tmp_path / "images", "1.png"), tmp_path / "cache"
    load_index(images, cache)
    monkeypatch.chdir(tmp_path)
    assert load_index("images", cache).cached
    (path,) = cache.iterdir()
    assert json.loads(path.read_text())["listing"] == [[str(images), "", ["1.png"]]]


def test_without_a_cache_folder_nothing_is_written(tmp_path):
    touch(tmp_path, "1.png")
    assert not load_index(tmp_path, None).cached
    assert [path.name for path in tmp_path.iterdir()] == ["1.png"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"state": 1}', b'{"state": {"version": 0}, "listing": []}']
)
def test_corrupt_cache_is_rebuilt(tmp_path, content):
    images, cache = touch(tmp_path / "images", "1.png"), tmp_path / "cache"
    load_index(images, cache)
    (path,) = cache.iterdir()
    good = path.read_bytes()
    for broken in (content, good[: len(good) // 2], good.replace(b'["1.png"]', b"7")):
        path.write_bytes(broken)
        index = load_index(images, cache)
        assert not index.cached
        assert relatives(index) == ["1.png"]
        assert path.read_bytes() == good


def test_unwritable_cache_folder_is_no_error(tmp_path, caplog):
    images = touch(tmp_path / "images", "1.png")
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert relatives(load_index(images, tmp_path / "cache")) == ["1.png"]
    assert "not cached" in caplog.text


def test_resolve_lists_again_once_when_an_id_is_missing(tmp_path, monkeypatch):
    images, cache = touch(tmp_path / "images", "1.png"), tmp_path / "cache"
    load_index(images, cache)
    touch(images, "2.png")
    listed = []
    build = image_index.build_index
    monkeypatch.setattr(image_index, "build_index", lambda spec: listed.append(spec) or build(spec))
    found, missing = resolve(images, [(NIH, "2"), (MIMIC, "1"), (NIH, "3")], cache)
    assert {pair: file.path.name for pair, file in found.items()} == {
        ("chestxray8", "2"): "2.png",
        ("mimic", "1"): "1.png",
    }
    assert missing == [("chestxray8", "3")]
    assert len(listed) == 1


def test_resolve_trusts_a_cache_that_has_everything(tmp_path, no_listing):
    images, cache = touch(tmp_path / "images", "1.png", "2.png"), tmp_path / "cache"
    resolve(images, [(NIH, "1")], cache)
    no_listing()
    found, missing = resolve(images, iter([(NIH, "1"), (NIH, "2")]), cache)
    assert len(found) == 2
    assert missing == []


def test_resolve_lists_again_when_a_file_moved(tmp_path):
    images, cache = touch(tmp_path / "images", "a/1.png", "a/2.png"), tmp_path / "cache"
    load_index(images, cache)
    (images / "b").mkdir()
    (images / "a/1.png").rename(images / "b/1.png")
    (images / "a/2.png").unlink()
    found, missing = resolve(images, [(NIH, "1"), (NIH, "2")], cache)
    assert found["chestxray8", "1"].path == images / "b/1.png"
    assert missing == [("chestxray8", "2")]


def test_resolve_lists_again_when_the_cache_has_duplicates(tmp_path):
    images, cache = touch(tmp_path / "images", "a/1.png", "b/1.png"), tmp_path / "cache"
    with pytest.raises(UsageError, match="more than one file"):
        resolve(images, [(NIH, "1")], cache)
    (images / "b/1.png").unlink()
    assert len(resolve(images, [(NIH, "1")], cache)[0]) == 1


def test_changed_lists_and_zips_are_noticed(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    names, path = tmp_path / "list.txt", tmp_path / "z.zip"
    for lines, members in ((["1.png"], ["3.png"]), (["1.png", "2.png"], ["3.png", "4.png"])):
        names.write_text("\n".join(lines))
        make_zip(path, *members)
        assert relatives(load_index([names, path], tmp_path / "cache")) == lines + members


def test_errors_are_cxu_errors(tmp_path):
    with pytest.raises(CxuError):
        resolve(tmp_path / "nowhere", [(NIH, "1")], tmp_path / "cache")
