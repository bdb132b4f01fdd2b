"""Where a network runs, and what the machine must be told for it."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Final

import torch

from cxu.errors import UsageError

# of glibc's malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
_DEFAULT_TRIM_THRESHOLD: Final = 128 * 1024
_DEFAULT_MMAP_MAX: Final = 65_536
_KEPT_BYTES: Final = 1 << 30


def find_device(name: str) -> torch.device:
    """Return the device ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; ``auto`` is CUDA where there is one, else the CPU.

    Raises
    ------
    UsageError
        If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps")
    if device.type == "cpu" and device.index is not None:
        raise UsageError(f"--device {name}: the CPU is one device; expected cpu")
    n_cuda = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= n_cuda:
        raise UsageError(
            f"--device {name}: torch {torch.__version__} sees {n_cuda} CUDA devices here; try --device cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: torch sees no Apple GPU here; try --device cpu")
    return device


def find_devices(name: str, workers: int) -> tuple[str, ...]:
    """Return the devices of some worker processes, by name: the k-th process takes the k-th, and so on round.

    ``auto`` and ``cuda`` give each process a GPU of its own, as far as there are; any other name is one for all.

    Raises
    ------
    UsageError
        As :func:`find_device`.
    """
    device = find_device(name)
    if workers > 1 and device.type == "cuda" and name in ("auto", "cuda"):
        return tuple(f"cuda:{index}" for index in range(min(workers, torch.cuda.device_count())))
    return (str(device),)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let this process keep the memory that it frees within the block, where the C library is glibc.

    glibc hands large blocks back to the system, and gets and clears them anew for the maps of every image: measured,
    that took a quarter of the encoder's time. Afterwards glibc's own defaults hold.
    """
    try:
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        set_option, give_back = (libc.mallopt, libc.malloc_trim) if libc else (None, None)
    except (AttributeError, OSError):  # another C library
        set_option = give_back = None
    if set_option is None or give_back is None:
        yield
        return
    set_option(_M_MMAP_MAX, 0)
    set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    try:
        yield
    finally:
        set_option(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
        set_option(_M_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
        give_back(0)
