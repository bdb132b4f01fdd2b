"""What weights say of themselves, whoever wrote it."""

import json

import pytest

from cxu.model.card import DISCLAIMER, PAGE, describe_model, terms_of
from cxu.model.weight_source import load
from cxu.model.weights import bundled_path, bundled_variants, load_weights, save_weights
from predict_helpers import tiny_model, write_weights

RUN = {
    "cxu": "0.1.0",
    "recipe": {"start": None, "lr": 0.001},
    "steps": 300,
    "seconds": 90.5,
    "data": {"images": {"JSRT": {"train": 3, "val": 0}}, "left_out": 2},
    "scores": {"test": {"all": {"images": 4, "mse_px2": 2.5, "dice_heart": None}}},
}


def described(tmp_path, metadata, **options):
    path = tmp_path / "net.safetensors"
    save_weights(tiny_model(), path, metadata, **options)
    return describe_model(load_weights(path))


def test_a_run_is_described(tmp_path):
    card = described(tmp_path, {**{name: json.dumps(value) for name, value in RUN.items()}, "terms": "ask first"})
    assert (card["steps"], card["seconds"], card["left_out"]) == (300, 90.5, 2)
    assert card["images"] == {"JSRT": {"train": 3, "val": 0}}
    assert (card["recipe"], card["scores"]) == (RUN["recipe"], RUN["scores"])
    assert (card["terms"], card["page"]) == ("ask first", None)
    assert card["metadata"].items() >= (RUN | {"terms": "ask first"}).items()


def test_the_network_and_its_file_are_described(tmp_path):
    import torch

    card = described(tmp_path, {}, dtype=torch.float16)
    path = tmp_path / "net.safetensors"
    assert (card["file"], card["bytes"], card["stored"]) == (str(path), path.stat().st_size, "float16")
    network = card["architecture"]
    assert (network["variant"], network["size"], network["latents"], network["refine"]) == ("igsc", 64, 64, False)
    assert network["parameters"] == sum(value.numel() for value in tiny_model().parameters())


def test_without_metadata_nothing_is_made_up(tmp_path):
    path = write_weights(tmp_path / "net.safetensors", use_skip=False)
    card = describe_model(load_weights(path))
    assert card["architecture"]["variant"] == "no-skip"
    assert (card["images"], card["recipe"], card["scores"]) == ({}, {}, {})
    assert (card["steps"], card["seconds"], card["left_out"]) == (None,) * 3
    assert (card["terms"], card["page"]) == (DISCLAIMER, None) == ("not a medical device", None)
    assert card["metadata"]["note"] == "random"


@pytest.mark.parametrize("name", [*RUN, "terms", "card"])
@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "7", "true", "NaN", "1e999", '"x"', "[" * 300 + "]" * 300, "9" * 400, "9" * 9000),
        '{"images": 3, "left_out": "many", "test": [], "validation": {"all": 3}, "start": {}}',
        '{"images": {"A": 3, "B": {"train": "x", "val": -1, "test": 1e400}}, "all": {"all": {"mse_px2": "\\ud800"}}}',
    ],
    ids=lambda text: text[:12],
)
def test_malformed_metadata_hide_nothing_else(tmp_path, name, text):
    content = {**{key: json.dumps(value) for key, value in RUN.items()}, name: text}
    card = described(tmp_path, content)
    json.dumps(card, indent=2, allow_nan=False)
    assert all(card[key] == RUN[key] for key in {"recipe", "steps", "seconds", "scores"} - {name})
    assert {type(card[key]) for key in ("images", "recipe", "scores")} == {dict}
    assert all(isinstance(card[key], int | float | None) for key in ("steps", "seconds", "left_out"))


def test_numbers_of_a_malformed_file_that_can_be_read_are(tmp_path):
    data = {"images": {"A": 3, "B": {"train": "x", "val": 5}}, "left_out": True}
    scores = {"test": [], "validation": {"all": {"mse_px2": "x", "error_px": 2.0}, "A": 3}}
    card = described(tmp_path, {"data": json.dumps(data), "scores": json.dumps(scores)})
    assert (card["images"], card["left_out"]) == ({"B": {"val": 5}}, None)
    assert card["scores"] == {"validation": {"all": {"mse_px2": None, "error_px": 2.0}}}


def test_every_bundled_network_has_a_card(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for variant in bundled_variants():
        card = describe_model(load(f"bundled:{variant}"))
        assert (card["origin"], card["architecture"]["variant"]) == (f"bundled:{variant}", variant)
        assert "research and education only; not a medical device" in card["terms"]
        assert card["page"] == PAGE
        assert card["images"]
        assert card["scores"]


def test_bundled_weights_are_known_by_their_file_not_by_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundled:x").mkdir()
    write_weights(tmp_path / "bundled:x/model.safetensors")
    folder = load("./bundled:x")
    assert folder.origin.startswith("bundled:")
    assert describe_model(folder)["page"] is None
    assert describe_model(load(str(bundled_path())))["page"] == PAGE
    (tmp_path / "link").symlink_to(bundled_path().parent)
    assert describe_model(load(f"link/{bundled_path().name}"))["page"] == PAGE


@pytest.mark.parametrize(
    ("metadata", "terms"),
    [({}, DISCLAIMER), ({"terms": "7"}, DISCLAIMER), ({"terms": "ask"}, "ask"), ({"terms": '"ask"'}, "ask")],
)
def test_terms_are_those_of_the_file(tmp_path, metadata, terms):
    save_weights(tiny_model(), tmp_path / "net.safetensors", metadata)
    weights = load_weights(tmp_path / "net.safetensors")
    assert terms_of(weights) == describe_model(weights)["terms"] == terms
