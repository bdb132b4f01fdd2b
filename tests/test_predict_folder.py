"""The folder of predictions: whose it is, what is finished, and that interruptions leave no trace."""

import itertools
import json

import pytest

from builders import make_rows
from cxu import store
from cxu.catalog import source_or_custom
from cxu.errors import OutputExistsError, UsageError
from cxu.files import hash_of
from cxu.image_listing import ImageFile
from cxu.predict_folder import PredictFolder, _hash, check_paths, stamp_of
from cxu.predict_plan import PlannedImage

LOCAL = source_or_custom("local")
COUNTER = itertools.count()


def record(**made_with):
    made_with = {"model_id": "aa", "n_samples": 50, **made_with}
    return {"command": "predict", "identity": hash_of(made_with), "made_with": made_with}


def claimed(out, *, overwrite=False, **made_with):
    folder = PredictFolder(out)
    folder.claim(record(**made_with), overwrite=overwrite)
    return folder


def images(tmp_path, *names):
    for name in names:
        path = tmp_path / "films" / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_bytes(name.encode())
    return [PlannedImage(LOCAL, name, ImageFile(str(tmp_path / "films"), name)) for name in names]


def rows_for(*planned, **columns):
    ids = [image.image_id for image in planned]
    hashes = [_hash(image.file) for image in planned]
    return make_rows(len(ids), source="local", image_id=ids, file_sha256=hashes, **columns)


def add(folder, *planned, positions=None, group=""):
    """Write a part; images stand in the plan in the order in which they are added, unless told otherwise."""
    stamps = [stamp_of(image.file) for image in planned]
    return folder.add(rows_for(*planned), stamps, positions or [next(COUNTER) for _ in planned], group)


def ids_in(folder):
    return store.open_table(folder.path).read()["image_id"].to_pylist()


def test_rows_are_joined_in_order_and_known_the_next_time(tmp_path):
    a, b, c = images(tmp_path, "a.png", "b.png", "c.png")
    folder = claimed(tmp_path / "out")
    assert [folder.state(image) for image in (a, b, c)] == ["new"] * 3
    add(folder, a)
    add(folder, c)
    assert folder.join() == 2
    again = claimed(tmp_path / "out")
    assert [again.state(image) for image in (a, b, c)] == ["done", "new", "done"]
    add(again, b)
    assert again.join() == 3
    assert ids_in(again) == ["a.png", "c.png", "b.png"]
    assert sorted(path.name for path in (tmp_path / "out/.cxu").iterdir()) == ["files.parquet"]


def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path):
    a, b, c = images(tmp_path, "a.png", "b.png", "c.png")
    whole = claimed(tmp_path / "whole")
    add(whole, a, b, c)
    whole.join()
    add(claimed(tmp_path / "out"), a, b)  # and is killed here
    again = claimed(tmp_path / "out")
    assert [again.state(image) for image in (a, b, c)] == ["done", "done", "new"]
    add(again, c)
    again.join()
    assert again.path.read_bytes() == whole.path.read_bytes()


def key_of(image):
    return image.source.name, image.image_id


def test_rows_stand_as_planned_whoever_wrote_them_and_when(tmp_path):
    planned = images(tmp_path, *(f"{number}.png" for number in range(8)))
    whole = claimed(tmp_path / "whole")
    add(whole, *planned)
    whole.join()
    folder = claimed(tmp_path / "out")
    for places in ([3, 1], [0], [7, 4, 5], [2, 6]):
        add(folder, *(planned[place] for place in places))
    assert folder.waiting() == {key_of(image) for image in planned}
    assert folder.join(map(key_of, planned)) == 8
    assert folder.path.read_bytes() == whole.path.read_bytes()
    assert folder.waiting() == set()


def test_rows_of_another_plan_stand_first_and_in_its_order(tmp_path):
    planned = images(tmp_path, *(f"{number}.png" for number in range(6)))
    folder = claimed(tmp_path / "out")
    add(folder, planned[5], planned[4], positions=[2, 0])
    add(folder, planned[3], positions=[1])  # and is killed here
    add(folder, planned[2], planned[0])
    folder.join([key_of(planned[0]), key_of(planned[1]), key_of(planned[2])])
    assert ids_in(folder) == ["4.png", "3.png", "5.png", "0.png", "2.png"]


def test_a_join_reads_few_parts_at_a_time_and_rows_that_alternate_come_right(tmp_path, monkeypatch):
    monkeypatch.setattr("cxu.predict_folder._OPEN_PARTS", 1)
    monkeypatch.setattr("cxu.predict_folder._GROUP_ROWS", 3)
    planned = images(tmp_path, *(f"{number}.png" for number in range(9)))
    folder = claimed(tmp_path / "out")
    for start in range(3):
        add(folder, *planned[start::3])
    folder.join(map(key_of, planned))
    assert ids_in(folder) == [image.image_id for image in planned]
    assert [shard.rows for shard in store.open_table(folder.path).shards()] == [3, 3, 3]


def test_an_image_that_two_workers_did_has_one_row(tmp_path):
    a, b, c = images(tmp_path, "a.png", "b.png", "c.png")
    folder = claimed(tmp_path / "out")
    add(folder, a, b)
    folder.join()
    again = claimed(tmp_path / "out")
    add(again, b, c, group="x")  # of a job that began before the table was there
    add(again, c, group="y")
    assert [again.keys_of_group(name) for name in "xyz"] == [{key_of(b), key_of(c)}, {key_of(c)}, set()]
    assert again.join() == 3
    assert ids_in(again) == ["a.png", "b.png", "c.png"]


def test_a_part_that_is_joined_in_part_stays(tmp_path):
    a, b = images(tmp_path, "a.png", "b.png")
    folder = claimed(tmp_path / "out")
    add(folder, a)
    folder.join()
    add(folder, a, b)
    again = claimed(tmp_path / "out")
    assert again.state(b) == "done"
    assert again.join() == 2


def test_the_same_images_have_the_same_part_and_others_another(tmp_path):
    a, b = images(tmp_path, "a.png", "b.png")
    folder = claimed(tmp_path / "out")
    first = add(folder, a, b, group="g")
    assert add(folder, a, b, group="g") == first
    assert len({first, add(folder, a, group="g"), add(folder, a, b, group="h")}) == 3


def test_jobs_note_what_they_reject(tmp_path):
    folder = claimed(tmp_path / "out")
    folder.note_rejected("1-of-2", [("/a.png", (3, 4), "empty")])
    folder.note_rejected("2-of-2", [("/b.png", (5, 6), "torn"), ("/c.png", (7, 8), "grey")])
    assert folder.rejected() == {
        "/a.png": ((3, 4), "empty"),
        "/b.png": ((5, 6), "torn"),
        "/c.png": ((7, 8), "grey"),
    }
    folder.note_rejected("2-of-2", [])
    (tmp_path / "out/.cxu/rejected-3-of-3.json").write_text("[")
    assert claimed(tmp_path / "out").rejected() == {"/a.png": ((3, 4), "empty")}
    folder.forget_rejected()
    assert folder.rejected() == {}
    assert not list((tmp_path / "out/.cxu").glob("rejected*"))
    folder.note_rejected("1-of-2", [("/a.png", (3, 4), "empty")])
    assert claimed(tmp_path / "out", overwrite=True).rejected() == {}


def test_what_a_job_elsewhere_is_writing_stays(tmp_path):
    claimed(tmp_path / "out")
    (tmp_path / "out/.cxu").mkdir()
    under_way = tmp_path / "out/.cxu/.cxu-tmp-17@abcdef-part-x.parquet"
    under_way.write_bytes(b"half")
    claimed(tmp_path / "out")
    assert under_way.exists()


def test_killed_between_the_table_and_the_removal_of_its_parts(tmp_path):
    a, b = images(tmp_path, "a.png", "b.png")
    folder = claimed(tmp_path / "out")
    add(folder, a)
    add(folder, b)
    parts = {path: path.read_bytes() for path in (tmp_path / "out/.cxu").glob("part-*")}
    folder.join()
    for path, content in parts.items():
        path.write_bytes(content)
    again = claimed(tmp_path / "out")
    assert again.join() == 2
    assert ids_in(again) == ["a.png", "b.png"]


def test_groups_do_not_depend_on_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("cxu.predict_folder._GROUP_ROWS", 4)
    planned = images(tmp_path, *(f"{number}.png" for number in range(10)))
    sizes = {}
    for name, cuts in {"even": (0, 5, 10), "uneven": (0, 1, 4, 9, 10)}.items():
        folder = claimed(tmp_path / name)
        for start, stop in itertools.pairwise(cuts):
            add(folder, *planned[start:stop])
        folder.join()
        sizes[name] = [shard.rows for shard in store.open_table(folder.path).shards()]
    assert sizes["even"] == sizes["uneven"] == [4, 4, 2]
    assert (tmp_path / "even/predictions.parquet").read_bytes() == (
        tmp_path / "uneven/predictions.parquet"
    ).read_bytes()


def test_a_changed_file_is_another_one_and_a_touched_one_is_not(tmp_path):
    (a,) = images(tmp_path, "a.png")
    folder = claimed(tmp_path / "out")
    add(folder, a)
    folder.join()
    path = tmp_path / "films/a.png"
    path.write_bytes(path.read_bytes())
    assert claimed(tmp_path / "out").state(a) == "done"
    path.write_bytes(b"something else")
    assert claimed(tmp_path / "out").state(a) == "other"
    path.unlink()
    assert claimed(tmp_path / "out").state(a) == "other"


def test_a_table_without_its_ledger_is_known_by_hash(tmp_path):
    (a,) = images(tmp_path, "a.png")
    folder = claimed(tmp_path / "out")
    add(folder, a)
    folder.join()
    ledger = tmp_path / "out/.cxu/files.parquet"
    ledger.unlink()
    assert claimed(tmp_path / "out").state(a) == "done"
    ledger.write_bytes(b"torn")
    assert claimed(tmp_path / "out").state(a) == "done"


def test_other_options_are_refused_and_overwrite_starts_afresh(tmp_path):
    (a,) = images(tmp_path, "a.png")
    folder = claimed(tmp_path / "out")
    add(folder, a)
    folder.join()
    picture = folder.overlay_path(("local", "a.png"))
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"png")
    kept = picture.with_name("mine.png")
    kept.write_bytes(b"png")
    with pytest.raises(OutputExistsError, match=r"\(n_samples was 50, now 20\): choose another --out, or replace"):
        claimed(tmp_path / "out", n_samples=20)
    again = claimed(tmp_path / "out", n_samples=20, overwrite=True)
    assert again.state(a) == "new"
    assert not again.path.exists()
    assert not picture.exists()
    assert kept.exists()
    assert json.loads((tmp_path / "out/cxu.json").read_text())["made_with"]["n_samples"] == 20


def test_what_others_wrote_is_not_touched(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "predictions.parquet").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match=r"without the cxu\.json that says how it was made"):
            claimed(out, overwrite=overwrite)
    (out / "cxu.json").write_text('{"command": "rasterize", "identity": "x"}')
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="made by cxu rasterize"):
            claimed(out, overwrite=overwrite)
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(OutputExistsError, match="is a file"):
        claimed(file)


def test_nothing_predicted_leaves_an_empty_table(tmp_path):
    folder = claimed(tmp_path / "out")
    assert folder.join() == 0
    assert store.open_table(folder.path).rows == 0


def test_pictures_stay_in_the_folder(tmp_path):
    folder = PredictFolder(tmp_path)
    assert folder.overlay_path(("local", "../../x.png")).is_relative_to(tmp_path / "overlays")
    assert folder.overlay_path(("local", "b/a.dcm")) == tmp_path / "overlays/local/b/a.png"


def test_two_images_for_one_picture_are_refused():
    check_paths([("local", "a.png"), ("local", "b.png"), ("nih", "a.png"), ("local", "a.png")])
    for other in ("a.dcm", "A.png", "a"):
        with pytest.raises(UsageError, match=f"pictures or masks of a.png and {other} would be one file"):
            check_paths([("local", "a.png"), ("local", other)])


def test_parts_know_the_files_of_their_rows(tmp_path, monkeypatch):
    (a,) = images(tmp_path, "a.png")
    add(claimed(tmp_path / "out"), a)  # and is killed here
    again = claimed(tmp_path / "out")
    monkeypatch.setattr("cxu.predict_folder._hash", lambda file: pytest.fail("needless reading"))
    assert again.state(a) == "done"
    again.join()
    assert store.open_table(again.path).schema.names == make_rows(1).schema.names
    assert claimed(tmp_path / "out").state(a) == "done"


def test_a_stamp_is_that_of_the_reading_not_of_the_joining(tmp_path):
    (a,) = images(tmp_path, "a.png")
    folder = claimed(tmp_path / "out")
    add(folder, a)
    (tmp_path / "films/a.png").write_bytes(b"replaced while the run went on")
    folder.join()
    assert claimed(tmp_path / "out").state(a) == "other"
