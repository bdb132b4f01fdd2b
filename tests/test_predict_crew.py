"""Who predicts makes no difference: one process or several, also where one is killed."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cxu import predict_crew
from cxu.cli import app
from cxu.engine import Worker
from cxu.errors import FormatError, MissingInputError, UsageError
from cxu.model.device import find_devices
from cxu.model.weight_source import load
from cxu.predict import PredictOptions
from cxu.predict_crew import Crew
from cxu.predict_folder import PredictFolder
from cxu.predict_plan import plan_images
from cxu.predict_run import predict_into, record_of
from cxu.sharing import Share
from predict_helpers import write_film, write_weights

N_FILMS = 9
OPTIONS = PredictOptions(n_samples=20)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    # sums are rounded otherwise with more threads; and tests run side by side
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crew")
    for seed in range(N_FILMS):
        write_film(folder / f"films/{seed}.png", seed)
    (folder / "films/4b.png").write_bytes(b"no film")
    write_weights(folder / "tiny.safetensors")
    return folder


@pytest.fixture(scope="module")
def crew(films):
    return Crew(load(str(films / "tiny.safetensors")), OPTIONS)


@pytest.fixture
def plan(films):
    return plan_images([films / "films"])


@pytest.fixture(scope="module")
def whole(films, crew):
    """The table that one process makes."""
    return predict_into(films / "whole", plan_images([films / "films"]), crew).path.read_bytes()


def claimed(out, crew):
    folder = PredictFolder(out)
    folder.claim(record_of(crew.weights, crew.options), overwrite=False)
    return folder


# --- processes -------------------------------------------------------------------------------------------------------


def test_several_processes_find_what_one_does(tmp_path, films, crew, plan, whole):
    progress = []
    report = predict_into(tmp_path / "out", plan, replace(crew, workers=2), progress=lambda verb, total: Bar(progress))
    assert report.path.read_bytes() == whole
    assert (report.predicted, report.rows, len(report.keys)) == (N_FILMS, N_FILMS, N_FILMS)
    assert [Path(one.file).name for one in report.rejected] == ["4b.png"]
    assert sum(progress) == N_FILMS + 1
    assert report.batch_size == 1
    assert not list((tmp_path / "out/.cxu").glob("part-*"))


class Bar:
    def __init__(self, seen):
        self.seen = seen

    def __enter__(self):
        return self.seen.append

    def __exit__(self, *_):
        pass


@pytest.mark.slow
def test_the_command_takes_workers(films, tmp_path, monkeypatch, whole):
    monkeypatch.chdir(films)
    arguments = ["predict", "films", "--weights", "tiny.safetensors", "--samples", "20", "--device", "cpu"]
    ended = CliRunner().invoke(app, [*arguments, "--workers", "2", "--out", str(tmp_path / "out")])
    assert ended.exit_code == 3, ended.stderr
    assert "2 processes on cpu, float32" in ended.stderr
    assert (tmp_path / "out/predictions.parquet").read_bytes() == whole
    (manifest,) = sorted(Path("cxu-data/runs").glob("*-predict.json"))
    told = json.loads(manifest.read_text())
    assert (told["workers"], told["shard"], told["scheduler"], told["device"]) == (2, None, None, "cpu")
    assert "workers" not in (tmp_path / "out/cxu.json").read_text()


def test_the_bundled_network_says_the_same_in_parts_of_any_size(films, tmp_path, monkeypatch):
    plan = plan_images([films / "films"])
    crew = Crew(load("bundled"), OPTIONS)
    one = predict_into(tmp_path / "one", plan, crew).path.read_bytes()
    monkeypatch.setattr(predict_crew, "_PART_ROWS", 1)
    assert predict_into(tmp_path / "single", plan, crew).path.read_bytes() == one


@pytest.mark.slow
def test_the_bundled_network_says_the_same_in_several_processes(films, tmp_path):
    plan = plan_images([films / "films"])
    crew = Crew(load("bundled"), OPTIONS)
    one = predict_into(tmp_path / "one", plan, crew).path.read_bytes()
    assert predict_into(tmp_path / "two", plan, replace(crew, workers=2)).path.read_bytes() == one


@pytest.mark.slow
def test_a_killed_worker_is_an_error_and_the_same_call_goes_on(tmp_path, films, monkeypatch, whole):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'spawn_main' in ' '.join(sys.orig_argv):\n"
        "    import cxu.predict_crew as crew\n"
        "    predict = crew.predict_parts\n"
        "    def once(images, *others, **named):\n"
        "        if 6 in images and not os.path.exists(os.environ['KILLED']):\n"
        "            open(os.environ['KILLED'], 'w').close()\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return predict(images, *others, **named)\n"
        "    crew.predict_parts = once\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("KILLED", str(tmp_path / "killed"))
    monkeypatch.chdir(films)
    arguments = ["predict", "films", "--weights", "tiny.safetensors", "--samples", "20", "--device", "cpu"]
    arguments += ["--workers", "2", "--out", str(tmp_path / "out")]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 1
    assert "a worker process ended unexpectedly, most often because memory ran out." in ended.stderr
    assert "run the same command again to continue, with fewer --workers" in ended.stderr.lower()
    assert not (tmp_path / "out/predictions.parquet").exists()
    assert list((tmp_path / "out/.cxu").glob("part-*"))
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 3
    assert "already predicted" in again.stderr
    assert (tmp_path / "out/predictions.parquet").read_bytes() == whole


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_ctrl_c_ends_all_and_keeps_what_is_finished(tmp_path, films, crew, monkeypatch, whole):
    folder = tmp_path / "out/.cxu"

    def interrupt():
        end = time.monotonic() + 60
        while not list(folder.glob("part-*")) and time.monotonic() < end:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    plan = plan_images([films / "films"])
    with pytest.raises(KeyboardInterrupt):
        predict_into(tmp_path / "out", plan, replace(crew, workers=2))
    assert not list((tmp_path / "out").rglob(".cxu-tmp-*"))
    assert list(folder.glob("part-*"))
    report = predict_into(tmp_path / "out", plan, replace(crew, workers=2))
    assert report.skipped > 0
    assert report.path.read_bytes() == whole


@pytest.mark.slow
def test_shares_and_workers_go_together(tmp_path, crew, plan, whole):
    for number in (2, 1):
        report = predict_into(tmp_path / "out", plan, replace(crew, workers=2), share=Share(number, 2))
    assert report.is_whole
    assert report.path.read_bytes() == whole


# --- a chunk ---------------------------------------------------------------------------------------------------------


def test_chunks_hold_every_image_once_and_in_order(tmp_path, crew, plan):
    images, folder = plan.of_share(None), PredictFolder(tmp_path / "out")
    for workers in (2, 3, 50):
        chunks = list(replace(crew, workers=workers)._chunks(images, folder))
        assert [at for chunk in chunks for at in chunk.images] == list(images)
        assert len(chunks) >= min(workers, len(images))
        assert len({chunk.group for chunk in chunks}) == len(chunks)
    assert {chunk.is_remote for chunk in chunks} == {False}
    assert Path(chunks[0].network.spec).is_absolute()


def test_of_a_chunk_only_what_another_worker_has_not_done_is_predicted(tmp_path, crew, plan, monkeypatch):
    folder = claimed(tmp_path / "out", crew)
    (chunk, *_) = replace(crew, workers=2, scheduler="tcp://x")._chunks(plan.of_share(None), folder)
    chunk = replace(chunk, images=plan.of_share(None))
    done = replace(chunk, images={at: chunk.images[at] for at in (0, 1, 6)})
    monkeypatch.setattr(predict_crew._Chunk, "group", "g")
    assert predict_crew._predict_chunk(done).predicted == [0, 1, 6]
    asked, predict = [], predict_crew.predict_parts

    def predict_and_note(images, *others, **named):
        asked.extend(images)
        return predict(images, *others, **named)

    monkeypatch.setattr(predict_crew, "predict_parts", predict_and_note)
    outcome = predict_crew._predict_chunk(chunk)
    assert asked == [at for at in range(N_FILMS + 1) if at not in (0, 1, 6)]
    assert outcome.predicted == [at for at in range(N_FILMS + 1) if plan.images[at].image_id != "4b.png"]
    assert list(outcome.rejected) == [5]


def test_a_worker_of_a_cluster_says_what_it_does_not_see(tmp_path, films, crew, plan):
    folder = claimed(tmp_path / "out", crew)
    (chunk, *_) = replace(crew, scheduler="tcp://x")._chunks(plan.of_share(None), folder)
    elsewhere = replace(chunk, out=tmp_path / "nowhere")
    with pytest.raises(MissingInputError, match=r"nowhere/cxu.json is not on .*: the output folder must lie on a file"):
        predict_crew._predict_chunk(elsewhere)
    moved = {at: replace(image, file=replace(image.file, root="/none")) for at, image in chunk.images.items()}
    with pytest.raises(MissingInputError, match=r"/none/0.png is not on .*: the images must lie on a file system that"):
        predict_crew._predict_chunk(replace(chunk, images=moved))
    network = replace(chunk.network, spec="/none/net.safetensors")
    with pytest.raises(MissingInputError, match=r"/none/net.safetensors is not on .*: the weights must lie on a file"):
        predict_crew._predict_chunk(replace(chunk, network=network))
    other = write_weights(tmp_path / "other.safetensors", use_skip=False)
    with pytest.raises(FormatError, match=r"other.safetensors: on .* another file than where the command was given"):
        predict_crew._predict_chunk(replace(chunk, network=replace(chunk.network, spec=str(other))))


@pytest.mark.parametrize("spec", ["bundled", "bundled:no-skip"])
def test_bundled_weights_are_found_by_name_on_any_machine(spec):
    weights = load(spec)
    network = predict_crew._Network.of(weights)
    assert network.spec == spec
    assert network.load().model_id == weights.model_id


def test_weights_of_the_hub_are_loaded_from_their_file_and_keep_their_name(films):
    weights = replace(load(str(films / "tiny.safetensors")), origin="x of ann/net", repo="ann/net", revision="ab")
    network = predict_crew._Network.of(weights)
    assert network.spec == str(films / "tiny.safetensors")
    found = network.load()
    assert (found.origin, found.repo, found.revision) == ("x of ann/net", "ann/net", "ab")


# --- devices ---------------------------------------------------------------------------------------------------------


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_devices("auto", 1) == ("cuda",)
    assert find_devices("auto", 2) == find_devices("cuda", 2) == ("cuda:0", "cuda:1")
    assert find_devices("auto", 4) == ("cuda:0", "cuda:1")
    assert find_devices("auto", 3)[2 % 2] == "cuda:0"
    assert find_devices("cuda:1", 2) == ("cuda:1",)
    assert find_devices("cpu", 2) == ("cpu",)
    with pytest.raises(UsageError, match="sees 2 CUDA devices"):
        find_devices("cuda:2", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_devices("auto", 3) == ("cpu",)


def test_a_worker_takes_the_device_of_its_number_and_its_threads(tmp_path, crew, plan, monkeypatch):
    folder = claimed(tmp_path / "out", crew)
    chunks = replace(crew, workers=2, devices=("cpu:a", "cpu:b"))._chunks(plan.of_share(None), folder)
    asked = []

    def find(name):
        asked.append(name)
        return torch.device("cpu")

    monkeypatch.setattr(predict_crew, "find_device", find)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    predict_crew._predictor.cache_clear()
    for number, chunk in zip((1, 1, 2, 0), chunks, strict=False):
        monkeypatch.setattr(predict_crew, "this_worker", lambda number=number: Worker(number, 3))
        predict_crew._predict_chunk(chunk)
    predict_crew._predictor.cache_clear()
    # the network is loaded once, until another device is wanted
    assert asked == ["cpu:b", 3, "cpu:a", 3]


def test_who_predicts_is_told(crew):
    assert str(crew) == "cpu"
    assert str(replace(crew, devices=("cuda:0", "cuda:1"), workers=2)) == "2 processes on cuda:0, cuda:1"
    assert str(replace(crew, scheduler="tcp://10.0.0.1:8786")) == "the cluster at tcp://10.0.0.1:8786"


def test_nothing_to_predict_loads_nothing(tmp_path, crew, plan, monkeypatch):
    monkeypatch.setattr(predict_crew, "Predictor", lambda *_: pytest.fail("needless"))
    outcome = crew.predict({}, PredictFolder(tmp_path), lambda _: None)
    assert (outcome.predicted, outcome.batch_size) == ([], None)
