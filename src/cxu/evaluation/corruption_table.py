"""How images answered to damage, as a table."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from cxu.evaluation.corruption import DamageReport, NodeResponse
from cxu.predict import Predictor

_NODE_COLUMNS: Final = (
    "nodes_inside",
    "nodes_outside",
    "sigma_inside_px",
    "sigma_outside_px",
    "error_inside_px",
    "error_outside_px",
)


def damage_rows(report: DamageReport, predictor: Predictor) -> pa.Table:
    """Return a row for each image and severity; the columns are described in ``docs/commands/evaluate-noise.md``."""
    steps = report.options.steps
    columns: dict[str, list[Any]] = {name: [] for name in ("source", "image_id")}
    for one in report.responses:
        columns["source"] += [one.image.source.name] * len(steps)
        columns["image_id"] += [one.image.image_id] * len(steps)
    columns["severity"] = [*steps] * len(report.responses)
    for name in ("score_px", "latent_sigma", "drift_px", "error_px"):
        columns[name] = [value for one in report.responses for value in getattr(one, name)]
    if report.options.damage == "occlusion":
        of_nodes = [_node_cells(one.nodes, k) for one in report.responses if one.nodes for k in range(len(steps))]
        columns |= {name: [cells[index] for cells in of_nodes] for index, name in enumerate(_NODE_COLUMNS)}
    arrays = {name: _column(name, values) for name, values in columns.items()}
    facts = {
        "damage": report.options.damage,
        "model_id": predictor.weights.model_id,
        "seed": predictor.options.seed,
        "n_samples": predictor.options.n_samples,
    }
    n_rows = len(columns["severity"])
    constant = {name: pa.repeat(pa.scalar(value), n_rows) for name, value in facts.items()}
    return pa.table({**arrays, **constant})


def _node_cells(nodes: NodeResponse, k: int) -> list[float]:
    """Return what one row says of the nodes inside and outside the squares: how many, and their means."""
    parts = (nodes.inside[k], nodes.outside[k])
    counts = [int(part.sum()) for part in parts]
    return counts + [_mean(values[k][part]) for values in (nodes.sigma_px, nodes.error_px) for part in parts]


def _mean(values: Any) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _column(name: str, values: list[Any]) -> pa.Array:
    if name in ("source", "image_id"):
        return pa.array(values, pa.string())
    kind = pa.int32() if name.startswith("nodes_") else pa.float64()
    return pa.array(np.array(values, np.float64), from_pandas=True).cast(kind)
