"""Rendered blocks that wait to be joined: ``<out>.parts/`` beside the file, one whole file a block.

What is finished is found there by the same command after an interruption. A part is a line of JSON, the account and the
sizes of its texts, and behind it the texts, compressed.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import pyarrow as pa

from cxu import files
from cxu.export.drawing import Account

_KEY_HEX: Final = 12
_CODEC: Final = "zstd"


@dataclass(frozen=True)
class Rendered:
    """A block as text: one for each list that it adds to, empty where it adds nothing; and its account."""

    texts: tuple[bytes, ...]
    account: Account


@dataclass(frozen=True)
class Parts:
    """The parts of one file.

    Attributes
    ----------
    folder
        Absolute.
    key
        Hash of all that the file depends on but its images: parts of another table never pass for its own.
    """

    folder: Path
    key: str

    @classmethod
    def beside(cls, out: Path, key: str) -> Self:
        """Return the parts of the file ``out``."""
        return cls(out.with_name(f"{out.name}.parts").absolute(), key[:_KEY_HEX])

    def path(self, block: str, stamp: str) -> Path:
        """Return where a block is once it is rendered for images of that stamp."""
        return self.folder / f"{block}-{self.key}-{stamp[:_KEY_HEX]}"

    def begin(self) -> None:
        """Make the folder, and clear what an interrupted run left half-written or half-removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(self.folder)
        for removed in self.folder.parent.glob(f"{files.TEMP_PREFIX}*-{self.folder.name}"):
            shutil.rmtree(removed, ignore_errors=True)

    def remove(self) -> None:
        """Remove the parts, and with them those of a table that has changed since."""
        doomed = files.temporary_name(self.folder)
        with suppress(FileNotFoundError):
            self.folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Remove the folder where nothing is finished."""
        with suppress(OSError):
            self.folder.rmdir()


def write_part(path: Path, rendered: Rendered) -> None:
    """Write a rendered block, a whole file or none."""
    head = {"account": rendered.account.as_json(), "sizes": [len(text) for text in rendered.texts]}
    packed = pa.compress(b"".join(rendered.texts), codec=_CODEC, asbytes=True)
    files.write_bytes(path, json.dumps(head).encode() + b"\n" + packed)


def read_part(path: Path) -> Rendered:
    """Return a rendered block: the inverse of :func:`write_part`."""
    line, _, packed = path.read_bytes().partition(b"\n")
    head = json.loads(line)
    joined = pa.decompress(packed, decompressed_size=sum(head["sizes"]), codec=_CODEC, asbytes=True)
    texts, start = [], 0
    for size in head["sizes"]:
        texts.append(joined[start : start + size])
        start += size
    return Rendered(tuple(texts), Account.from_json(head["account"]))
