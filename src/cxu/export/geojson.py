"""A table → GeoJSON features, one an organ: a FeatureCollection, or a feature a line where the suffix is .geojsonl.

Source: RFC 7946. Coordinates are pixels x, y of the image, y downwards, pixel centres at whole numbers; there is no
place on Earth. ``objectType`` and ``classification`` are what QuPath reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from cxu.anatomy import ORGANS, Organ
from cxu.export.blocks import ExportReport, Progress, block_tasks, join_blocks, open_whole
from cxu.export.drawing import Account, BlockTask, DrawnRow, as_number, draw_rows, ring_of
from cxu.export.parts import Rendered
from cxu.export.plan import LINE_SUFFIX, ExportPlan, check_free
from cxu.masks import OrganMask

_AXES: Final = "pixels x, y of the image, y downwards, pixel centres at whole numbers"


def export_geojson(
    plan: ExportPlan, *, workers: int = 1, overwrite: bool = False, progress: Progress = lambda _: None
) -> ExportReport:
    """Write the file of a plan, whole or not at all; memory is bounded by some blocks of rows.

    Raises
    ------
    OutputExistsError
        If it is there and ``overwrite`` is not given.
    """
    check_free(plan.out, overwrite=overwrite)
    by_line = plan.out.suffix == LINE_SUFFIX
    report = ExportReport()
    with open_whole(plan, plan.out) as (stream, parts):
        stream.write(b"" if by_line else _head(plan))
        join_blocks(
            _render,
            block_tasks(plan, _Style(by_line=by_line, nodes=plan.options.nodes)),
            [stream],
            report,
            parts=parts,
            between=b"" if by_line else b",\n",
            workers=workers,
            progress=progress,
        )
        stream.write(b"" if by_line else b"\n]}\n")
    report.add_file(plan.out)
    return report


@dataclass(frozen=True)
class _Style:
    """How features are written: each on a line of its own or as parts of a list; with their nodes or without."""

    by_line: bool
    nodes: bool


def _head(plan: ExportPlan) -> bytes:
    facts = json.dumps({**plan.facts, "coordinates": _AXES})
    return f'{{"type": "FeatureCollection",\n"cxu": {facts},\n"features": [\n'.encode()


def _render(task: BlockTask) -> Rendered:
    """Return the features of a block."""
    account, style = Account(), task.settings
    features = []
    for row in draw_rows(task, account):
        account.count(row)
        features += [json.dumps(_feature(row, organ, nodes=style.nodes)) for organ in ORGANS]
    text = "".join(f"{feature}\n" for feature in features) if style.by_line else ",\n".join(features)
    return Rendered((text.encode(),), account)


def _feature(row: DrawnRow, organ: Organ, *, nodes: bool) -> dict[str, Any]:
    mask = row.organs[organ.name]
    name = organ.title if mask.usable else f"{organ.title} (unusable)"
    properties = {
        "objectType": "annotation",
        "classification": {"name": name, "color": list(organ.colour_rgb)},
        "source": row.key.source,
        "image_id": row.key.image_id,
        "organ": organ.name,
        "usable": mask.usable,
        "crosses_itself": row.crossing[organ.name],
        "frame": row.frame,
        "height": mask.shape_hw[0],
        "width": mask.shape_hw[1],
        **row.uncertainty(organ),
        **row.facts,
    }
    if nodes:
        drawn = row.nodes_of(organ)
        properties["nodes"] = drawn
        properties["sigma_px"] = [as_number(row.sigma_px[node]) for node in drawn]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [_ring(mask)]}, "properties": properties}


def _ring(mask: OrganMask) -> list[list[float]]:
    """Return the positions of an organ's outline, the first one again at the end, in what float32 reads back."""
    nodes = ring_of(mask)
    closed = np.concatenate([nodes, nodes[:1]]).astype(np.float32)
    # by way of the shortest text: as float64, a float32 has digits that say nothing
    numbers = pa.array(closed.ravel()).cast(pa.string()).cast(pa.float64()).to_numpy().reshape(-1, 2)
    positions: list[list[float]] = numbers.tolist()
    return positions
