"""What was fitted to a network beside its weights: the calibration of its sigma and the gate. Without torch.

A file belongs to one weight file and names it by its hash; other weights have none. The bundled ones lie beside theirs.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cxu import files
from cxu.anatomy import N_ORGANS
from cxu.calibration import Calibration, assumed_scales, from_json
from cxu.errors import FormatError
from cxu.quality import REASONS, Gate, Space
from cxu.table import PUBLISHED_MODEL

_PREFIX: Final = "reference-"
_KEY: Final = "cxu_reference"
_SPACES: Final = ("latents", "appearance", "shapes")


@dataclass(frozen=True, eq=False)
class Reference:
    """Calibration and gate of one network.

    Attributes
    ----------
    model_id
        SHA-256 of its weight file.
    calibration, gate
        What was fitted.
    digest
        SHA-256 of the file: what of a prediction depends on it.
    facts
        What else the file says of itself.
    """

    model_id: str
    calibration: Calibration
    gate: Gate
    digest: str
    facts: Mapping[str, Any]


def reference_of(model_id: str) -> Reference | None:
    """Return what was fitted to the weights of that hash, or None."""
    return next((one for one in bundled_references() if one.model_id == model_id), None)


def sigma_scales(model_ids: Sequence[str]) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Return the factor on the standard deviations of each organ, float32 [n, 3], and whence each row has it.

    ``fitted`` for rows of weights that have a calibration; ``assumed`` for published rows, which have no truth to fit
    to; ``none`` where nothing is known and the factor is 1.
    """
    known: dict[str, tuple[npt.NDArray[np.floating], str]] = {PUBLISHED_MODEL: (assumed_scales(), "assumed")}
    for model_id in set(model_ids) - set(known):
        found = reference_of(model_id)
        known[model_id] = (found.calibration.scales(), "fitted") if found else (np.ones(N_ORGANS), "none")
    scales = [known[model_id][0] for model_id in model_ids]
    made = np.array(scales, np.float32).reshape(-1, N_ORGANS)
    return made, [known[model_id][1] for model_id in model_ids]


@functools.cache
def bundled_references() -> tuple[Reference, ...]:
    """Return the references that ship with the package."""
    folder = Path(str(package_files("cxu.model"))) / "bundled"
    return tuple(load_reference(path) for path in sorted(folder.glob(f"{_PREFIX}*.safetensors")))


def reference_path(weights: Path) -> Path:
    """Return where the reference of a bundled weight file lies."""
    return weights.with_name(f"{_PREFIX}{weights.name.removeprefix('hybridgnet-')}")


def load_reference(path: Path) -> Reference:
    """Read a reference.

    Raises
    ------
    FormatError
        If the file is none.
    """
    try:
        with safe_open(path, framework="numpy") as stored:
            content = json.loads((stored.metadata() or {})[_KEY])
            arrays = {name: stored.get_tensor(name).astype(np.float32) for name in stored.keys()}  # noqa: SIM118
        return Reference(
            str(content["model_id"]),
            from_json(content["calibration"]),
            _gate_of(arrays, content["limits"]),
            files.sha256_of(path),
            content["facts"],
        )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise FormatError(f"{path} is no reference of weights: {error}; install cxu anew") from None


def save_reference(path: Path, model_id: str, calibration: Calibration, gate: Gate, facts: Mapping[str, Any]) -> None:
    """Write a reference, arrays in half precision; the same input gives the same bytes."""
    content = {
        "model_id": model_id,
        "calibration": calibration.as_json(),
        "limits": {name: list(limits) for name, limits in gate.limits.items()},
        "facts": dict(facts),
    }
    arrays = {
        "orientation.weights": gate.orientation_weights,
        "orientation.offsets": gate.orientation_offsets,
        "features.mean": gate.feature_mean,
        "features.sd": gate.feature_sd,
    }
    for name in _SPACES:
        space: Space = getattr(gate, name)
        arrays |= {
            f"{name}.centre": space.centre,
            f"{name}.directions": space.directions,
            f"{name}.beside": np.array([space.beside]),
        }
    narrow = {name: np.ascontiguousarray(values, np.float16) for name, values in sorted(arrays.items())}
    with files.replacing(path) as temporary:
        save_file(narrow, temporary, metadata={_KEY: json.dumps(content, sort_keys=True)})


def _gate_of(arrays: Mapping[str, Any], limits: Mapping[str, Any]) -> Gate:
    spaces = {
        name: Space(arrays[f"{name}.centre"], arrays[f"{name}.directions"], float(arrays[f"{name}.beside"][0]))
        for name in _SPACES
    }
    return Gate(
        **spaces,
        orientation_weights=arrays["orientation.weights"],
        orientation_offsets=arrays["orientation.offsets"],
        feature_mean=arrays["features.mean"],
        feature_sd=arrays["features.sd"],
        limits={name: (float(limits[name][0]), float(limits[name][1]), float(limits[name][2])) for name in REASONS},
    )
