"""Whether sigma and the calibrated radii say what they mean, on annotated images.

A radius is right when it holds the true node in 90 of 100 cases: over all nodes, and as far as possible for each organ,
each data set and each size of sigma by itself. Sigma, as the standard deviation of a Gaussian, says the same of every
share, and is held against what was observed. Intervals are 95 % of a bootstrap over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu.anatomy import HEART, LEFT_LUNG, N_NODES, RIGHT_LUNG
from cxu.errors import UsageError
from cxu.stats import Interval, bootstrap

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

NOMINAL: Final = 0.9
N_DECILES: Final = 10
SHARES: Final = (0.5, 0.68, 0.8, 0.9, 0.95)
_ORGANS: Final = {
    "right_lung": (RIGHT_LUNG,),
    "left_lung": (LEFT_LUNG,),
    "lungs": (RIGHT_LUNG, LEFT_LUNG),
    "heart": (HEART,),
}


@dataclass(frozen=True)
class Coverage:
    """How often true nodes lay within their radius.

    Attributes
    ----------
    name
        Of what: ``all``, an organ, a data set, ``sigma decile 1``.
    images, nodes
        How many.
    share
        Of nodes within, with its interval.
    radius_px, sigma_px
        Medians, px of the 1024 model frame.
    """

    name: str
    images: int
    nodes: int
    share: Interval
    radius_px: float
    sigma_px: float


@dataclass(frozen=True)
class SigmaScale:
    """What sigma would have to be multiplied with to be the standard deviation of the errors, 1 where it is right."""

    name: str
    images: int
    nodes: int
    scale: Interval


@dataclass(frozen=True)
class SigmaShare:
    """The share of nodes that a Gaussian of that sigma would have within some distance, and what was observed."""

    expected: float
    observed: Interval


@dataclass(frozen=True)
class CoverageReport:
    """What was measured; ``radii`` is empty where the rows have no radii."""

    images: int
    radii: tuple[Coverage, ...]
    scales: tuple[SigmaScale, ...]
    shares: tuple[SigmaShare, ...]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Annotated images beside what was predicted for them.

    Attributes
    ----------
    error_px
        Distance of each node from the truth [n, 120], px of the 1024 model frame; NaN where not annotated.
    sigma_px
        Node uncertainty [n, 120] in the same px.
    radius_px
        Calibrated radius [n, 120] in the same px, NaN where there is none.
    groups
        Data set of each image [n].
    image_id
        Texts [n].
    """

    error_px: FloatArray
    sigma_px: FloatArray
    radius_px: FloatArray
    groups: Sequence[str]
    image_id: Sequence[str]


def measure_coverage(pairs: Pairs) -> CoverageReport:
    """Return how often radii hold the truth, and what sigma is worth as a standard deviation.

    Raises
    ------
    UsageError
        If no image has both an annotated node and its sigma.
    """
    known = np.isfinite(pairs.error_px) & np.isfinite(pairs.sigma_px)
    if not known.any():
        raise UsageError("no image has an annotated node with a standard deviation: nothing to compare")
    with_radius = known & np.isfinite(pairs.radius_px)
    parts = [("all", known), *_by_organ(known), *_by_group(known, pairs.groups)]
    radii = []
    if with_radius.any():
        radii = [(name, of & with_radius) for name, of in (*parts, *_by_decile(with_radius, pairs.sigma_px))]
    return CoverageReport(
        images=int(known.any(axis=1).sum()),
        radii=tuple(_coverage(name, of, pairs) for name, of in radii if of.any()),
        scales=tuple(_scale(name, of, pairs) for name, of in parts if of.any()),
        shares=tuple(_share(expected, known, pairs) for expected in SHARES),
    )


def _by_organ(known: BoolArray) -> list[tuple[str, BoolArray]]:
    parts = []
    for name, organs in _ORGANS.items():
        nodes = np.zeros(N_NODES, np.bool_)
        for organ in organs:
            nodes[organ.nodes] = True
        parts.append((name, known & nodes))
    return parts


def _by_group(known: BoolArray, groups: Sequence[str]) -> list[tuple[str, BoolArray]]:
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        return []
    of = np.array(groups, dtype=object)
    return [(name, known & (of == name)[:, None]) for name in names]


def _by_decile(known: BoolArray, sigma_px: FloatArray) -> list[tuple[str, BoolArray]]:
    """Return the nodes by tenths of sigma, the most certain first."""
    edges = np.quantile(sigma_px[known], np.linspace(0, 1, N_DECILES + 1)[1:-1])
    decile = np.searchsorted(edges, np.where(known, sigma_px, -np.inf), side="left")
    return [(f"sigma decile {index + 1}", known & (decile == index)) for index in range(N_DECILES)]


def _coverage(name: str, of: BoolArray, pairs: Pairs) -> Coverage:
    inside = of & (pairs.error_px <= pairs.radius_px)
    share = _share_of_nodes(inside, of)
    medians = [float(np.median(values[of])) for values in (pairs.radius_px, pairs.sigma_px)]
    return Coverage(name, int(of.any(axis=1).sum()), int(of.sum()), share, *medians)


def _share_of_nodes(inside: BoolArray, of: BoolArray) -> Interval:
    images = np.flatnonzero(of.any(axis=1))
    hits, counts = inside[images].sum(axis=1), of[images].sum(axis=1)
    return bootstrap(lambda drawn: float(hits[drawn].sum() / counts[drawn].sum()), len(images))


def _scale(name: str, of: BoolArray, pairs: Pairs) -> SigmaScale:
    images = np.flatnonzero(of.any(axis=1))
    # a distance has two coordinates, each of a variance of sigma²
    ratios = np.where(of, np.square(pairs.error_px / pairs.sigma_px) / 2, 0.0)[images].sum(axis=1)
    counts = of[images].sum(axis=1)
    scale = bootstrap(lambda drawn: float(np.sqrt(ratios[drawn].sum() / counts[drawn].sum())), len(images))
    return SigmaScale(name, len(images), int(of.sum()), scale)


def _share(expected: float, known: BoolArray, pairs: Pairs) -> SigmaShare:
    # the distance of two independent Gaussian coordinates: Rayleigh's distribution
    reach = pairs.sigma_px * np.sqrt(-2 * np.log(1 - expected))
    return SigmaShare(expected, _share_of_nodes(known & (pairs.error_px <= reach), known))


def node_table(pairs: Pairs) -> pa.Table:
    """Return a row for each annotated node: image, data set, node, error, sigma, radius (null where there is none)."""
    image, node = np.nonzero(np.isfinite(pairs.error_px))
    return pa.table(
        {
            "image_id": pa.array(pairs.image_id, pa.string()).take(pa.array(image)),
            "group": pa.array(pairs.groups, pa.string()).take(pa.array(image)),
            "node": pa.array(node, pa.int32()),
            "error_model_px": pa.array(pairs.error_px[image, node], pa.float32()),
            "sigma_model_px": pa.array(pairs.sigma_px[image, node], pa.float32(), from_pandas=True),
            "radius90_model_px": pa.array(pairs.radius_px[image, node], pa.float32(), from_pandas=True),
        }
    )
