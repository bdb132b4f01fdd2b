"""What is fitted beside the bundled weights belongs to them, and reaches the rows of their predictions."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner

import cxu
from cxu import table
from cxu.calibration import radius_px
from cxu.cli import app
from cxu.errors import FormatError
from cxu.model import reference
from cxu.model.reference import bundled_references, load_reference, reference_of, reference_path, save_reference
from cxu.model.weights import bundled_path, bundled_variants, load_weights
from cxu.quality import REASONS
from predict_helpers import write_film, write_weights


@pytest.mark.parametrize("variant", bundled_variants())
def test_every_bundled_network_has_its_reference(variant):
    path = bundled_path(variant)
    found = reference_of(load_weights(path).model_id)
    assert found is not None, f"fit it again: python scripts/fit_reference.py; {path} has changed"
    assert found.digest == load_reference(reference_path(path)).digest


def test_other_weights_have_none(tmp_path):
    assert reference_of("published") is None
    rows = cxu.predict_images(write_film(tmp_path / "film.png"), weights=str(write_weights(tmp_path / "w.safetensors")))
    for name in ("quality", "quality_score", "quality_reason", "radius90_px"):
        assert rows[name].null_count == 1


@pytest.mark.parametrize("one", bundled_references(), ids=lambda one: one.model_id[:12])
def test_what_was_fitted_makes_sense(one):
    scales = one.calibration.scales()
    assert ((scales > 0.5) & (scales < 3)).all()
    # of a Gaussian, the radius of 90 % is 2.15 standard deviations
    assert all(1.5 < factor < 5 for factor in one.calibration.radius_factor.values())
    assert set(one.gate.limits) == set(REASONS)
    for median, review, reject in one.gate.limits.values():
        assert median < review < reject


def test_there_and_back(tmp_path):
    one = bundled_references()[0]
    for name in ("a", "b"):
        save_reference(tmp_path / f"{name}.safetensors", "some", one.calibration, one.gate, {"films": 3})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    again = load_reference(tmp_path / "a.safetensors")
    assert (again.model_id, again.calibration, again.facts) == ("some", one.calibration, {"films": 3})
    assert again.gate.limits == one.gate.limits
    assert np.array_equal(again.gate.latents.directions, one.gate.latents.directions)


def test_damaged_references_are_named(tmp_path):
    (tmp_path / "text.safetensors").write_text("no")
    save_file({"a": np.zeros(1)}, tmp_path / "other.safetensors", metadata={"cxu_reference": json.dumps({})})
    save_file({"a": np.zeros(1)}, tmp_path / "bare.safetensors")
    for name in ("text", "other", "bare"):
        with pytest.raises(FormatError, match="no reference of weights"):
            load_reference(tmp_path / f"{name}.safetensors")


def test_rows_of_bundled_weights_have_radii_in_their_own_pixels(tmp_path):
    rows = cxu.predict_images(write_film(tmp_path / "film.png", size=512), n_samples=8)
    fitted = reference_of(rows["model_id"][0].as_py()).calibration
    expected = radius_px(fitted, table.list_column(rows, "sigma_model_px")) * 512 / 1024
    assert table.list_column(rows, "radius90_px") == pytest.approx(expected, rel=1e-5)
    assert rows["quality"][0].as_py() in ("ok", "review", "reject")
    assert rows["quality_score"][0].as_py() >= 0


def test_one_sample_has_no_radius_but_a_verdict(tmp_path):
    rows = cxu.predict_images(write_film(tmp_path / "film.png"), n_samples=1)
    assert rows["radius90_px"].null_count == 1
    assert rows["quality"].null_count == 0


def test_noise_is_rejected_and_filter_leaves_it_out(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    rows = cxu.predict_images(tmp_path / "noise.png", n_samples=8)
    assert rows["quality"].to_pylist() == ["reject"]
    assert rows["quality_reason"][0].as_py()
    assert len(cxu.filter_rows(rows).rows) == 0
    assert cxu.filter_rows(rows).excluded["reason"].to_pylist() == ["quality"]
    assert len(cxu.filter_rows(rows, quality="any").rows) == 1


def test_the_verdict_does_not_depend_on_neighbours(tmp_path):
    paths = [write_film(tmp_path / f"{seed}.png", seed, size=128) for seed in range(3)]
    together = cxu.predict_images(paths, n_samples=4, batch_size=3)
    alone = [cxu.predict_images(path, n_samples=4) for path in paths]
    assert together["quality"].to_pylist() == [rows["quality"][0].as_py() for rows in alone]
    assert together["quality_score"].to_numpy() == pytest.approx(
        [rows["quality_score"][0].as_py() for rows in alone], abs=1e-3
    )


def test_a_folder_made_with_another_calibration_is_another_folder(tmp_path, monkeypatch):
    from cxu.model.weight_source import load
    from cxu.predict import PredictOptions
    from cxu.predict_run import record_of

    weights, options = load("bundled"), PredictOptions(2)
    before = record_of(weights, options)["identity"]
    monkeypatch.setattr(reference, "bundled_references", tuple)
    assert record_of(weights, options)["identity"] != before


def test_the_command_says_what_to_look_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8)
    Image.fromarray(noise).save("noise.png")
    one = CliRunner().invoke(app, ["predict", "noise.png", "--samples", "4", "--out", "one"])
    assert one.exit_code == 0, one.output
    assert "quality reject" in one.stdout
    assert "1 image to look at" in one.stderr
    assert "reject: noise.png" in one.stderr
    Image.fromarray(noise.T).save("other.png")
    both = CliRunner().invoke(app, ["predict", "noise.png", "other.png", "--samples", "4", "--out", "two", "--json"])
    content = json.loads(both.stdout)
    assert content["quality"] == {"reject": 2}
    assert [one["quality"] for one in content["doubtful"]] == ["reject", "reject"]
    assert content["doubtful"][0]["score"] >= content["doubtful"][1]["score"] >= 2
