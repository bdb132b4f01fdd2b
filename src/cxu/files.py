"""Names and writes that are safe: paths that stay inside their folder, files that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
import unicodedata
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from cxu.errors import OutputExistsError

TEMP_PREFIX: Final = ".cxu-tmp-"
RECORD: Final = "cxu.json"  # what an output folder says of itself
_MAX_NAME_BYTES = 200  # below the 255 of common file systems, with room for suffixes
_MAX_PATH_BYTES = 800  # below the 1024 that a whole path may have on some systems, with room for its folder
_KEPT_NAME_BYTES = 60  # of a longer name, before its hash
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"\\|?*%]')
_MACHINE: Final = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_UNTOUCHED_SECONDS: Final = 3600.0
_RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d) *(\..*)?$", re.IGNORECASE)


def safe_relative(identifier: str) -> PurePosixPath:
    r"""Return a relative path for an id that cannot leave the folder it is joined to.

    The id's own folders are kept. ``.`` and ``..`` parts, characters that some file system forbids, names reserved on
    Windows or here, and trailing dots or spaces are percent-encoded; empty parts vanish; names and paths too long end
    in a hash.

    Examples
    --------
    >>> str(safe_relative("train/patient00001/study1/view1_frontal"))
    'train/patient00001/study1/view1_frontal'
    >>> str(safe_relative("../../etc/passwd")), str(safe_relative("C:\\temp"))
    ('%2E%2E/%2E%2E/etc/passwd', 'C%3A%5Ctemp')
    """
    parts = [_safe_name(part) for part in identifier.split("/") if part]
    if sum(len(_encoded(part)) + 1 for part in parts) > _MAX_PATH_BYTES:
        parts = [_shortened(parts[0], identifier)]
    return PurePosixPath(*(parts or ["%"]))


def collision_key(path: str) -> str:
    """Return what two relative paths share where some file system takes them for one: of another case, or composed.

    Examples
    --------
    >>> collision_key("A/\u00e9.png") == collision_key("a/e\u0301.png")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def stays_below(folder: Path, name: str) -> bool:
    """Tell whether the file ``name`` lies below ``folder``, links followed."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or {"\0", "\\"} & set(name):
        return False
    return (folder / path).parent.resolve().is_relative_to(folder.resolve())


def check_below(folder: Path, planned: Iterable[str]) -> None:
    """Check that no link in ``folder`` leads files that are to be written there out of it.

    Raises
    ------
    OutputExistsError
        If one does.
    """
    for parent in {PurePosixPath(name).parent for name in planned}:
        if not stays_below(folder, f"{parent}/file"):
            raise OutputExistsError(
                f"{folder / parent} leads out of {folder}: remove that link, or choose another --out"
            )


def read_names(path: Path, folder: Path) -> list[str]:
    """Return the files below ``folder`` that a list in JSON names; none where it is missing or damaged.

    What is listed may be removed: a name that leads out of the folder is not ours.
    """
    try:
        names = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return []
    if not isinstance(names, list):
        return []
    return [name for name in names if isinstance(name, str) and stays_below(folder, name)]


def _safe_name(name: str) -> str:
    encoded = _UNSAFE.sub(lambda match: f"%{ord(match.group()):02X}", name)
    if not encoded.strip("."):
        encoded = "%2E" * len(encoded)
    if _RESERVED.match(encoded) or encoded.startswith(TEMP_PREFIX):
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    if encoded[-1] in ". ":
        encoded = f"{encoded[:-1]}%{ord(encoded[-1]):02X}"
    return _shortened(encoded, name) if len(_encoded(encoded)) > _MAX_NAME_BYTES else encoded


def _shortened(encoded: str, name: str) -> str:
    """Return the start of a name that is too long, and a hash of all of it."""
    start = _encoded(encoded)[:_KEPT_NAME_BYTES].decode("utf-8", "ignore")
    return f"{start}~{hashlib.sha256(_encoded(name)).hexdigest()[:16]}"


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def temporary_name(path: Path) -> Path:
    """Return a name beside ``path`` that is this process's own, also where those of other machines write there too."""
    return path.with_name(f"{TEMP_PREFIX}{os.getpid()}@{_MACHINE}-{path.name}"[:250])


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; on success the file there becomes ``path``, on failure it goes.

    A reader therefore sees the old file, the new one, or none, never a part of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_output(path: Path) -> Iterator[Path]:
    """Give a temporary name as :func:`replacing` does, once what killed runs left of the same output is gone.

    Looks through the folder: for the few files that a command ends with, not for one of thousands.
    """
    remove_leftovers(path.parent, {path.name})
    with replacing(path) as temporary:
        yield temporary


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or none."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, a whole file or none."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what an output folder says of itself: None where it says nothing, empty where that is damaged."""
    try:
        held = json.loads((folder / RECORD).read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def remove_temporaries(folder: Path) -> None:
    """Remove what an interrupted run left under temporary names in ``folder`` itself, not below it."""
    for leftover in folder.glob(f"{TEMP_PREFIX}*"):
        leftover.unlink(missing_ok=True)


def remove_leftovers(folder: Path, wanted: Container[str] | None = None) -> None:
    """Remove what interrupted runs left under the temporary names of files in ``folder``: of those ``wanted``, or any.

    What belongs to a process that runs stays: the same command may have been given twice, and jobs of an array write
    into one folder. Of the processes of another machine nothing is known: what they have not touched for an hour goes.
    """
    for leftover in folder.glob(f"{TEMP_PREFIX}*"):
        owner, _, name = leftover.name.removeprefix(TEMP_PREFIX).partition("-")
        process, _, machine = owner.partition("@")
        if wanted is not None and name not in wanted:
            continue
        if _is_running(process) if machine in ("", _MACHINE) else _is_recent(leftover):
            continue
        leftover.unlink(missing_ok=True)


def _is_running(process: str) -> bool:
    if os.name != "posix" or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _is_recent(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < _UNTOUCHED_SECONDS
    except FileNotFoundError:
        return False


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_of(content: Any) -> str:
    """Return the SHA-256 of a JSON-able value in its canonical form."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
