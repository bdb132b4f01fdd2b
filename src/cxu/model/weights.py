"""Weight files → a network: safetensors, the published state dicts, a folder, or a Hub repository.

A file is never unpickled with code in it: pickles are read with ``weights_only=True``.
"""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cxu import files
from cxu.errors import FormatError, MissingInputError
from cxu.model.hybridgnet import HybridGNet, ModelConfig

BUNDLED: Final = "bundled"
_WEIGHT_NAMES: Final = ("model.safetensors", "pytorch_model.bin")
_PICKLES: Final = (".bin", ".pt", ".pth")
_PREFIX: Final = "model."
_CONFIG_KEY: Final = "cxu_config"


@dataclass(frozen=True)
class Weights:
    """A network with its weights, and where they came from.

    Attributes
    ----------
    model
        In evaluation mode, on the CPU.
    model_id
        SHA-256 of the weight file: what the table records as ``model_id``.
    origin
        Path or repository, for people.
    metadata
        What else the file says of itself.
    """

    model: HybridGNet
    model_id: str
    origin: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def bundled_path() -> Path:
    """Return the weights that ship with the package.

    Raises
    ------
    MissingInputError
        If this version ships none.
    """
    path = Path(str(package_files("cxu.model"))) / "bundled" / "hybridgnet-igsc.safetensors"
    if not path.is_file():
        raise MissingInputError(
            "this version of cxu ships no weights yet: give some, a file, a folder or a Hub repository such as "
            "mcosarinsky/CheXmask-U:v1_skip"
        )
    return path


def load_weights(path: Path, *, config_path: Path | None = None) -> Weights:
    """Load a weight file, or a folder that holds ``model.safetensors`` or ``pytorch_model.bin``.

    The architecture follows from the tensors' names and shapes; a ``config.json`` beside them must agree.

    Raises
    ------
    MissingInputError
        If there is no such file.
    FormatError
        If it is no weight file, or a tensor is missing, misshapen or not finite: the first one is named.
    """
    path = _find_file(path)
    state, metadata = _read_state(path)
    config = _config_of(state, metadata, path)
    _check_config_file(config, config_path or path.with_name("config.json"))
    model = HybridGNet(config)
    _check_state(state, model.state_dict(), path)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return Weights(model.eval(), files.sha256_of(path), str(path), metadata)


def save_weights(
    model: HybridGNet, path: Path, metadata: Mapping[str, str], *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a network's weights as safetensors with its configuration: the inverse of :func:`load_weights`."""
    tensors = {name: tensor.to(dtype).contiguous().cpu() for name, tensor in model.state_dict().items()}
    content = {**metadata, _CONFIG_KEY: json.dumps(asdict(model.config), sort_keys=True)}
    with files.replacing(path) as temporary:
        save_file(tensors, temporary, metadata=content)


def _find_file(path: Path) -> Path:
    if path.is_dir():
        for name in _WEIGHT_NAMES:
            if (path / name).is_file():
                return path / name
        raise MissingInputError(f"{path} holds neither {' nor '.join(_WEIGHT_NAMES)}")
    if not path.is_file():
        raise MissingInputError(f"weights {path}: no such file")
    return path


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors by name, without the prefix some files have, and the file's metadata."""
    if path.suffix not in (".safetensors", *_PICKLES):
        raise FormatError(f"weights {path}: expected a file ending in .safetensors or {', '.join(_PICKLES)}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                metadata = dict(file.metadata() or {})
        else:
            state, metadata = torch.load(path, map_location="cpu", weights_only=True), {}
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise FormatError(f"weights {path}: truncated, damaged or no plain weight file ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise FormatError(f"weights {path}: expected a dictionary of tensors, found {type(state).__name__}")
    prefixed = all(name.startswith(_PREFIX) for name in state)
    return {name.removeprefix(_PREFIX) if prefixed else name: tensor for name, tensor in state.items()}, metadata


def _config_of(state: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> ModelConfig:
    """Return the configuration that the file names, or that its tensors' shapes imply."""
    if _CONFIG_KEY in metadata:
        try:
            content = json.loads(metadata[_CONFIG_KEY])
            return ModelConfig(**{**content, "filters": tuple(content["filters"])})
        except (ValueError, TypeError, KeyError) as error:
            raise FormatError(f"weights {path}: its configuration is damaged ({error})") from None
    mu, up6 = _tensor(state, "encoder.fc_mu.weight", 2, path), _tensor(state, "graphConv_up6.lins.0.weight", 2, path)
    up4 = _tensor(state, "graphConv_up4.lins.0.weight", 2, path)
    latents, n_features = mu.shape
    cells = n_features / 128
    if math.isqrt(int(cells)) ** 2 != cells:
        raise FormatError(
            f"weights {path}: encoder.fc_mu.weight takes {n_features} features; expected 128 · (size / 32)²"
        )
    try:
        return ModelConfig(
            size=32 * math.isqrt(int(cells)),
            use_skip="SC_1.graphConv_pre.lins.0.weight" in state,
            latents=latents,
            order=sum(name.startswith("graphConv_up6.lins.") for name in state),
            filters=(up6.shape[0], up4.shape[0]),
            map_sampling="adaptive",
        )
    except ValueError as error:
        raise FormatError(f"weights {path}: {error}") from None


def _tensor(state: Mapping[str, Tensor], name: str, n_axes: int, path: Path) -> Tensor:
    if name not in state:
        raise FormatError(f"weights {path}: {name} is missing; not the weights of a HybridGNet")
    if state[name].ndim != n_axes:
        raise FormatError(f"weights {path}: {name} has shape {list(state[name].shape)}; expected {n_axes} axes")
    return state[name]


def _check_config_file(config: ModelConfig, path: Path) -> None:
    """Compare with a published ``config.json``; ``eval_sampling`` only says how a plain forward draws."""
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is no JSON: {error}") from None
    stated = {"latents": config.latents, "inputsize": config.size, "K": config.order, "use_skip": config.use_skip}
    for name, value in stated.items():
        if name in content and content[name] != value:
            raise FormatError(f"{path} says {name} = {content[name]!r}, the weights beside it have {value!r}")


def _check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Name the first tensor that is missing, misshapen, not finite or unknown."""
    for name, tensor in expected.items():
        if name not in state:
            raise FormatError(f"weights {path}: {name} is missing")
        if state[name].shape != tensor.shape:
            raise FormatError(
                f"weights {path}: {name} has shape {list(state[name].shape)}, expected {list(tensor.shape)}"
            )
        if not state[name].is_floating_point() or not torch.isfinite(state[name]).all():
            raise FormatError(f"weights {path}: {name} holds values that are no finite numbers")
    unknown = sorted(set(state) - set(expected))
    if unknown:
        raise FormatError(f"weights {path}: {unknown[0]} is no tensor of this network")
