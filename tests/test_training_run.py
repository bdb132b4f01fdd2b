"""A whole run on a tiny folder: what it leaves, that it continues exactly, and what it never looks at."""

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cxu.errors import CxuError, FormatError, OutputExistsError, UsageError
from cxu.model.weights import load_weights
from cxu.training import TrainOptions, loop, train
from cxu.training.checkpoint import CHECKPOINT_NAME
from cxu.training.options import parse_augmentation
from training_helpers import ROWS, make_folder, write_index

RESULT = "weights.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    make_folder(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Sums depend on the number of threads, and tests share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes a second further each time the loop looks at it."""
    ticks = itertools.count()
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: float(next(ticks))))


def options(**changes):
    tiny = {"steps": 6, "size": 64, "latents": 8, "batch_size": 2, "validations": 3, "samples": 3, "device": "cpu"}
    return TrainOptions(**{**tiny, **changes})


class Stop(Exception):
    pass


def stop_at(step):
    def tell(progress):
        if progress.step == step:
            raise Stop

    return tell


def train_but_stop(data, out, recipe, step):
    """Train, save after every step, and stop after one as if the process had died."""
    with pytest.raises(Stop):
        train(data, out, recipe, progress=stop_at(step))


def tensors(out):
    return load_file(out / RESULT)


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def lines(out):
    with (out / "metrics.csv").open(newline="") as stream:
        return [{**line, "seconds": None} for line in csv.DictReader(stream)]


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """An uninterrupted run, and its report."""
    out = tmp_path_factory.mktemp("whole")
    return out, train(folder, out, options())


# --- what a run leaves -----------------------------------------------------------------------------------------------


def test_weights_load_as_any_other(whole):
    out, report = whole
    weights = load_weights(report.weights)
    assert report.weights == out / RESULT
    assert weights.model.config.size == 64
    assert torch.isfinite(weights.model(torch.rand(1, 1, 64, 64)).points).all()


def test_weights_carry_their_record(whole):
    out, report = whole
    with safe_open(out / RESULT, framework="pt") as file:
        metadata = file.metadata()
    record = json.loads((out / "training.json").read_text())
    assert json.loads(metadata["recipe"]) == options().recipe() == record["recipe"]
    assert json.loads(metadata["scores"]) == record["scores"]
    assert record["steps"] == report.steps == 6
    assert record["data"]["images"]["Shenzhen"] == {"train": 3, "val": 1, "test": 1}
    assert record["scores"]["validation"]["JSRT"]["images"] == 1
    assert record["scores"]["validation"]["Shenzhen"]["dice_heart"] is None
    assert "test" not in record["scores"]


def test_the_table_has_a_line_for_each_validation(whole):
    out, _ = whole
    found = lines(out)
    assert [line["step"] for line in found] == ["2", "4", "6"]
    assert all(float(line["loss_points"]) > 0 and float(line["val_mse_px2_JSRT"]) > 0 for line in found)
    assert found[0]["val_dice_heart_Shenzhen"] == ""
    assert (out / "metrics.png").stat().st_size > 10_000


def test_every_image_is_accounted_for(whole):
    out, _ = whole
    with (out / "splits.csv").open(newline="") as stream:
        written = {line["name"]: line["split"] for line in csv.DictReader(stream)}
    expected = {name: split for name, (_, split, _) in ROWS.items()}
    assert written == {**expected, "digital05": "left out"}


def test_training_learns(folder, tmp_path):
    report = train(folder, tmp_path, options(steps=100, validations=2, ema=0.0, augment=parse_augmentation(["off"])))
    first, last = lines(tmp_path)
    assert float(last["loss_points"]) < 0.3 * float(first["loss_points"])
    assert report.validation["all"].mse_px2 < 0.3 * float(first["val_mse_px2"])


@pytest.mark.parametrize(
    "changes",
    [
        {"variant": "no-skip"},
        {"precision": "float32", "schedule": "step"},
        {"train_samples": 3, "energy": 0.1},
        {"ema": 0.0, "mse_on": "samples", "train_samples": 2},
        {"shares": {"JSRT": 0.2}},
        {"seed": 1},
    ],
)
def test_recipes_differ_in_their_result(folder, tmp_path, whole, changes):
    train(folder, tmp_path, options(steps=2, validations=1, **changes))
    ours, others = tensors(tmp_path), tensors(whole[0])
    assert any(name not in ours or not torch.equal(ours[name], others[name]) for name in others)
    assert all(torch.isfinite(tensor).all() for tensor in ours.values())


def test_a_run_starts_from_weights_of_another_size(folder, tmp_path, whole):
    report = train(folder, tmp_path, options(steps=1, validations=1, size=96, start=str(whole[1].weights), lr=1e-9))
    start, ours = tensors(whole[0]), tensors(tmp_path)
    assert load_weights(report.weights).model.config.size == 96
    torch.testing.assert_close(ours["dec_lin.weight"], start["dec_lin.weight"], atol=1e-6, rtol=0)


def test_a_budget_is_kept(folder, tmp_path, clock):
    told = []
    report = train(folder, tmp_path, options(steps=None, budget_minutes=1), progress=told.append)
    assert 60 <= report.seconds < 70
    assert told[-1].fraction == 1
    assert [one.fraction for one in told] == sorted(one.fraction for one in told)
    assert report.steps == told[-1].step == len(told)
    assert 5 < report.steps < 30


def test_a_resumed_budget_counts_what_was_spent(folder, tmp_path, clock):
    recipe = options(steps=None, budget_minutes=1, checkpoint_minutes=0.0)
    train_but_stop(folder, tmp_path, recipe, 5)
    state = torch.load(tmp_path / CHECKPOINT_NAME, weights_only=True)["state"]
    told = []
    train(folder, tmp_path, recipe, progress=told.append)
    assert told[0].step == 5
    assert 10 < state["seconds"] < told[0].seconds < state["seconds"] + 15


# --- what it never looks at ------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """Names of the images that are read."""
    names, load = [], loop.load_images

    def remember(root, wanted, size):
        names.extend(wanted)
        return load(root, wanted, size)

    monkeypatch.setattr(loop, "load_images", remember)
    return names


def test_test_images_are_not_opened(folder, tmp_path, opened):
    report = train(folder, tmp_path, options(steps=1))
    assert sorted(opened) == sorted(
        name for name, (_, split, _) in ROWS.items() if split != "test" and name != "digital05"
    )
    assert report.test is None


def test_test_images_are_measured_at_the_end_where_asked(folder, tmp_path, opened, whole):
    report = train(folder, tmp_path, options(report_test=True))
    assert opened[-2:] == ["film04", "digital06"]
    assert report.test["all"].images == 2
    assert json.loads((tmp_path / "training.json").read_text())["scores"]["test"]["JSRT"]["images"] == 1
    assert_same(tensors(tmp_path), tensors(whole[0]))


# --- it continues ----------------------------------------------------------------------------------------------------


def test_the_same_run_again_gives_the_same_weights(folder, tmp_path, whole):
    train(folder, tmp_path, options())
    assert_same(tensors(tmp_path), tensors(whole[0]))


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_continued_run_equals_an_uninterrupted_one(folder, tmp_path, whole, step):
    recipe = options(checkpoint_minutes=0.0)
    train_but_stop(folder, tmp_path, recipe, step)
    assert not (tmp_path / RESULT).exists()
    report = train(folder, tmp_path, recipe)
    # the step that stopped was not saved
    assert report.resumed_at == step - 1
    assert_same(tensors(tmp_path), tensors(whole[0]))
    assert lines(tmp_path) == lines(whole[0])


@pytest.mark.slow
def test_a_finished_run_stays_as_it_is(folder, tmp_path):
    first = train(folder, tmp_path, options())
    before = tensors(tmp_path)
    told = []
    again = train(folder, tmp_path, options(), progress=told.append)
    assert told == []
    assert again.resumed_at == again.steps == first.steps
    assert again.validation["JSRT"] == first.validation["JSRT"]
    assert_same(tensors(tmp_path), before)


COMMAND = "--size 64 --latents 8 --batch-size 2 --validations 3 --samples 3 --device cpu --checkpoint-minutes 0 --steps"


def start_command(folder, out, *more, steps="6"):
    arguments = [sys.executable, "-m", "cxu", "train", str(folder), "--out", str(out), *COMMAND.split(), steps, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(running, out):
    deadline = time.monotonic() + 120
    while not (out / CHECKPOINT_NAME).is_file():
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")
def test_a_killed_run_continues_to_the_same_weights(folder, tmp_path, whole):
    out = tmp_path / "out"
    running = start_command(folder, out)
    wait_for_checkpoint(running, out)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    again = start_command(folder, out)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert_same(tensors(out), tensors(whole[0]))


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is another thing there")
def test_ctrl_c_saves_the_state_and_exits_130(folder, tmp_path):
    out = tmp_path / "out"
    running = start_command(folder, out, steps="100000")
    wait_for_checkpoint(running, out)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130
    assert err.splitlines()[-1] == "cxu: interrupted. What is finished is kept: the same command continues."
    assert torch.load(out / CHECKPOINT_NAME, weights_only=True)["state"]["step"] >= 1
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_ctrl_c_keeps_the_step_that_was_being_made(folder, tmp_path, whole):
    def interrupt(progress):
        if progress.step == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path, options(), progress=interrupt)
    report = train(folder, tmp_path, options())
    assert report.resumed_at == 4
    assert_same(tensors(tmp_path), tensors(whole[0]))


def test_a_run_may_be_in_another_thread(folder, tmp_path, whole):
    before = torch.get_num_threads()
    worker = threading.Thread(target=train, args=(folder, tmp_path, options()))
    worker.start()
    worker.join()
    assert torch.get_num_threads() == before
    assert (tmp_path / RESULT).is_file()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "named"), [({"lr": 2e-3}, "lr"), ({"steps": 7}, "steps"), ({"seed": 1}, "seed")])
def test_another_run_in_the_folder_is_refused(folder, tmp_path, whole, changes, named):
    before = {path.name: path.read_bytes() for path in whole[0].iterdir()}
    with pytest.raises(OutputExistsError, match=f"its {named} is"):
        train(folder, whole[0], options(**changes))
    assert {path.name: path.read_bytes() for path in whole[0].iterdir()} == before


def test_other_data_in_the_folder_is_refused(tmp_path, whole):
    landmarks_xy = make_folder(tmp_path)
    np.savez(tmp_path / "landmarks.npz", name=np.array(list(ROWS)), landmarks_xy=landmarks_xy + 1)
    with pytest.raises(OutputExistsError, match="its data is"):
        train(tmp_path, whole[0], options())


def test_a_damaged_checkpoint_is_named(folder, tmp_path):
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"damaged")
    with pytest.raises(FormatError, match=r"checkpoint\.pt is damaged, .*; remove it to begin anew"):
        train(folder, tmp_path, options())


def test_a_folder_without_training_rows_is_refused(tmp_path):
    make_folder(tmp_path)
    write_index(tmp_path, {name: (dataset, "val", "") for name, (dataset, *_) in ROWS.items()})
    with pytest.raises(UsageError, match="no row of the split 'train'"):
        train(tmp_path, tmp_path / "out", options())


def test_without_validation_rows_there_are_no_scores(tmp_path):
    make_folder(tmp_path)
    write_index(tmp_path, {name: (dataset, "train", "") for name, (dataset, *_) in ROWS.items()})
    report = train(tmp_path, tmp_path / "out", options(steps=1))
    assert report.validation == {}
    assert "val_mse_px2" not in lines(tmp_path / "out")[0]


@pytest.mark.parametrize("steps", [1, 6])
def test_a_loss_that_is_no_number_stops_the_run(folder, tmp_path, steps):
    with pytest.raises(CxuError, match="loss or weights are no finite numbers"):
        train(folder, tmp_path, options(lr=3e37, weight_decay=11.0, warmup=0.0, clip=1e30, steps=steps))
    assert not (tmp_path / RESULT).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_device_that_is_not_there_is_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="no CUDA device is there"):
        train(folder, tmp_path, options(device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_cuda(folder, tmp_path):
    report = train(folder, tmp_path, options(device="cuda", train_samples=2, energy=0.1))
    assert report.steps == 6


# --- the further parts -----------------------------------------------------------------------------------------------

PARTS = {"refine": True, "across": 1.0, "spread": True}


@pytest.mark.slow
def test_a_run_with_every_further_part_continues_bit_for_bit(folder, tmp_path):
    recipe = options(**PARTS)
    train(folder, tmp_path / "whole", recipe)
    train_but_stop(folder, tmp_path / "stopped", options(**PARTS, checkpoint_minutes=0), 3)
    assert train(folder, tmp_path / "stopped", recipe).resumed_at > 0
    assert_same(tensors(tmp_path / "stopped"), tensors(tmp_path / "whole"))
    assert load_weights(tmp_path / "whole" / RESULT).model.config.spread


@pytest.mark.slow
def test_the_spread_only_looks_on(folder, tmp_path):
    train(folder, tmp_path / "without", options(refine=True))
    train(folder, tmp_path / "with", options(refine=True, spread=True))
    without, having = tensors(tmp_path / "without"), tensors(tmp_path / "with")
    # numbers are drawn anew for further layers, which come last: those before them begin alike
    assert set(having) - set(without) == {name for name in having if name.startswith("spread.")}
    assert_same({name: having[name] for name in without}, without)
    new = load_weights(tmp_path / "with" / RESULT).model.spread
    assert new.exit.weight.abs().max() > 0


def test_a_run_of_an_older_version_is_named_as_such(folder, tmp_path, whole):
    out, _ = whole
    content = torch.load(out / CHECKPOINT_NAME, weights_only=True)
    del content["identity"]["refine"]
    torch.save(content, tmp_path / CHECKPOINT_NAME)
    with pytest.raises(OutputExistsError, match="begun by an older cxu, which knew no refine"):
        train(folder, tmp_path, options())
