"""Percentiles of node uncertainty by source and model, exact, with memory for a shard: counted, then gathered."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu.anatomy import ORGAN_NAMES, OrganName
from cxu.criteria import Criteria, first_failures, group_rows, node_sigma, row_steps
from cxu.engine import Pool
from cxu.flow import SigmaSpread, count_sigma, sigma_within
from cxu.report.population import Part
from cxu.thresholds import Limit, OrganLimits, Thresholds

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Key = tuple[str, str]  # source, model_id
Organs = tuple[OrganName, ...]  # whose nodes a percentile is taken over together

# what limits of nodes need of a row
READ: Final = (
    "source",
    "frame",
    "frame_side",
    "model_id",
    "n_samples",
    "sigma_xy",
    "sigma_model_px",
    "radius90_px",
)


def limited_to(thresholds: Thresholds, percentile: float) -> Thresholds:
    """Return thresholds with a percentile over the nodes of all organs, as ``--max-std p80`` asks for it."""
    limit = Limit(percentile, percentile=True, pool=ORGAN_NAMES)
    return replace(thresholds, max_std=dict.fromkeys(ORGAN_NAMES, limit))


def resolve_percentiles(
    parts: Sequence[Part],
    thresholds: Thresholds,
    percentiles: Sequence[float],
    pool: Pool,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[float, tuple[OrganLimits, ...]]:
    """Return for each percentile the px that ``--max-std`` comes to, by source and model, as ``cxu filter`` has it.

    Parameters
    ----------
    parts
        The rows that came to the limits.
    thresholds
        What else they are asked; the organs that decide.
    percentiles
        From 0 to 100.
    pool
        Where shards are read.
    progress
        Called with the rows read, twice for each.

    Raises
    ------
    UsageError
        If rows have no standard deviations.
    """
    asked, shares = limited_to(thresholds, percentiles[0]), [percentile / 100 for percentile in percentiles]
    together = _counted_together(thresholds.organs)
    spreads: dict[Key, SigmaSpread] = defaultdict(lambda: SigmaSpread([(organs, shares) for organs in together]))
    parts_of: dict[Key, list[Part]] = defaultdict(list)
    for part, counts in zip(parts, pool.run(functools.partial(_count, asked), parts), strict=True):
        for key, of_key in counts.items():
            spreads[key].count(of_key)
            parts_of[key].append(part)
        progress(part.shard.rows)
    resolved: dict[Key, dict[OrganName, list[float]]] = {}
    for key, spread in sorted(spreads.items(), key=lambda item: item[0]):
        for found in pool.run(functools.partial(_within, asked, key, spread.wanted), parts_of[key]):
            spread.keep(found)
        values = spread.quantiles()
        resolved[key] = {organ: px for organs, px in zip(together, values, strict=True) for organ in organs}
        progress(sum(part.shard.rows for part in parts_of[key]))
    return {
        percentile: tuple(
            OrganLimits(*key, {organ: px[organ][index] for organ in ORGAN_NAMES}) for key, px in resolved.items()
        )
        for index, percentile in enumerate(percentiles)
    }


def _counted_together(deciding: Organs) -> list[Organs]:
    """Return whose nodes a percentile is taken over: those of the organs that decide, and each other's own."""
    return [deciding, *((name,) for name in ORGAN_NAMES if name not in deciding)]


def _count(asked: Thresholds, part: Part) -> dict[Key, IntArray]:
    """Return how the uncertainties of each source and model in a shard are spread: a shard function."""
    return {key: count_sigma(sigma) for key, sigma in _sigmas(asked, part)}


def _within(asked: Thresholds, key: Key, wanted: BoolArray, part: Part) -> list[FloatArray]:
    """Return the uncertainties of a source and model in a shard that lie in the ranges wanted: a shard function."""
    (sigma,) = [sigma for found, sigma in _sigmas(asked, part) if found == key]
    return sigma_within(sigma, wanted)


def _sigmas(asked: Thresholds, part: Part) -> Iterator[tuple[Key, FloatArray]]:
    """Yield each source and model of a shard with the node uncertainty [n, 120] of its rows, where it is known."""
    rows = part.read(READ)
    steps = row_steps(Criteria(asked))
    rows = rows.filter(pa.array(first_failures(rows, steps) == len(steps)))
    if len(rows):
        sigma = node_sigma(rows, asked.unit)
        yield from ((key, sigma[where]) for key, where in group_rows(rows))
