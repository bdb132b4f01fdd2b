"""The state of a run on disk: one whole file, from which the same run continues."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cxu import files
from cxu.errors import FormatError, OutputExistsError

CHECKPOINT_NAME = "checkpoint.pt"


@dataclass
class State:
    """All that a run needs to continue; random numbers are functions of seed and step, so none are kept.

    Attributes
    ----------
    model, average, optimiser
        State dictionaries; ``average`` is empty where no average is kept.
    step, seconds
        Steps done, and the time the loop took.
    sums, since
        Loss parts added up since the last line of the table, and over how many steps.
    lines
        The lines of the table so far.
    """

    model: dict[str, Any]
    average: dict[str, Any]
    optimiser: dict[str, Any]
    step: int
    seconds: float
    sums: torch.Tensor
    since: int
    lines: list[dict[str, float | int | None]]


def write_checkpoint(folder: Path, state: State, identity: Mapping[str, Any]) -> None:
    """Write the state, and what the run is, into the folder: a whole file or none."""
    with files.replacing(folder / CHECKPOINT_NAME) as temporary:
        torch.save({"identity": dict(identity), "state": vars(state)}, temporary)


def read_checkpoint(folder: Path, identity: Mapping[str, Any]) -> State | None:
    """Return the state that the same run left in the folder, on the CPU; None where there is none.

    Raises
    ------
    OutputExistsError
        If the folder holds another run; the message names what differs.
    FormatError
        If the file is damaged.
    """
    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        there, state = content["identity"], State(**content["state"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, zipfile.BadZipFile):
        raise FormatError(f"{path} is damaged, or no checkpoint of a run; remove it to begin anew") from None
    for name, value in identity.items():
        if name not in there:
            raise OutputExistsError(
                f"{folder} holds a run begun by an older cxu, which knew no {name}: give another folder, or remove it"
            )
        if there.get(name) != value:
            raise OutputExistsError(
                f"{folder} holds another run: its {name} is {there.get(name)!r}, not {value!r}. "
                "Give another folder, or the command that began this one"
            )
    return state
