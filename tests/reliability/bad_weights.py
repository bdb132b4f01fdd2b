"""Weight files that are none, or not what they say: ``cxu predict --weights``."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save

from predict_helpers import tiny_model
from reliability.case import Case

TITLE: Final = "Weight files"
INTRO: Final = (
    "`cxu predict film.png --weights FILE`. Each is refused before the first film is read; nothing is written, "
    "and no code in it is run."
)
RAN: Final = "code-was-run"  # what code in a file would make


@dataclass(frozen=True, kw_only=True)
class WeightsCase(Case):
    """A weight file, or a folder that holds one; ``file`` is its path in the folder."""

    exit_code: int = 1
    file: str = "w.safetensors"

    @property
    def happens(self) -> str:
        """What comes of it, for the table."""
        return f"refused (exit {self.exit_code}): “…{self.says}…”"


def _file(name: str, content: bytes | Callable[[], bytes], says: str, *, file: str = "w.safetensors") -> WeightsCase:
    """Return the case of a file of these bytes."""

    def make(folder: Path) -> None:
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content() if callable(content) else content)

    return WeightsCase(name=name, file=file, make=make, says=says)


def _state(**changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return the tensors of a good file, some of them replaced, or left out where None."""
    named = {name.replace("__", "."): tensor for name, tensor in changed.items()}
    state = {**tiny_model().state_dict(), **named}
    return {name: tensor.contiguous() for name, tensor in state.items() if tensor is not None}


def _safe(config: Any = None, **changed: torch.Tensor | None) -> bytes:
    text = config if isinstance(config, str) else json.dumps({**asdict(tiny_model().config), **(config or {})})
    return save(_state(**changed), {"cxu_config": text})


def _pickled(content: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **how)
    return stream.getvalue()


def _header(content: bytes | dict[str, Any], announced: int | None = None, body: int = 4096) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if announced is None else announced) + text + bytes(body)


def _tensor(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


class _Runs:
    """What a pickle calls when it is read."""

    def __init__(self, function: Callable[..., Any], text: str) -> None:
        self._call = function, (text,)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self._call


def _swelling() -> bytes:
    """Return an archive as PyTorch writes them, packed, of a tensor of 100 MB of zeros."""
    stream = io.BytesIO()
    plain = zipfile.ZipFile(io.BytesIO(_pickled({"a": torch.zeros(25_000_000)})))
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in plain.infolist():
            archive.writestr(member.filename, plain.read(member))
    return stream.getvalue()


def _in_folder(name: str, config: bytes, says: str) -> WeightsCase:
    def make(folder: Path) -> None:
        (folder / "net").mkdir()
        (folder / "net/model.safetensors").write_bytes(_safe())
        (folder / "net/config.json").write_bytes(config)

    return WeightsCase(name=name, file="net", make=make, says=says)


def _beyond_reason() -> bytes:
    small = {f"graphConv_{name}.lins.0.weight": torch.zeros(1, 1) for name in ("up6", "up4")}
    return save({_MU: torch.zeros(5000, 128, dtype=torch.float16), **small})


_MU: Final = "encoder.fc_mu.weight"
_DAMAGED: Final = "truncated, damaged or no plain weight file"
_TORN: Final = "a pickle that is cut off, or holds more than tensors"
_POINTER: Final = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"

CASES: Final = (
    # the file
    WeightsCase(name="no such file", make=lambda _: None, says="no such file", exit_code=2),
    WeightsCase(
        name="a folder without weights",
        make=lambda folder: (folder / "net").mkdir(),
        file="net",
        says="holds neither model.safetensors nor pytorch_model.bin",
        exit_code=2,
    ),
    _file("an image in place of weights", b"\x89PNG\r\n\x1a\n", "expected a file ending in", file="w.png"),
    _file("a page of HTML named .safetensors", b"<!DOCTYPE html><html>401</html>", _DAMAGED),
    _file("a page of HTML named .bin", b"<!DOCTYPE html><html>401</html>", _TORN, file="w.bin"),
    _file("a pointer of Git LFS in place of the file", _POINTER, _DAMAGED),
    # safetensors
    _file("safetensors: empty", b"", _DAMAGED),
    _file("safetensors: cut off in the middle", lambda: _safe()[: len(_safe()) // 2], _DAMAGED),
    _file("safetensors: its last byte cut off", lambda: _safe()[:-1], _DAMAGED),
    _file("safetensors: a header longer than the file", lambda: _header({}, 1 << 40), _DAMAGED),
    _file("safetensors: a header of 2⁶⁴ − 1 bytes", lambda: _header({}, (1 << 64) - 1), _DAMAGED),
    _file("safetensors: a header that is no JSON", _header(b"{{{"), _DAMAGED),
    _file("safetensors: a header nested 100,000 deep", _header(b'{"a":' + b"[" * 100_000), _DAMAGED),
    _file(
        "safetensors: a name twice",
        _header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
        ),
        _DAMAGED,
    ),
    _file(
        "safetensors: two tensors over the same bytes",
        _header({"a": _tensor([4], 0, 16), "b": _tensor([4], 8, 24)}),
        _DAMAGED,
    ),
    _file("safetensors: a tensor beyond the end", _header({"a": _tensor([4], 1 << 20, (1 << 20) + 16)}), _DAMAGED),
    _file(
        "safetensors: a tensor of 2⁴⁰ numbers in 4 kB", _header({_MU: _tensor([1 << 20, 1 << 20], 0, 4096)}), _DAMAGED
    ),
    _file("safetensors: no tensor in it", save({}), "is missing: not the weights of a HybridGNet"),
    # numbers and shapes
    _file(
        "weights that are NaN",
        lambda: _safe(dec_lin__bias=_state()["dec_lin.bias"] * torch.nan),
        "dec_lin.bias holds values that are no finite numbers",
    ),
    _file(
        "weights that are infinite",
        lambda: _safe(dec_lin__bias=_state()["dec_lin.bias"] + torch.inf),
        "dec_lin.bias holds values that are no finite numbers",
    ),
    _file(
        "weights that are whole numbers",
        lambda: _safe(dec_lin__bias=_state()["dec_lin.bias"].int()),
        "dec_lin.bias holds values that are no finite numbers",
    ),
    _file("a tensor missing", lambda: _safe(dec_lin__bias=None), "dec_lin.bias is missing"),
    _file(
        "a tensor of another shape", lambda: _safe(dec_lin__bias=torch.zeros(7)), "dec_lin.bias has shape [7], expected"
    ),
    _file("a tensor too many", lambda: _safe(extra=torch.zeros(7)), "extra is no tensor of this network"),
    _file(
        "another network",
        save({"conv1.weight": torch.zeros(3, 3)}),
        "not the weights of a HybridGNet; the first tensor in it is conv1.weight",
    ),
    _file("shapes of a network beyond reason", _beyond_reason, "its shapes imply latents 5000; expected 4096 at most"),
    # what it says of itself
    _file("its configuration contradicts its tensors", lambda: _safe({"size": 1024}), "its configuration says"),
    _file("its configuration no JSON", lambda: _safe("{"), "its configuration is damaged"),
    _file("its configuration nested 100,000 deep", lambda: _safe("[" * 100_000), "its configuration is damaged"),
    _file("its configuration of another program", lambda: _safe({"hidden": 3}), "its configuration is damaged"),
    _in_folder("a config.json that contradicts the tensors", b'{"latents": 999}', "says latents = 999"),
    _in_folder("a config.json that is no JSON", b"{", "config.json is no JSON"),
    _in_folder("a config.json nested 100,000 deep", b"[" * 100_000, "config.json is no JSON"),
    # pickles
    _file(
        "a pickle that calls os.system", lambda: _pickled({"a": _Runs(os.system, f"touch {RAN}")}), _TORN, file="w.bin"
    ),
    _file("a pickle that calls eval", lambda: _pickled({"a": _Runs(eval, f"open('{RAN}', 'w')")}), _TORN, file="w.pt"),
    _file(
        "an old pickle that calls exec",
        lambda: _pickled({"a": _Runs(exec, f"open('{RAN}', 'w')")}, _use_new_zipfile_serialization=False),
        _TORN,
        file="w.pth",
    ),
    _file(
        "a bare pickle that calls os.system",
        lambda: pickle.dumps(_Runs(os.system, f"touch {RAN}")),
        _TORN,
        file="w.bin",
    ),
    _file("a pickle, cut off in the middle", lambda: _pickled(_state())[:20_000], _DAMAGED, file="w.bin"),
    _file("a pickle of a list", lambda: _pickled([1, 2]), "expected a dictionary of tensors, found list", file="w.bin"),
    _file("a pickle of numbers by name", lambda: _pickled({"a": 1.5}), "found float at 'a'", file="w.bin"),
    _file(
        "a pickle of sparse tensors",
        lambda: _pickled({_MU: torch.zeros(4, 4).to_sparse()}),
        "is no plain tensor",
        file="w.bin",
    ),
    _file(
        "a pickle of 2⁴⁰ numbers that lie on one",
        lambda: _pickled({_MU: torch.zeros(1).expand(1 << 20, 1 << 20)}),
        "more than the file holds",
        file="w.bin",
    ),
    _file("a zip bomb: 100 MB of zeros", _swelling, "an archive that unpacks to", file="w.bin"),
)
