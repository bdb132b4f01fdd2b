"""A small network that tells a film from its mirror image: whether the patient's left is on the viewer's right.

HybridGNet cannot say it, having seen films the right way round alone. This one looks at a film in 80 px, enough for
the heart's tip, the arch of the aorta, the domes and the air of the stomach. It is asked about the film and about its
mirror image, and what it says of the one counts against what it says of the other: the odds of a mirrored film are
those of the film, turned round, and a symmetrical one has none.
"""

from __future__ import annotations

import functools
from importlib.resources import files as package_files
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

SIDE: Final = 80
_CHANNELS: Final = (16, 32, 48, 64)
_CELLS: Final = 4
_HIDDEN: Final = 32
_DROPOUT: Final = 0.3


class SideNet(nn.Module):
    """The log odds that films are the right way round and not mirrored."""

    def __init__(self) -> None:
        super().__init__()
        blocks = zip((1, *_CHANNELS[:-1]), _CHANNELS, strict=True)
        self.maps = nn.Sequential(*(_block(before, after) for before, after in blocks))
        self.head = nn.Sequential(
            nn.Dropout(_DROPOUT),
            nn.Linear(_CHANNELS[-1] * _CELLS**2, _HIDDEN),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(_HIDDEN, 1),
        )

    def forward(self, films: Tensor) -> Tensor:
        """[B, 1, H, H] in 0 … 1, of any size → log odds [B]."""
        small = functional.adaptive_avg_pool2d(films, SIDE)
        spread, mean = torch.std_mean(small, dim=(1, 2, 3), keepdim=True)
        both = (small - mean) / (spread + 1e-3)
        films_say, mirrored_say = self._say(torch.cat([both, both.flip(-1)])).chunk(2)
        return films_say - mirrored_say

    def _say(self, small: Tensor) -> Tensor:
        return self.head(functional.adaptive_avg_pool2d(self.maps(small), _CELLS).flatten(1))[:, 0]


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def sides_path() -> Path:
    """Return where the weights of the network lie that ships."""
    return Path(str(package_files("cxu.model"))) / "bundled" / "sides.safetensors"


@functools.cache
def load_sides() -> SideNet:
    """Return the network that ships, on the CPU."""
    model = SideNet()
    model.load_state_dict({name: values.float() for name, values in load_file(sides_path()).items()}, strict=False)
    return model.eval()


def side_odds(pixels: npt.NDArray[np.float32]) -> float:
    """Return the log odds that a film is the right way round: above 0 it seems so, below it seems mirrored.

    Parameters
    ----------
    pixels
        [S, S] in 0 … 1, as the networks take it.
    """
    with torch.inference_mode():
        return float(load_sides()(torch.from_numpy(pixels)[None, None])[0])
