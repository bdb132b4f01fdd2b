"""What a table holds, in numbers: rows, sizes, uncertainty by organ, RCA, provenance."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from cxu import store, table
from cxu.anatomy import N_ORGANS, ORGAN_NAMES, ORGANS
from cxu.criteria import has_sigma
from cxu.flow import QUANTILES, SigmaPool

COUNTED: Final = ("source", "frame", "model_id", "n_samples", "repo", "revision", "view", "quality")
SCALARS: Final = ("rca_mean", "rca_max", "mean_sigma_model_px")
_READ: Final = (*COUNTED, *SCALARS, "rca_swapped", "height", "width", "sigma_model_px", "confident", "usable")


class _Description:
    """Numbers gathered shard by shard."""

    def __init__(self, n_rows: int) -> None:
        self.counts: dict[str, Counter[Any]] = {name: Counter() for name in COUNTED}
        self.flags: Counter[str] = Counter(without_sigma=0, without_size=0, rca_swapped=0)
        self.pool = SigmaPool(n_rows)
        self.scalars: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in SCALARS}
        self.kept = np.zeros((2, N_ORGANS))

    def add(self, rows: Any) -> None:
        for name, counter in self.counts.items():
            for entry in pc.value_counts(rows[name]).to_pylist():
                counter[entry["values"]] += entry["counts"]
        for name, values in self.scalars.items():
            values.append(table.scalar_column(rows, name))
        sigma = table.list_column(rows, "sigma_model_px")
        known = has_sigma(sigma)
        self.pool.add(("", ""), sigma[known])
        self.flags["without_sigma"] += int(np.count_nonzero(~known))
        self.flags["without_size"] += int(pc.or_(rows["height"].is_null(), rows["width"].is_null()).to_numpy().sum())
        self.flags["rca_swapped"] += int(np.count_nonzero(table.scalar_column(rows, "rca_swapped")))
        self.kept[0] += [table.confident_of(rows)[:, organ.nodes].mean(axis=1).sum() for organ in ORGANS]
        self.kept[1] += table.usable_of(rows).sum(axis=0)


def describe_table(stored: store.StoredTable) -> dict[str, Any]:
    """Return a description of a table as plain JSON values.

    Keys: ``name``, ``kind``, ``rows``; counts by ``source``, ``frame``, ``model_id``, ``n_samples``, ``repo``,
    ``revision``, ``view``, ``quality`` (None for null); ``sigma_model_px``: quantiles 5, 25, 50, 75, 95 % of node
    uncertainty by organ and of all nodes, in px of the 1024 frame; the same quantiles of ``rca_mean``, ``rca_max`` and
    ``mean_sigma_model_px``, None where there are no values; how many rows are ``without_sigma``, ``without_size``,
    ``rca_swapped``; for a selection ``nodes_confident`` and ``organs_usable``, shares by organ; ``facts``: the file's
    own.
    """
    shards = stored.shards()
    n_rows = sum(shard.rows for shard in shards)
    found = _Description(n_rows)
    for shard in shards:
        found.add(shard.read(_READ))
    description: dict[str, Any] = {"name": stored.name, "kind": stored.kind, "rows": n_rows}
    description |= {name: dict(counter) for name, counter in found.counts.items()}
    description |= dict(found.flags)
    description["sigma_model_px"] = {
        name: values for name, values in found.pool.drain_quantiles(QUANTILES).items() if values
    }
    description |= {name: _quantiles(np.concatenate(parts or [np.empty(0)])) for name, parts in found.scalars.items()}
    if stored.kind == "selection":
        for key, totals in zip(("nodes_confident", "organs_usable"), found.kept / max(n_rows, 1), strict=True):
            description[key] = {name: round(float(share), 4) for name, share in zip(ORGAN_NAMES, totals, strict=True)}
    description["facts"] = stored.facts
    return description


def _quantiles(values: npt.NDArray[np.float64]) -> list[float] | None:
    """Return quantiles of the values that are there, or None where there are none."""
    present = values[~np.isnan(values)]
    return [round(float(value), 4) for value in np.quantile(present, QUANTILES)] if present.size else None
