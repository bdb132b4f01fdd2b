"""``cxu check``: phantoms as films, as they are or changed behind the table's back; its exit codes and its folder."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from builders import make_rows, published_csv, published_row
from cxu import store
from cxu.check.geometry import mirrored
from cxu.cli import app
from cxu.phantom import synthetic_background
from cxu.shape import load_shape_model, sample_shapes

N = 8
SIDE = 512
SHAPES = sample_shapes(load_shape_model(), N, np.random.default_rng(1))


@pytest.fixture(scope="module")
def phantoms():
    rng = np.random.default_rng(2)
    return [synthetic_background(shape, SIDE, rng) for shape in SHAPES]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(films, change=lambda film: film, folder="films", name="{}.png"):
    Path(folder).mkdir(exist_ok=True)
    for index, film in enumerate(films):
        Image.fromarray(np.ascontiguousarray(change(film))).save(Path(folder, name.format(f"film{index:03}")))


def write_rows(landmarks_xy=SHAPES / 2, path="rows.parquet", **columns):
    n_rows = len(landmarks_xy)
    given = {"source": "own", "image_id": [f"film{index:03}" for index in range(n_rows)], "frame": "image"}
    given |= {"height": SIDE, "width": SIDE, "landmarks_xy": np.asarray(landmarks_xy, np.float32)}
    store.write_table(make_rows(n_rows, **{**given, **columns}), Path(path))


def cxu(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def check(*arguments, rows="rows.parquet", pages=0):
    return cxu("check", rows, "--images", "films", "--pages", pages, *arguments)


def found(done):
    """Return the kinds of findings of one source, faults alone, and its verdicts."""
    (source,) = json.loads(done.stdout)["sources"]
    return [finding["kind"] for finding in source["findings"] if finding["is_fault"]], source["verdicts"]


def lines_of(path="check/check.csv"):
    with Path(path).open(newline="") as stream:
        return list(csv.DictReader(stream))


def down(film, n):
    """Return a film whose content lies n px lower."""
    return np.vstack([np.zeros((n, film.shape[1]), film.dtype), film[:-n]])


# --- a network looks -------------------------------------------------------------------------------------------------


def test_films_as_they_are_fit(phantoms):
    save(phantoms)
    write_rows()
    done = check(pages=1)
    assert done.exit_code == 0, done.stderr
    assert "own: nothing speaks against these images." in done.stdout
    assert sorted(path.name for path in Path("check").iterdir()) == ["check.csv", "cxu.json", "sheet-001.png"]
    lines = lines_of()
    assert [line["verdict"] for line in lines] == ["ok"] * N
    assert all(abs(float(line["shift_x_px"])) < 5 and float(line["residual_px"]) < 8 for line in lines)
    with Image.open("check/sheet-001.png") as picture:
        assert picture.width > 6 * 320
    (manifest,) = Path("cxu-data/runs").glob("*-check.json")
    assert json.loads(manifest.read_text())["fits"] is True


@pytest.mark.slow
def test_a_resized_copy_is_fine(phantoms):
    save(phantoms, lambda film: np.asarray(Image.fromarray(film).resize((256, 256))))
    write_rows()
    done = check()
    assert done.exit_code == 0, done.stderr
    assert "own: all 8 images are 0.5 times the recorded size: fine, cxu rescales." in done.stdout


def test_a_shift_is_found_and_told(phantoms):
    save(phantoms, lambda film: down(film, 20))
    write_rows()
    done = check("--json")
    assert done.exit_code == 3
    kinds, verdicts = found(done)
    assert kinds[0] == "shift"
    content = json.loads(done.stdout)["sources"][0]
    assert content["shift_y"][0] == pytest.approx(40, abs=8)
    assert content["shift_y"][1] < content["shift_y"][0] < content["shift_y"][2]
    assert content["shift_x"][0] == pytest.approx(0, abs=3)
    assert "40 px further down" in content["findings"][0]["sentence"] or sum(verdicts.values()) == N


@pytest.mark.slow
def test_mirrored_images_are_found(phantoms):
    save(phantoms, lambda film: film[:, ::-1])
    write_rows()
    done = check("--json")
    assert done.exit_code == 3
    assert "mirrored" in found(done)[0]


@pytest.mark.slow
def test_a_table_whose_sides_are_exchanged_is_found(phantoms):
    save(phantoms)
    flipped = [mirrored(shape) * (-1, 1) + (1023, 0) for shape in SHAPES]  # named anew, and laid back
    write_rows(np.stack(flipped) / 2)
    done = check("--json")
    assert done.exit_code == 3
    assert found(done) == (["sides"], {"sides": N})


@pytest.mark.slow
def test_films_of_others_are_found(phantoms):
    save(phantoms)
    write_rows(np.roll(SHAPES, 1, axis=0) / 2)
    done = check("--json")
    assert done.exit_code == 3
    kinds, verdicts = found(done)
    assert kinds
    assert verdicts.get("ok", 0) < N


@pytest.mark.slow
def test_a_cropped_copy_has_another_aspect_and_is_measured_pixel_for_pixel(phantoms):
    save(phantoms, lambda film: film[30:, :])
    write_rows()
    done = check("--json")
    assert done.exit_code == 3
    assert found(done) == (["cut"], {"size": N})
    sentence = json.loads(done.stdout)["sources"][0]["findings"][0]["sentence"]
    assert "cut or padded; pixel for pixel the chest lies " in sentence
    assert "further up than the table says" in sentence
    shifts = [float(line["shift_y_px"]) for line in lines_of()]
    assert np.median(shifts) == pytest.approx(-60, abs=8)


@pytest.mark.slow
def test_a_stretched_copy_is_told_with_what_draws_masks_for_it(phantoms):
    save(phantoms, lambda film: np.asarray(Image.fromarray(film).resize((400, 512))))
    write_rows()
    done = check("--json")
    assert done.exit_code == 3
    assert found(done) == (["stretched"], {"size": N})
    assert "cxu rasterize --size 512x400 without --images" in done.stdout
    assert np.median([float(line["shift_y_px"]) for line in lines_of()]) == pytest.approx(0, abs=8)


@pytest.mark.slow
def test_height_and_width_exchanged(phantoms):
    save(phantoms, lambda film: film[:, 50:-50])
    write_rows(SHAPES / 2 - (50, 0), height=SIDE - 100, width=SIDE)
    done = check("--json")
    assert done.exit_code == 3
    assert found(done) == (["exchanged"], {"size": N})
    # with the two put right the outlines lie where they should
    assert np.median([float(line["shift_x_px"]) for line in lines_of()]) == pytest.approx(0, abs=5)


# --- without a network -----------------------------------------------------------------------------------------------


def test_sizes_alone(phantoms):
    save(phantoms)
    write_rows()
    done = check("--no-model", "--json")
    assert done.exit_code == 0
    content = json.loads(done.stdout)
    assert content["network"] is False
    assert content["sources"][0]["measured"] == 0
    assert content["sources"][0]["shift_x"] == [None] * 3
    assert (
        "torch"
        not in subprocess.run(
            [
                sys.executable,
                "-X",
                "importtime",
                "-m",
                "cxu",
                "check",
                "rows.parquet",
                "--images",
                "films",
                "--no-model",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    )


def test_damaged_files_are_told(phantoms):
    save(phantoms)
    Path("films/film003.png").write_bytes(Path("films/film003.png").read_bytes()[:2000])
    Path("films/film004.png").write_bytes(b"")
    write_rows()
    done = check("--json", "--no-model")
    assert done.exit_code == 3
    assert found(done) == (["unreadable"], {"unreadable": 1, "ok": N - 1})
    again = check("--json", pages=1)
    assert again.exit_code == 3
    kinds, verdicts = found(again)
    assert (kinds, verdicts["unreadable"]) == (["unreadable"], 2)
    assert "unreadable: own film004, " in again.stderr


# --- which rows ------------------------------------------------------------------------------------------------------


def test_a_sample_of_the_rows_that_have_an_image(phantoms):
    save(phantoms[:6])
    write_rows()
    done = check("--no-model", "--rows", 4, "--json")
    assert done.exit_code == 0
    content = json.loads(done.stdout)
    assert (content["rows"], content["with_image"], content["looked_at"]) == (8, 6, 4)
    assert "own: 2 of 8 rows have no image among those given" in done.stderr
    first = [line["image_id"] for line in lines_of()]
    check("--no-model", "--rows", 4)
    assert [line["image_id"] for line in lines_of()] == first
    check("--no-model", "--rows", 4, "--seed", 5)
    assert [line["image_id"] for line in lines_of()] != first


def test_without_a_table_the_sources_of_the_home(phantoms):
    Path("NIH.csv").write_text(published_csv([published_row()]))
    assert cxu("import", "NIH.csv", "--source", "chestxray8").exit_code == 0
    save(phantoms[:1], name="00000001_000.png")
    done = cxu("check", "--images", "films", "--no-model", "--pages", 0)
    assert done.exit_code == 0, done.stderr
    assert "source chestxray8/" in done.stderr
    assert cxu("filter", "--max-std", 5).exit_code == 0
    done = cxu("check", "--images", "films", "--no-model", "--pages", 0)
    assert "selection latest" in done.stderr


def test_names_that_hold_the_id_are_shown(phantoms):
    save(phantoms, name="{}_small.png")
    write_rows()
    done = check()
    assert done.exit_code == 2
    assert "none of the 8 rows has an image in films (first: own film000): the files seem" in done.stderr
    assert "'film000_small.png' may be 'film000'; rename them to the id" in done.stderr
    assert not Path("check").exists()


def test_images_of_another_data_set(phantoms):
    save(phantoms, name="x{}9.png")
    write_rows(image_id=[f"{index:08}" for index in range(N)])
    done = check()
    assert done.exit_code == 2
    assert "none of the 8 rows has an image in films (first: own 00000000): expected the file's name to be the id" in (
        done.stderr
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names that are UTF-8 only")
def test_names_that_are_no_text(phantoms):
    folder = os.fsdecode(b"films-\xff")
    save(phantoms, folder=folder)
    save(phantoms[:1], folder=folder, name=os.fsdecode(b"film999\xfe") + "{}.png")
    write_rows()
    done = cxu("check", "rows.parquet", "--images", folder, "--no-model", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["images"] == ["films-\\udcff"]
    write_rows(image_id=[f"film999{index}" for index in range(N)])
    done = cxu("check", "rows.parquet", "--images", folder, "--no-model")
    assert done.exit_code == 2
    assert "films-\\udcff" in done.stderr


# --- bad requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rows.parquet", "--images", " "), "--images is blank"),
        (("rows.parquet", "--images", "nowhere"), "nowhere does not exist"),
        (("nothing", "--images", "films"), "no table, selection or source called 'nothing'"),
        (("--images", "films"), "holds nothing to check: start with cxu fetch or cxu import"),
        (("rows.parquet", "--images", "films", "--rows", "0"), "--rows"),
        (("rows.parquet", "--images", "films", "--frame", "model"), "no row of rows.parquet is in the model frame"),
    ],
)
def test_bad_requests(phantoms, arguments, message):
    save(phantoms[:1])
    write_rows()
    done = cxu("check", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not Path("check").exists()


def test_a_folder_of_others_is_left_alone(phantoms):
    save(phantoms[:1])
    write_rows()
    Path("check").mkdir()
    Path("check/check.csv").write_text("mine")
    done = check("--no-model")
    assert (done.exit_code, Path("check/check.csv").read_text()) == (2, "mine")
    assert "check is not empty and was not made by cxu check" in done.stderr
    Path("file").write_text("mine")
    assert "--out file is a file" in check("--out", "file").stderr
    Path("masks").mkdir()
    Path("masks/cxu.json").write_text('{"command": "rasterize"}')
    assert "masks was made by cxu rasterize" in check("--out", "masks").stderr


def test_another_check_replaces_the_first(phantoms):
    save(phantoms[:2])
    write_rows()
    assert check("--no-model", pages=1).exit_code == 0
    assert Path("check/sheet-001.png").exists()
    Path("check/notes.txt").write_text("mine")
    assert check("--no-model").exit_code == 0
    assert sorted(path.name for path in Path("check").iterdir()) == ["check.csv", "cxu.json", "notes.txt"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals a process group")
def test_ctrl_c_writes_nothing(phantoms):
    save(phantoms)
    write_rows()
    slow = (
        "import sys, time, cxu.check.run as run; from cxu.__main__ import main\n"
        "def looks(*_):\n    print('looking', flush=True); time.sleep(60); yield\n"
        "run._looks = looks; sys.argv = ['cxu', 'check', 'rows.parquet', '--images', 'films']; main()"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert running.stdout.readline() == "looking\n"
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert (running.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith("cxu: interrupted. ")
    assert not Path("check").exists()


# --- borders ---------------------------------------------------------------------------------------------------------


def with_border(film, n=40):
    return np.hstack([np.zeros((len(film), n), film.dtype), np.maximum(film, 3)])


@pytest.mark.slow
def test_a_border_that_the_source_crops_is_fine(phantoms):
    save(phantoms, with_border)
    write_rows(SHAPES, source="mimic", frame="model", height=1024, width=1024)
    done = check("--json")
    assert done.exit_code == 0, done.stderr
    source = json.loads(done.stdout)["sources"][0]
    assert source["sizes"] == {"unknown": N}
    assert source["shift_x"][0] == pytest.approx(0, abs=3)


@pytest.mark.slow
def test_a_border_that_the_source_does_not_crop_is_found(phantoms):
    save(phantoms, with_border)
    write_rows(SHAPES, source="vindr", frame="model", height=1024, width=1024)
    done = check("--json")
    assert done.exit_code == 3
    assert set(found(done)[0]) >= {"shift", "scale"}


def test_published_rows_at_original_resolution_are_not_drawn_on_bordered_films(phantoms):
    save(phantoms, with_border)
    write_rows(source="mimic", height=SIDE, width=SIDE + 40, model_id="published")
    done = check("--json", "--no-model")
    assert done.exit_code == 3
    assert found(done) == (["unplaced"], {"unplaced": N})
    assert "with --frame model, whose place in the image is exact" in done.stdout
