"""Weight files → a network, and back: safetensors, and the published state dicts.

A file is never unpickled with code in it: pickles are read with ``weights_only=True``. Nor does it make cxu take more
memory than its own size warrants. Where weight files come from: :mod:`cxu.model.weight_source`.
"""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Final, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cxu import files
from cxu.errors import FormatError, MissingInputError, UsageError
from cxu.model.hybridgnet import HybridGNet, ModelConfig
from cxu.model.map_sampling import MapSampling

BUNDLED: Final = "bundled"
DEFAULT_VARIANT: Final = "igsc"
WEIGHT_NAMES: Final = ("model.safetensors", "pytorch_model.bin")  # best first
CONFIG_NAME: Final = "config.json"
_PICKLES: Final = (".bin", ".pt", ".pth")
_SAFETENSORS: Final = ".safetensors"
WEIGHT_SUFFIXES: Final = (_SAFETENSORS, *_PICKLES)
_BUNDLED_PREFIX: Final = "hybridgnet-"
_PREFIX: Final = "model."
_CONFIG_KEY: Final = "cxu_config"
# Beyond any HybridGNet: a file that claims more would have it built before its tensors are compared.
_LARGEST: Final = {"input size": 4096, "latents": 4096, "order": 64, "filters": 1024}


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
    path, n_bytes, stored
        The file, its size, and the precision of its numbers: ``float16``.
    metadata
        What else the file says of itself.
    repo, revision
        Hub repository and commit; None for a local file.
    """

    model: HybridGNet
    model_id: str
    origin: str
    path: Path
    n_bytes: int
    stored: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    repo: str | None = None
    revision: str | None = None


def bundled_variants() -> tuple[str, ...]:
    """Return the variants whose weights ship with the package, the default first."""
    found = {path.name.removeprefix(_BUNDLED_PREFIX).removesuffix(_SAFETENSORS) for path in _bundled_files()}
    return tuple(sorted(found, key=lambda variant: (variant != DEFAULT_VARIANT, variant)))


def bundled_path(variant: str = DEFAULT_VARIANT) -> Path:
    """Return the weights of a variant that ship with the package.

    Raises
    ------
    MissingInputError
        If they are missing from the installation.
    UsageError
        If cxu has no weights of that variant: the message names those there are.
    """
    name = f"{_BUNDLED_PREFIX}{variant}{_SAFETENSORS}"
    path = next((path for path in _bundled_files() if path.name == name), None)
    if path is not None:
        return path
    variants = bundled_variants()
    if variant == DEFAULT_VARIANT or not variants:
        raise MissingInputError(
            "the weights of cxu are missing from this installation: install it anew, or give a file, a folder or a Hub "
            "model such as mcosarinsky/CheXmask-U:v1_skip"
        )
    expected = ", ".join(f"{BUNDLED}:{one}" for one in variants)
    raise UsageError(f"weights {BUNDLED}:{variant}: no such variant ships with cxu; expected one of: {expected}")


def _bundled_files() -> list[Path]:
    folder = Path(str(package_files("cxu.model"))) / "bundled"
    return sorted(folder.glob(f"{_BUNDLED_PREFIX}*{_SAFETENSORS}"))


def load_weights(path: Path, *, config_path: Path | None = None, origin: str | None = None) -> Weights:
    """Load a weight file, or a folder that holds ``model.safetensors`` or ``pytorch_model.bin``.

    The architecture follows from the tensors' names and shapes. A ``config.json`` beside them must agree in input size,
    latents, order and use of skip connections; what else it says is not read.

    Parameters
    ----------
    path
        The file or folder.
    config_path
        Where the configuration lies, if not beside the file.
    origin
        What to call the file in messages and in the result; None: its path.

    Raises
    ------
    MissingInputError
        If there is no such file.
    FormatError
        If it is no weight file, or a tensor is missing, misshapen or not finite: the first one is named.
    """
    path = find_weight_file(path)
    origin = origin or str(path)
    state, metadata = _read_state(path, origin)
    config = _config_of(state, metadata, origin)
    _check_config_file(config, config_path or path.with_name(CONFIG_NAME))
    model = HybridGNet(config)
    _check_state(state, model.state_dict(), origin)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    stored = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}))
    return Weights(model.eval(), files.sha256_of(path), origin, path, path.stat().st_size, stored, metadata)


def save_weights(
    model: HybridGNet, path: Path, metadata: Mapping[str, str], *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a network's weights as safetensors with its configuration: the inverse of :func:`load_weights`."""
    tensors = {name: tensor.to(dtype).contiguous().cpu() for name, tensor in model.state_dict().items()}
    content = {**metadata, _CONFIG_KEY: json.dumps(asdict(model.config), sort_keys=True)}
    with files.replacing(path) as temporary:
        save_file(tensors, temporary, metadata=content)


def find_weight_file(path: Path) -> Path:
    """Return the weight file that ``path`` is, or that lies in the folder ``path``.

    Raises
    ------
    MissingInputError
        If there is none.
    """
    if path.is_dir():
        for name in WEIGHT_NAMES:
            if (path / name).is_file():
                return path / name
        raise MissingInputError(f"weights {path}: the folder holds neither {' nor '.join(WEIGHT_NAMES)}")
    if not path.is_file():
        raise MissingInputError(f"weights {path}: no such file")
    return path


def _read_state(path: Path, origin: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors by name, without the prefix some files have, and the file's metadata."""
    if path.suffix not in WEIGHT_SUFFIXES:
        raise FormatError(f"weights {origin}: expected a file ending in {', '.join(WEIGHT_SUFFIXES)}")
    content, metadata = (_read_safetensors if path.suffix == _SAFETENSORS else _read_pickle)(path, origin)
    state = _plain_tensors(content, origin)
    for name, tensor in state.items():
        # strides of zero make any number of elements out of one
        if tensor.numel() * tensor.element_size() > path.stat().st_size:
            raise FormatError(f"weights {origin}: {name} has shape {list(tensor.shape)}, more than the file holds")
    prefixed = all(name.startswith(_PREFIX) for name in state)
    return {name.removeprefix(_PREFIX) if prefixed else name: tensor for name, tensor in state.items()}, metadata


def _read_safetensors(path: Path, origin: str) -> tuple[Any, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return state, dict(file.metadata() or {})
    except (SafetensorError, OSError, RuntimeError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise _unreadable(origin, error) from None


def _read_pickle(path: Path, origin: str) -> tuple[Any, dict[str, Any]]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > path.stat().st_size:  # PyTorch stores, it never packs
                raise ValueError(f"an archive that unpacks to {unpacked} bytes")
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError:  # its own message recommends to run the code
        raise _unreadable(origin, "a pickle that is cut off, or holds more than tensors") from None
    except Exception as error:  # a damaged pickle raises whatever its commands stumble over
        raise _unreadable(origin, error) from None


def _unreadable(origin: str, reason: Exception | str) -> FormatError:
    said = str(reason).strip().splitlines()
    shown = said[0][:200] if said else type(reason).__name__
    return FormatError(f"weights {origin}: truncated, damaged or no plain weight file ({shown})")


def _plain_tensors(content: Any, origin: str) -> dict[str, Tensor]:
    """Return ``content`` if it is a dictionary of ordinary tensors by name."""
    if not isinstance(content, dict):
        raise FormatError(f"weights {origin}: expected a dictionary of tensors, found {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise FormatError(
                f"weights {origin}: expected a dictionary of tensors, found {type(tensor).__name__} at {name!r}"
            )
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
            raise FormatError(f"weights {origin}: {name} is no plain tensor (sparse, nested, quantised or empty)")
    return content


def _config_of(state: Mapping[str, Tensor], metadata: Mapping[str, str], origin: str) -> ModelConfig:
    """Return the configuration that the tensors' shapes imply; the file may add how maps are sampled."""
    implied = _implied_config(state, origin)
    if _CONFIG_KEY not in metadata:
        return implied
    try:
        content = json.loads(metadata[_CONFIG_KEY])
        stated = ModelConfig(**{**content, "filters": tuple(content["filters"])})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError(f"weights {origin}: its configuration is damaged ({error})") from None
    if stated.map_sampling not in get_args(MapSampling):
        raise FormatError(f"weights {origin}: its configuration is damaged (map_sampling {stated.map_sampling!r})")
    if stated != replace(implied, map_sampling=stated.map_sampling):
        raise FormatError(f"weights {origin}: its configuration says {stated}, its tensors {implied}")
    return stated


def _implied_config(state: Mapping[str, Tensor], origin: str) -> ModelConfig:
    mu, up6 = _matrix(state, "encoder.fc_mu.weight", origin), _matrix(state, "graphConv_up6.lins.0.weight", origin)
    up4 = _matrix(state, "graphConv_up4.lins.0.weight", origin)
    latents, n_features = mu.shape
    cells, rest = divmod(n_features, 128)
    side = math.isqrt(cells)
    if rest or side**2 != cells:
        raise FormatError(
            f"weights {origin}: encoder.fc_mu.weight takes {n_features} features; expected 128 · (size / 32)²"
        )
    order = sum(name.startswith("graphConv_up6.lins.") for name in state)
    filters = (up6.shape[0], up4.shape[0])
    for value, (what, largest) in zip((32 * side, latents, order, max(filters)), _LARGEST.items(), strict=True):
        if value > largest:
            raise FormatError(f"weights {origin}: its shapes imply {what} {value}; expected {largest} at most")
    try:
        return ModelConfig(
            size=32 * side,
            use_skip="SC_1.graphConv_pre.lins.0.weight" in state,
            latents=latents,
            order=order,
            filters=filters,
            map_sampling="adaptive",
            refine=any(name.startswith("refine_") for name in state),
            spread=any(name.startswith("spread.") for name in state),
        )
    except ValueError as error:
        raise FormatError(f"weights {origin}: {error}") from None


def _matrix(state: Mapping[str, Tensor], name: str, origin: str) -> Tensor:
    if name not in state:
        others = f"; the first tensor in it is {next(iter(state))}" if state else ", as is everything"
        raise FormatError(f"weights {origin}: {name} is missing: not the weights of a HybridGNet{others}")
    if state[name].ndim != 2 or not state[name].numel():
        raise FormatError(f"weights {origin}: {name} has shape {list(state[name].shape)}; expected a matrix")
    return state[name]


def _check_config_file(config: ModelConfig, path: Path) -> None:
    """Compare with a published ``config.json``: of its keys, those that the tensors can contradict."""
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: expected an object of named values, found {type(content).__name__}")
    stated = {"latents": config.latents, "inputsize": config.size, "K": config.order, "use_skip": config.use_skip}
    for name, value in stated.items():
        if name in content and content[name] != value:
            raise FormatError(f"{path} says {name} = {content[name]!r}, the weights beside it have {value!r}")


def _check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str) -> None:
    """Name the first tensor that is missing, misshapen, not finite or unknown."""
    for name, tensor in expected.items():
        if name not in state:
            raise FormatError(f"weights {origin}: {name} is missing")
        if state[name].shape != tensor.shape:
            raise FormatError(
                f"weights {origin}: {name} has shape {list(state[name].shape)}, expected {list(tensor.shape)}"
            )
        if not state[name].is_floating_point() or not torch.isfinite(state[name].float()).all():
            raise FormatError(f"weights {origin}: {name} holds values that are no finite numbers")
    unknown = sorted(set(state) - set(expected))
    if unknown:
        raise FormatError(f"weights {origin}: {unknown[0]} is no tensor of this network")
