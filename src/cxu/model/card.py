"""What a weight file says of itself, as plain values: architecture, training, scores, terms.

Its metadata may be anyone's: what cannot be read there is left out, never an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from cxu.model.weights import Weights, bundled_path, bundled_variants

DISCLAIMER: Final = "not a medical device"
PAGE: Final = "docs/model.md"
_MOST_LEVELS: Final = 20  # of values in values: far beyond what cxu writes, far below what JSON writers stumble over
_LARGEST: Final = 1e15


def describe_model(weights: Weights) -> dict[str, Any]:
    """Return what is known of weights as plain JSON values.

    Keys: ``model_id``, ``origin``, ``file``, ``bytes``, ``stored`` (precision on disk), ``repo``, ``revision``;
    ``architecture``: the network's configuration with its ``variant`` and number of ``parameters``; ``images``: numbers
    by data set and split, ``left_out`` images; ``recipe``, ``steps``, ``seconds``; ``scores`` by part and data set;
    ``terms`` (:func:`terms_of`); ``page``: documentation of weights that ship with cxu; ``metadata``: all
    that the file says. Where the file says nothing: None, or an empty object.
    """
    said = {str(name): _decoded(value) for name, value in weights.metadata.items()}
    data, recipe = _object(said.get("data")), _object(said.get("recipe"))
    return {
        "model_id": weights.model_id,
        "origin": weights.origin,
        "file": str(weights.path),
        "bytes": weights.n_bytes,
        "stored": weights.stored,
        "repo": weights.repo,
        "revision": weights.revision,
        "architecture": _architecture(weights),
        "images": _counts(data.get("images")),
        "left_out": _number(data.get("left_out")),
        "recipe": recipe,
        "steps": _number(said.get("steps")),
        "seconds": _number(said.get("seconds")),
        "scores": _scores(said.get("scores")),
        "terms": terms_of(weights),
        "page": PAGE if _is_bundled(weights) else None,
        "metadata": said,
    }


def terms_of(weights: Weights) -> str:
    """Return on what terms weights may be used, by their file; where it states none, only that they are no device."""
    return _text(_decoded(weights.metadata.get("terms"))) or DISCLAIMER


def _is_bundled(weights: Weights) -> bool:
    """Tell it by the file: what a folder or a repository is called is up to its owner."""
    return weights.path.resolve() in {bundled_path(variant).resolve() for variant in bundled_variants()}


def _architecture(weights: Weights) -> dict[str, Any]:
    config = weights.model.config
    parameters = sum(parameter.numel() for parameter in weights.model.parameters())
    return {"variant": "igsc" if config.use_skip else "no-skip", **asdict(config), "parameters": parameters}


def _decoded(value: Any) -> Any:
    """Return a JSON text's value, and anything else as it is; numbers that JSON lacks become None."""
    try:
        content = json.loads(value, parse_constant=lambda _: None, parse_float=lambda text: _number(float(text)))
    except (ValueError, TypeError, RecursionError):
        return value
    return content if _is_shallow(content) else value


def _is_shallow(value: Any, levels: int = _MOST_LEVELS) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(one, levels - 1) for one in inside)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | int | None:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return value if known and abs(value) < _LARGEST else None  # never true of NaN


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _counts(content: Any) -> dict[str, dict[str, int]]:
    counts = {
        dataset: {
            split: value for split, value in _object(splits).items() if type(value) is int and 0 <= value < _LARGEST
        }
        for dataset, splits in _object(content).items()
    }
    return {dataset: splits for dataset, splits in counts.items() if splits}


def _scores(content: Any) -> dict[str, dict[str, dict[str, float | int | None]]]:
    scores = {
        part: {
            dataset: {name: _number(value) for name, value in one.items()}
            for dataset, one in _object(by_dataset).items()
            if _object(one)
        }
        for part, by_dataset in _object(content).items()
    }
    return {part: by_dataset for part, by_dataset in scores.items() if by_dataset}
