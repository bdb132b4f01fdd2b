"""``cxu predict`` as users type it."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from cxu import store, table
from cxu.cli import app
from cxu.model.weights import bundled_path, bundled_variants, save_weights
from cxu.shape import load_shape_model, sample_shapes
from hub_server import HubServer
from predict_helpers import film_pixels, tiny_model, write_film, write_weights


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "tiny.safetensors")
    return tmp_path


def cxu(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def predict(*arguments):
    return cxu("predict", "--weights", "tiny.safetensors", "--samples", 5, "--device", "cpu", *arguments)


def rows_in(folder):
    return pq.read_table(Path(folder) / "predictions.parquet").to_pylist()


def test_a_single_image_prints_its_organs(here):
    write_film(here / "image.png", shape_hw=(90, 120))
    done = predict("image.png")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "image.png: node uncertainty, px of the 1024 model frame"
    assert [line.split()[0] for line in lines[2:5]] == ["right_lung", "left_lung", "heart"]
    (row,) = rows_in("cxu-data/predictions")
    assert lines[5] == f"image score {row['mean_sigma_model_px']:.2f} px"
    assert lines[6] == "table: cxu-data/predictions/predictions.parquet (1 row)"
    assert "1 image to cxu-data/predictions · weights" in done.stderr
    assert f"64 px, {row['model_id'][:12]})" in done.stderr
    assert "\nnot a medical device\n" in done.stderr
    assert "research" not in done.stderr
    sigma = row["sigma_model_px"][94:]
    _, mean, worst, node = lines[4].split()
    assert (mean, worst) == (f"{np.mean(sigma):.2f}", f"{max(sigma):.2f}")
    assert int(node) == 94 + int(np.argmax(sigma))


def test_terms_of_the_file_are_said_on_one_line(here):
    write_film(here / "a.png")
    save_weights(tiny_model(), here / "net.safetensors", {"terms": "ask\n\x1b[31mfirst"})
    done = cxu("predict", "a.png", "--weights", "net.safetensors", "--samples", 2)
    assert "\nask\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[31mfirst\n" in done.stderr
    assert "medical" not in done.stderr


def test_json_for_one_and_for_many(here):
    write_film(here / "films/a.png")
    write_film(here / "films/b.png", 1)
    one = json.loads(predict("films/a.png", "--out", "one", "--json").stdout)
    assert one["image_id"] == "a.png"
    assert [organ["organ"] for organ in one["organs"]] == ["right_lung", "left_lung", "heart"]
    many = json.loads(predict("films", "--out", "many", "--json").stdout)
    assert (many["rows"], many["predicted"], many["skipped"], many["rejected"]) == (2, 2, 0, [])
    assert list(many["image_score_quantiles_px"]) == ["5 %", "25 %", "50 %", "75 %", "95 %"]


def test_a_second_call_adds_and_skips(here):
    write_film(here / "films/b.png")
    assert predict("films").exit_code == 0
    before = rows_in("cxu-data/predictions")
    write_film(here / "films/a.png", 1)
    done = predict("films")
    assert done.exit_code == 0
    assert "1 image already predicted" in done.stderr
    rows = rows_in("cxu-data/predictions")
    assert [row["image_id"] for row in rows] == ["b.png", "a.png"]
    assert rows[0] == before[0]
    content = Path("cxu-data/predictions/predictions.parquet").read_bytes()
    assert predict("films").exit_code == 0
    assert Path("cxu-data/predictions/predictions.parquet").read_bytes() == content


def test_other_options_are_a_usage_error_until_overwrite(here):
    write_film(here / "a.png")
    assert predict("a.png").exit_code == 0
    refused = predict("a.png", "--seed", 3)
    assert refused.exit_code == 2
    assert "holds predictions made otherwise (seed was 0, now 3)" in refused.stderr
    assert predict("a.png", "--seed", 3, "--overwrite").exit_code == 0
    assert [row["seed"] for row in rows_in("cxu-data/predictions")] == [3]


def test_another_file_of_the_same_name_is_listed(here):
    write_film(here / "x/a.png")
    write_film(here / "y/a.png", 1)
    assert predict("x").exit_code == 0
    done = predict("y")
    assert done.exit_code == 3
    assert "holds a prediction of another file as 'a.png' of local" in done.stderr
    assert len(rows_in("cxu-data/predictions")) == 1


BAD = {
    "empty.png": b"",
    "text.png": b"no image at all",
    "torn.png": None,
    "photo.jpg": None,
    "line.png": None,
}


def write_bad(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in BAD.items():
        (folder / name).write_bytes(content or b"")
    torn = write_film(folder / "torn.png").read_bytes()
    (folder / "torn.png").write_bytes(torn[: len(torn) // 2])
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (80, 80, 3), np.uint8)).save(folder / "photo.jpg")
    Image.fromarray(rng.integers(0, 255, (1, 500), np.uint8)).save(folder / "line.png")
    (folder / "folder.png").mkdir()
    (folder / "notes.txt").write_text("hello")


def test_bad_files_are_listed_and_stop_nothing(here):
    write_bad(here / "films")
    write_film(here / "films/good.png")
    done = predict("films", "--csv", "--overlay", "--masks")
    assert done.exit_code == 3
    assert [row["image_id"] for row in rows_in("cxu-data/predictions")] == ["good.png"]
    assert "5 files without a row:" in done.stderr
    for said in (
        "empty.png is empty (0 bytes)",
        "text.png is no PNG, JPEG, TIFF or DICOM file",
        "torn.png is damaged or truncated",
        "photo.jpg is a colour image",
        "line.png is too small: 500 × 1 px",
    ):
        assert said in done.stderr, said
    assert "1 file beside them, no image by name: notes.txt" in done.stderr
    (manifest,) = Path("cxu-data/runs").glob("*-predict.json")
    record = json.loads(manifest.read_text())
    assert {Path(file).name for file, _ in record["failed"]} == BAD.keys()
    assert record["device"] == "cpu"


@pytest.mark.parametrize("weights", ["tiny.safetensors", "bundled"])
def test_an_image_of_one_grey_is_a_row_that_is_rejected(here, weights):
    for name, value in (("black.png", 0), ("white.png", 255)):
        Image.fromarray(np.full((80, 120), value, np.uint8)).save(here / name)
    done = predict("black.png", "white.png", "--csv", "--overlay", "--masks", "--weights", weights)
    assert done.exit_code == 0, done.stderr
    for row in rows_in("cxu-data/predictions"):
        assert row["quality"] == "reject"
        assert row["quality_reason"] == "every pixel has the same value: there is nothing to be seen"
        assert np.isfinite(row["landmarks_xy"]).all()


def test_nothing_but_a_bad_file(here):
    (here / "a.png").write_bytes(b"x")
    done = predict("a.png", "--csv", "--overlay", "--masks")
    assert done.exit_code == 3
    assert "0 images with landmarks, 1 without" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.png"], "does not exist"),
        (["empty"], "no image in empty"),
        (["a.png", "--device", "cuda:9"], "--device cuda:9"),
        (["a.png", "--batch-size", "many"], "--batch-size many: expected auto, or a number from 1"),
        (["a.png", "--source", "padchets"], "did you mean 'padchest'"),
    ],
)
def test_usage_errors(here, arguments, said):
    write_film(here / "a.png")
    (here / "empty").mkdir()
    done = predict(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not (here / "cxu-data").exists()


def test_weights_that_are_none(here):
    write_film(here / "a.png")
    (here / "torn.safetensors").write_bytes(Path("tiny.safetensors").read_bytes()[:3000])
    for weights, code, said in (
        ("nowhere.safetensors", 2, "no such file or folder"),
        ("torn.safetensors", 1, "truncated, damaged"),
        ("a.png", 1, "expected a file ending in"),
    ):
        done = cxu("predict", "a.png", "--weights", weights)
        assert (done.exit_code, said in done.stderr) == (code, True), done.stderr


def test_the_bundled_weights_need_no_network(here, monkeypatch):
    write_film(here / "image.png", size=256)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = cxu("predict", "image.png")
    assert done.exit_code == 0, done.stderr
    (row,) = rows_in("cxu-data/predictions")
    assert row["model_id"] == hashlib.sha256(bundled_path().read_bytes()).hexdigest()
    assert (row["n_samples"], row["repo"]) == (50, None)
    # a drawn chest is found where it was drawn, to a tenth of its side
    landmarks = np.reshape(row["landmarks_xy"], (120, 2))
    drawn = sample_shapes(load_shape_model(), 1, np.random.default_rng(0))[0] / 4
    assert np.linalg.norm(landmarks - drawn, axis=1).mean() < 25.6


def test_a_bundled_variant_is_taken_by_name(here):
    write_film(here / "image.png", size=256)
    variant = bundled_variants()[-1]
    done = cxu("predict", "image.png", "--weights", f"bundled:{variant}", "--samples", 2)
    assert done.exit_code == 0, done.stderr
    (row,) = rows_in("cxu-data/predictions")
    assert row["model_id"] == hashlib.sha256(bundled_path(variant).read_bytes()).hexdigest()
    assert f"weights bundled:{variant} (" in done.stderr
    unknown = cxu("predict", "image.png", "--weights", "bundled:foo")
    assert unknown.exit_code == 2
    assert f"expected one of: bundled:{bundled_variants()[0]}" in unknown.stderr


def test_bundled_weights_that_are_missing(here, monkeypatch):
    write_film(here / "a.png")
    monkeypatch.setattr("cxu.model.weights.package_files", lambda name: here)
    done = cxu("predict", "a.png")
    assert done.exit_code == 2
    assert "the weights of cxu are missing from this installation" in done.stderr


def test_csv_is_read_by_import(here):
    write_film(here / "films/a.png", shape_hw=(100, 80))
    write_film(here / "films/b.png", 1)
    assert predict("films", "--csv", "--source", "hospital").exit_code == 0
    path = Path("cxu-data/predictions/predictions.csv")
    with path.open(newline="") as stream:
        assert [row["image_id"] for row in csv.DictReader(stream)] == ["a", "b"]
    imported = cxu("import", path, "--source", "hospital", "--frame", "image", "--home", "other")
    assert imported.exit_code == 0, imported.stderr
    back = store.Home("other").open("hospital").read()
    rows = pq.read_table("cxu-data/predictions/predictions.parquet")
    np.testing.assert_allclose(table.landmarks_of(back), table.landmarks_of(rows), atol=0.006)
    np.testing.assert_allclose(table.sigmas_of(back), table.sigmas_of(rows), atol=0.006)


def test_two_sources_in_one_folder_give_a_csv_each(here):
    write_film(here / "a.png")
    write_film(here / "b.png", 1)
    assert predict("a.png", "--source", "here").exit_code == 0
    done = predict("b.png", "--source", "there", "--csv")
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in Path("cxu-data/predictions").glob("*.csv")) == [
        "predictions-here.csv",
        "predictions-there.csv",
    ]


def test_pictures_and_masks_at_the_images_own_size(here):
    write_film(here / "films/a.png", shape_hw=(100, 80))
    write_film(here / "films/b.png", 1, size=90)
    assert predict("films", "--overlay", "--masks").exit_code == 0
    out = Path("cxu-data/predictions")
    pictures = {path.name: path.read_bytes() for path in sorted((out / "overlays/local").iterdir())}
    assert pictures.keys() == {"a.png", "b.png"}
    assert Image.open(out / "overlays/local/a.png").mode == "RGB"
    assert Image.open(out / "masks/local/a.png").size == (80, 100)
    assert Image.open(out / "masks/local/b.png").size == (90, 90)
    (out / "overlays/local/a.png").unlink()
    write_film(here / "films/c.png", 2)
    again = predict("films", "--overlay", "--masks")
    assert again.exit_code == 0, again.stderr
    assert (out / "overlays/local/a.png").read_bytes() == pictures["a.png"]
    assert sorted(path.name for path in (out / "masks/local").iterdir()) == ["a.png", "b.png", "c.png"]


def test_masks_of_one_path_are_refused_before_the_work(here):
    write_film(here / "films/a.png")
    Image.fromarray(film_pixels(1)).save(here / "films/a.jpg")
    done = predict("films", "--masks")
    assert done.exit_code == 2
    assert "the pictures or masks of a.jpg and a.png would be one file" in done.stderr
    assert not (here / "cxu-data/predictions/predictions.parquet").exists()
    assert predict("films").exit_code == 0


def test_masks_that_were_drawn_otherwise_are_not_replaced(here):
    write_film(here / "films/a.png")
    assert predict("films").exit_code == 0
    drawn = cxu("rasterize", "predictions", "--out", "cxu-data/predictions/masks", "--size", 32)
    assert drawn.exit_code == 0
    done = predict("films", "--masks")
    assert done.exit_code == 2
    assert "holds the masks of another command" in done.stderr
    assert Image.open("cxu-data/predictions/masks/local/a.png").size == (32, 32)


def test_own_results_below_the_folder_are_no_films(here):
    write_film(here / "films/a.png")
    for _ in range(2):
        done = predict("films", "--out", "films/out", "--overlay", "--masks")
        assert done.exit_code == 0, done.stderr
    assert [row["image_id"] for row in rows_in("films/out")] == ["a.png"]


def test_samples_are_kept(here):
    write_film(here / "a.png")
    assert predict("a.png", "--keep-samples").exit_code == 0
    (row,) = rows_in("cxu-data/predictions")
    assert len(row["samples_xy"]) == 5 * 240
    drawn = cxu("rasterize", "predictions", "--policy", "probability", "--format", "npz", "--out", "p")
    assert drawn.exit_code == 0, drawn.stderr


def test_one_sample_warns(here):
    write_film(here / "a.png")
    done = cxu("predict", "a.png", "--weights", "tiny.safetensors", "--samples", 1)
    assert done.exit_code == 0
    assert "with one sample there is no standard deviation" in done.stderr
    assert "image score" not in done.stdout
    filtered = cxu("filter", "predictions", "--max-std", 5)
    assert filtered.exit_code == 2


def test_a_negative_is_told(here):
    (here / "films").mkdir()
    Image.fromarray(255 - film_pixels()).save(here / "films/n.png")
    write_film(here / "films/p.png")
    done = predict("films")
    assert done.exit_code == 0
    assert "1 negative turned into a positive:" in done.stderr
    rows = {row["image_id"]: row for row in rows_in("cxu-data/predictions")}
    assert rows["n.png"]["landmarks_xy"] == rows["p.png"]["landmarks_xy"]


def test_everything_downstream_takes_predictions(here):
    for seed in range(3):
        write_film(here / f"films/{seed}.png", seed, size=100)
    assert predict("films").exit_code == 0
    for arguments in (
        ("info", "predictions"),
        ("ls",),
        ("filter", "predictions", "--max-std", "p80"),
        ("rasterize", "--out", "m", "--images", "films"),
        ("rasterize", "predictions", "--out", "band", "--policy", "ignore"),
    ):
        done = cxu(*arguments)
        assert done.exit_code == 0, (arguments, done.stderr)
    assert Image.open("m/local/0.png").size == (100, 100)


def test_weights_from_the_hub(here, monkeypatch):
    import torch

    write_film(here / "a.png")
    state = {f"model.{name}": tensor.contiguous() for name, tensor in tiny_model().state_dict().items()}
    torch.save(state, here / "pytorch_model.bin")
    with HubServer() as server:
        for name, value in server.environment(here / "hf").items():
            monkeypatch.setenv(name, value)
        content = {"v1_skip/pytorch_model.bin": (here / "pytorch_model.bin").read_bytes()}
        server.add("ann/CheXmask-U", content, repo_type="model")
        done = cxu("predict", "a.png", "--weights", "ann/CheXmask-U:v1_skip", "--samples", 3)
        assert done.exit_code == 0, done.stderr
        assert done.stderr.startswith("downloading the weights ann/CheXmask-U:v1_skip\n")
        again = cxu("info", "--model", "ann/CheXmask-U:v1_skip")
        assert (again.exit_code, again.stderr) == (0, "")
        (row,) = rows_in("cxu-data/predictions")
        assert row["repo"] == "ann/CheXmask-U"
        assert len(row["revision"]) == 40
        assert row["model_id"] == hashlib.sha256(content["v1_skip/pytorch_model.bin"]).hexdigest()
        missing = cxu("predict", "a.png", "--weights", "ann/CheXmask-U:v2", "--samples", 3)
        assert missing.exit_code == 1
        assert "v1_skip" in missing.stderr


def start(*arguments):
    command = [sys.executable, "-m", "cxu", "predict", *arguments, "--weights", "tiny.safetensors", "--device", "cpu"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_an_interrupted_run_continues(here, number, monkeypatch):
    (here / "sitecustomize.py").write_text("import cxu.predict_crew as crew\ncrew._PART_ROWS = 1\n")
    monkeypatch.setenv("PYTHONPATH", str(here))
    for seed in range(16):
        write_film(here / f"films/{seed:02d}.png", seed)
    running = start("films", "--out", "out", "--samples", "200")
    try:
        end = time.monotonic() + 60
        while not list(Path("out/.cxu").glob("part-*.parquet")):
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < end
            time.sleep(0.005)
        os.killpg(running.pid, number)
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert "the same command continues" in err or number == signal.SIGKILL
    assert not Path("out/predictions.parquet").exists()
    monkeypatch.delenv("PYTHONPATH")
    again = cxu("predict", "films", "--out", "out", "--samples", 200, "--weights", "tiny.safetensors")
    assert again.exit_code == 0, again.stderr
    assert "already predicted" in again.stderr
    whole = cxu("predict", "films", "--out", "whole", "--samples", 200, "--weights", "tiny.safetensors")
    assert whole.exit_code == 0
    assert Path("out/predictions.parquet").read_bytes() == Path("whole/predictions.parquet").read_bytes()
    assert not list(Path("out").rglob(".cxu-tmp-*"))


@pytest.mark.shared
def test_every_demo_film_runs_through(here, shared_data):
    shutil.copytree(shared_data / "demo", here / "demo")
    done = predict("demo", "--overlay", "--masks", "--csv")
    assert done.exit_code == 0, done.stderr
    rows = {row["image_id"]: row for row in rows_in("cxu-data/predictions")}
    assert len(rows) == 9
    for name, row in rows.items():
        if name.endswith(".png"):
            assert (row["width"], row["height"]) == Image.open(here / "demo" / name).size
    one, two = rows["rsna_monochrome1.dcm"], rows["rsna_monochrome2.dcm"]
    assert one["landmarks_xy"] == two["landmarks_xy"]
    assert one["view"] == "PA"
    assert one["spacing_mm_xy"] == pytest.approx([0.168, 0.168])
    assert "rsna_monochrome1.dcm" in done.stderr


@pytest.mark.slow
def test_two_runs_into_one_folder_wait_for_each_other(here):
    for seed in range(6):
        write_film(here / f"films/{seed}.png", seed)
    runs = [start("films", "--out", "out", "--samples", "5", "--csv", "--overlay", "--masks") for _ in range(2)]
    for running in runs:
        out, err = running.communicate(timeout=120)
        assert running.returncode == 0, err
        assert "table: out/predictions.parquet (6 rows)" in out
    assert len(rows_in("out")) == 6


def test_what_is_out_of_date_is_said_and_overwrite_removes_it(here):
    write_film(here / "films/a.png")
    assert predict("films", "--csv", "--masks").exit_code == 0
    write_film(here / "films/b.png", 1)
    done = predict("films")
    assert "predictions.csv is out of date" in done.stderr
    assert "masks is out of date" in done.stderr
    assert "out of date" not in predict("films", "--csv", "--masks").stderr
    assert predict("films", "--seed", 2, "--overwrite").exit_code == 0
    out = Path("cxu-data/predictions")
    assert not list(out.glob("*.csv"))
    assert not list(out.glob("masks/**/*.png"))


def test_a_failure_beside_the_table_is_told_with_the_rest(here, monkeypatch):
    write_film(here / "films/a.png")
    (here / "films/bad.png").write_bytes(b"x")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cxu.csv_writer.write_published", fail)
    done = predict("films", "--csv")
    assert done.exit_code == 3
    assert "No space left on device" in done.stderr
    assert "bad.png is no PNG" in done.stderr
    assert "table: cxu-data/predictions/predictions.parquet (1 row)" in done.stdout


def test_names_that_are_not_utf8(here):
    name = os.fsdecode(b"bad\xff.png")
    try:
        write_film(here / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    done = predict(name)
    assert done.exit_code == 0, done.stderr
    assert [row["image_id"] for row in rows_in("cxu-data/predictions")] == ["bad\\xff.png"]


def test_a_bad_archive_and_lines_without_a_file_exit_3(here):
    write_film(here / "films/a.png")
    (here / "films/bad.zip").write_bytes(b"PK")
    done = predict("films")
    assert (done.exit_code, "bad.zip is no readable zip" in done.stderr) == (3, True)
    (here / "list.txt").write_text("films/a.png\nfilms/gone.png\n")
    done = predict("list.txt", "--out", "other")
    assert (done.exit_code, "gone.png does not exist" in done.stderr) == (3, True)
