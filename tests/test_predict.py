"""Images to predictions: nothing but pixels, weights and options counts."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cxu
from builders import make_rows
from cxu import predict, table
from cxu.errors import DeviceMemoryError, ImageError, UsageError
from cxu.films import Film
from cxu.model.device import find_device, freed_memory_kept
from cxu.model.hybridgnet import HybridGNet
from cxu.model.weights import load_weights
from cxu.predict import (
    Prediction,
    PredictOptions,
    Predictor,
    Rejected,
    predict_films,
    prediction_rows,
)
from cxu.predict_plan import plan_images
from predict_helpers import film_pixels, write_film, write_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return load_weights(write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors"))


@pytest.fixture
def folder(tmp_path):
    for seed in range(8):
        write_film(tmp_path / "films" / f"{seed}.png", seed, size=96 + 8 * seed)
    return tmp_path / "films"


def run(folder, weights, *, batch_size=1, images=None, **options):
    predictor = Predictor(weights, PredictOptions(**{"n_samples": 6, **options}), CPU, batch_size)
    return list(predict_films(images or plan_images([folder]).images, predictor, readers=2))


def numbers(results):
    return {one.image.image_id: (one.mean, one.std, one.latent_sigma) for one in results}


def assert_close(left, right, atol=1e-5):
    assert left.keys() == right.keys()
    for key, arrays in left.items():
        for one, other in zip(arrays, right[key], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=key)


def test_batches_and_order_make_no_difference(folder, weights):
    single = numbers(run(folder, weights))
    assert len(single) == 8
    assert len({mean.tobytes() for mean, _, _ in single.values()}) == 8
    for size in (3, 8):
        assert_close(numbers(run(folder, weights, batch_size=size)), single)
    backwards = plan_images([folder]).images[::-1]
    assert_close(numbers(run(folder, weights, batch_size=3, images=backwards)), single)


def test_a_repeat_is_identical_and_another_seed_is_not(folder, weights):
    first, again, other = (numbers(run(folder, weights, batch_size=3, seed=seed)) for seed in (0, 0, 1))
    assert_close(first, again, atol=0)
    for key, (mean, std, latent_sigma) in first.items():
        assert not np.array_equal(mean, other[key][0])
        assert not np.array_equal(std, other[key][1])
        np.testing.assert_array_equal(latent_sigma, other[key][2])


def test_results_come_in_order_with_the_rejected_among_them(folder, weights):
    (folder / "3a.png").write_bytes(b"no image")
    (folder / "0.jpg").write_bytes(b"")
    results = run(folder, weights, batch_size=3)
    names = [Path(one.file).name if isinstance(one, Rejected) else one.image.image_id for one in results]
    assert names == [image.image_id for image in plan_images([folder]).images]
    rejected = {Path(one.file).name: str(one) for one in results if isinstance(one, Rejected)}
    assert rejected.keys() == {"3a.png", "0.jpg"}
    assert "is no PNG, JPEG, TIFF or DICOM file" in rejected["3a.png"]
    assert rejected["0.jpg"].endswith("0.jpg is empty (0 bytes).")


def test_only_rejected_images(tmp_path, weights):
    (tmp_path / "a.png").write_bytes(b"x")
    (result,) = run(tmp_path, weights)
    assert isinstance(result, Rejected)


def test_what_goes_wrong_in_a_reader_is_raised(folder, weights, monkeypatch):
    def fail(film, frame, size):
        raise ZeroDivisionError("a slip of ours")

    monkeypatch.setattr("cxu.films.model_input", fail)
    with pytest.raises(ZeroDivisionError, match="a slip of ours"):
        run(folder, weights)


def test_readers_stay_a_bounded_number_of_images_ahead(folder, weights, monkeypatch):
    read = []
    prepare = predict._prepare
    monkeypatch.setattr("cxu.predict._prepare", lambda image, predictor: read.append(1) or prepare(image, predictor))
    images = [image for _ in range(8) for image in plan_images([folder]).images]
    predictor = Predictor(weights, PredictOptions(2), CPU, 1)
    results = predict_films(images, predictor, readers=2)
    for _ in range(4):
        next(results)
    # in hand: four given, one finished and one on the device, and four ahead
    assert len(read) <= 4 + 2 + (2 + 2 * 1)
    results.close()


def test_memory_that_runs_out_halves_the_batch(folder, weights, monkeypatch):
    sizes = []
    sample = predict.sample_landmarks

    def limited(model, pixels, seeds, **options):
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return sample(model, pixels, seeds, **options)

    expected = numbers(run(folder, weights))
    monkeypatch.setattr("cxu.predict.sample_landmarks", limited)
    predictor = Predictor(weights, PredictOptions(6), CPU, 8)
    results = list(predict_films(plan_images([folder]).images, predictor, readers=2))
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert predictor.batch_size == 2
    assert_close(numbers(results), expected)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_too_little_memory_for_one_image_is_said(folder, weights, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("cxu.predict.sample_landmarks", fail)
    with pytest.raises(DeviceMemoryError, match="cpu has too little memory for one image of 64 px with 6 samples"):
        run(folder, weights, batch_size=4)


def test_another_error_of_the_device_comes_through(folder, weights, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr("cxu.predict.sample_landmarks", fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        run(folder, weights)


def test_devices(monkeypatch):
    assert find_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto") == CPU
    for name, said in {
        "cuda": "sees 0 CUDA devices here; try --device cpu",
        "cuda:3": "sees 0 CUDA devices",
        "mps": "no Apple GPU",
        "gpu": "expected auto, cpu, cuda, cuda:N or mps",
        "xla": "expected auto",
        "cuda:x": "expected auto",
        "cpu:1": "the CPU is one device",
    }.items():
        with pytest.raises(UsageError, match=said):
            find_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("options", [{"n_samples": 0}, {"seed": -1}, {"seed": 2**63}])
def test_options_are_checked(options):
    with pytest.raises(UsageError, match="expected"):
        PredictOptions(**options)


def test_a_batch_is_at_least_one(weights):
    with pytest.raises(UsageError, match="--batch-size 0"):
        Predictor(weights, PredictOptions(), CPU, 0)


def test_rows_are_in_the_images_own_pixels(tmp_path, weights):
    write_film(tmp_path / "a.png", shape_hw=(100, 60))
    options = PredictOptions(n_samples=4, seed=5, keep_samples=True)
    results = list(predict_films(plan_images([tmp_path]).images, Predictor(weights, options, CPU)))
    rows = prediction_rows(results, weights, options)
    table.check_table(rows, "rows")
    (row,) = rows.to_pylist()
    assert (row["source"], row["image_id"]) == ("local", "a.png")
    assert (row["height"], row["width"], row["frame"]) == (100, 60, "image")
    # a portrait is padded by 20 px left and right to a square of 100 px
    assert (row["frame_side"], row["frame_offset_xy"], row["frame_exact"]) == (100.0, [-20.0, 0.0], True)
    points = results[0].mean * 100 + (-20, 0)
    np.testing.assert_allclose(table.landmarks_of(rows)[0], points, atol=1e-4)
    np.testing.assert_allclose(table.sigmas_of(rows)[0], results[0].std * 100, atol=1e-5)
    sigma_model = results[0].std.mean(axis=1) * 1024
    np.testing.assert_allclose(row["sigma_model_px"], sigma_model, rtol=1e-5)
    assert row["mean_sigma_model_px"] == pytest.approx(sigma_model.mean(), rel=1e-5)
    assert (row["model_id"], row["n_samples"], row["seed"], row["precision"]) == (weights.model_id, 4, 5, "float32")
    assert row["file_sha256"] == plan_images([tmp_path]).images[0].file.sha256()
    samples = np.reshape(row["samples_xy"], (4, 120, 2))
    np.testing.assert_allclose(samples.mean(axis=0), table.landmarks_of(rows)[0], atol=1e-3)
    np.testing.assert_allclose(samples.std(axis=0), table.sigmas_of(rows)[0], atol=1e-3)
    assert len(row["latent_sigma"]) == 64
    assert {row["rca_mean"], row["quality"], row["radius90_px"], row["spacing_mm_xy"], row["view"]} == {None}


def test_pixels_that_are_not_square(tmp_path, weights, monkeypatch):
    grey = film_pixels(size=80)
    monkeypatch.setattr(
        "cxu.films.read_film", lambda file, **_: Film(grey[::2], "DICOM", (0.2, 0.4), aspect=2.0, view="PA")
    )
    write_film(tmp_path / "a.png")
    options = PredictOptions(3)
    (result,) = predict_films(plan_images([tmp_path]).images, Predictor(weights, options, CPU))
    rows = prediction_rows([result], weights, options)
    (row,) = rows.to_pylist()
    assert (row["height"], row["width"], row["view"]) == (40, 80, "PA")
    assert row["spacing_mm_xy"] == pytest.approx([0.2, 0.4])
    assert {row["frame_side"], row["frame_exact"]} == {None}
    np.testing.assert_allclose(table.landmarks_of(rows)[0], result.mean * (80, 40), atol=1e-4)
    np.testing.assert_allclose(table.sigmas_of(rows)[0], result.std * (80, 40), atol=1e-5)
    np.testing.assert_allclose(row["sigma_model_px"], result.std.mean(axis=1) * 1024, rtol=1e-5)


def test_one_sample_has_no_uncertainty(folder, weights):
    options = PredictOptions(n_samples=1)
    results = list(predict_films(plan_images([folder]).images[:2], Predictor(weights, options, CPU)))
    rows = prediction_rows(results, weights, options)
    for name in ("sigma_xy", "sigma_model_px", "mean_sigma_model_px", "max_sigma_model_px"):
        assert rows[name].null_count == 2, name
    assert rows["landmarks_xy"].null_count == 0


def test_the_schema_is_that_of_published_rows(folder, weights):
    options = PredictOptions(2)
    rows = prediction_rows(run(folder, weights, n_samples=2), weights, options)
    assert rows.schema.equals(make_rows(1).schema)


def test_a_cropping_source_keeps_its_frame(tmp_path, weights):
    grey = np.pad(film_pixels(size=80), ((10, 0), (0, 0)))
    Image.fromarray(grey).save(tmp_path / "a.png")
    frames = {}
    for source in (None, "mimic"):
        (result,) = predict_films(plan_images([tmp_path], source).images, Predictor(weights, PredictOptions(2), CPU))
        frames[source] = result.frame.frame
    assert (frames[None].side, frames[None].offset_xy) == (90.0, (-5.0, 0.0))
    assert frames["mimic"].side == 80.0
    assert frames["mimic"].offset_xy[1] == 10.0


@pytest.mark.shared
def test_demo_films_run_and_twins_agree(shared_data, weights):
    results = run(shared_data / "demo", weights)
    assert len(results) == 9
    assert all(isinstance(one, Prediction) for one in results)
    found = numbers(results)
    assert_close({"x": found["rsna_monochrome1.dcm"]}, {"x": found["rsna_monochrome2.dcm"]}, atol=0)
    for one, other in itertools.combinations(found, 2):
        if "rsna" not in one:
            assert not np.array_equal(found[one][0], found[other][0])


def test_a_file_that_vanishes_is_rejected(folder, weights):
    images = plan_images([folder]).images
    (folder / "4.png").unlink()
    (gone,) = [one for one in run(folder, weights, images=images) if isinstance(one, Rejected)]
    assert gone.reason.endswith("4.png does not exist.")
    with pytest.raises(ImageError):
        images[4].file.sha256()


def test_in_python(tmp_path, weights):
    path = str(write_weights(tmp_path / "tiny.safetensors"))
    write_film(tmp_path / "films/a.png")
    write_film(tmp_path / "films/b.png", 1)
    rows = cxu.predict_images(tmp_path / "films", weights=path, n_samples=3, device="cpu")
    assert rows["image_id"].to_pylist() == ["a.png", "b.png"]
    assert cxu.landmarks(rows).shape == (2, 120, 2)
    one = cxu.predict_images([tmp_path / "films/b.png"], weights=path, n_samples=3, source="hospital", batch_size=2)
    assert one["image_id"].to_pylist() == ["b"]
    np.testing.assert_allclose(cxu.landmarks(one)[0], cxu.landmarks(rows)[1], atol=1e-3)
    (tmp_path / "films/c.png").write_bytes(b"x")
    with pytest.raises(ImageError, match="is no PNG, JPEG, TIFF or DICOM file"):
        cxu.predict_images(tmp_path / "films", weights=path)


def test_a_file_that_changes_while_it_is_read_is_rejected(folder, weights, monkeypatch):
    read = predict.films.read_film

    def read_and_replace(file, **options):
        film = read(file, **options)
        if file.file == "3.png":
            write_film(folder / "3.png", 11, size=200)
        return film

    monkeypatch.setattr("cxu.films.read_film", read_and_replace)
    (changed,) = [one for one in run(folder, weights) if isinstance(one, Rejected)]
    assert changed.reason.endswith("3.png changed while it was read; run the same command again.")


def test_published_sampling_takes_an_image_at_a_time(tmp_path, weights):
    config = replace(weights.model.config, map_sampling="adaptive")
    adaptive = replace(weights, model=HybridGNet(config))
    assert Predictor(adaptive, PredictOptions(), CPU, 8).batch_size == 1
    assert Predictor(weights, PredictOptions(), CPU, 8).batch_size == 8


def test_memory_is_kept_within_the_block_only():
    with freed_memory_kept(), freed_memory_kept():
        np.testing.assert_array_equal(np.zeros(1 << 20), 0)
    for system in ("win32", "linux"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.platform", system)
            patch.setattr("ctypes.CDLL", lambda name: object())  # a C library without such options
            with freed_memory_kept():
                pass
