"""A table → one COCO file of object instances, which pycocotools reads; streamed, a block of rows at a time.

Source: the annotation format of COCO (https://cocodataset.org/#format-data) and what pycocotools makes of it. There a
pixel covers ``[x, x + 1)``, so polygons are half a pixel further right and down than landmarks, which count from the
pixel's centre.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from cxu import codec
from cxu.anatomy import ORGANS, Organ
from cxu.export.blocks import ExportReport, Progress, block_tasks, join_blocks, open_whole
from cxu.export.drawing import Account, BlockTask, DrawnRow, draw_rows, ring_of
from cxu.export.parts import Rendered
from cxu.export.plan import ExportPlan, check_free
from cxu.frame import Box
from cxu.masks import OrganMask
from cxu.window import Window, column_edges

_CENTRE: Final = 0.5  # of a pixel, where its corner is a whole number
_DECIMALS: Final = 3
_BETWEEN: Final = b",\n"
_SUPERCATEGORIES: Final = {"right_lung": "lung", "left_lung": "lung", "heart": "heart"}


def export_coco(
    plan: ExportPlan, *, workers: int = 1, overwrite: bool = False, progress: Progress = lambda _: None
) -> ExportReport:
    """Write the file of a plan, whole or not at all; memory is bounded by some blocks of rows.

    Raises
    ------
    OutputExistsError
        If it is there and ``overwrite`` is not given.
    """
    check_free(plan.out, overwrite=overwrite)
    report = ExportReport()
    with open_whole(plan, plan.out) as (stream, parts):
        stream.write(_head(plan))
        # annotations come behind all images: they wait in a file without a name, which goes with the process
        with tempfile.TemporaryFile(dir=plan.out.parent) as annotations:
            join_blocks(
                _render,
                block_tasks(plan, plan.options.rle),
                [stream, annotations],
                report,
                parts=parts,
                between=_BETWEEN,
                workers=workers,
                progress=progress,
            )
            stream.write(b'\n],\n"annotations": [\n')
            annotations.seek(0)
            shutil.copyfileobj(annotations, stream)
        stream.write(b"\n]}\n")
    report.add_file(plan.out)
    return report


def _head(plan: ExportPlan) -> bytes:
    info = {
        "description": "Lungs and heart of chest radiographs, outlines from landmarks",
        "version": plan.facts["version"],
        "cxu": plan.facts,
    }
    categories = [
        {"id": organ.label, "name": organ.name, "supercategory": _SUPERCATEGORIES[organ.name]} for organ in ORGANS
    ]
    parts = {"info": info, "licenses": [], "categories": categories}
    lines = ",\n".join(f'"{name}": {json.dumps(content)}' for name, content in parts.items())
    return f'{{{lines},\n"images": [\n'.encode()


def _render(task: BlockTask) -> Rendered:
    """Return the images and the annotations of a block."""
    account = Account()
    images, annotations, counts = [], [], []
    for row in draw_rows(task, account):
        if not row.usable:  # an image without annotations would say that nothing is there
            account.leave_out(row)
            continue
        account.count(row)
        images.append(_image(row))
        for organ in row.usable:
            height, width = row.placement.shape_hw
            counts.append(codec.coco_counts(column_edges(row.organs[organ.name].window), height * width))
            annotations.append(_annotation(row, organ, area=int(counts[-1][1::2].sum())))
    if task.settings:
        texts = codec.format_coco(counts).to_pylist()
        sizes = {image["id"]: (image["height"], image["width"]) for image in images}
        for annotation, text in zip(annotations, texts, strict=True):
            height, width = sizes[annotation["image_id"]]
            annotation["segmentation"] = {"size": [height, width], "counts": text}
    return Rendered((_json_items(images), _json_items(annotations)), account)


def _json_items(items: Sequence[dict[str, Any]]) -> bytes:
    return ",\n".join(map(json.dumps, items)).encode()


def _image(row: DrawnRow) -> dict[str, Any]:
    height, width = row.placement.shape_hw
    return {
        "id": row.number,
        "file_name": row.key.image_id if row.image is None else _printable(str(row.image.relative)),
        "width": width,
        "height": height,
        "source": row.key.source,
        "image_id": row.key.image_id,
        "frame": row.frame,
        "unusable": row.unusable,
        **row.facts,
    }


def _printable(name: str) -> str:
    """Return a file name that need not be UTF-8 as text that is."""
    return name.encode("utf-8", "backslashreplace").decode()


def _annotation(row: DrawnRow, organ: Organ, *, area: int) -> dict[str, Any]:
    mask = row.organs[organ.name]
    return {
        "id": len(ORGANS) * (row.number - 1) + organ.label,
        "image_id": row.number,
        "category_id": organ.label,
        "iscrowd": 0,
        "segmentation": [polygon_of(mask)],
        "area": area,
        "bbox": bbox_of(mask),
        "usable": mask.usable,
        "crosses_itself": row.crossing[organ.name],
        **row.uncertainty(organ),
    }


def polygon_of(mask: OrganMask) -> list[float]:
    """Return x0, y0, x1, y1, … of an organ's outline in COCO's pixels, to a thousandth of one."""
    corners: list[float] = np.round(ring_of(mask).astype(np.float64) + _CENTRE, _DECIMALS).ravel().tolist()
    return corners


def bbox_of(mask: OrganMask) -> list[int]:
    """Return left, top, width and height of a mask's pixels, zeros where it has none."""
    box, (height, width) = mask.box, mask.shape_hw
    if not (box.left >= 0 and box.top >= 0 and box.right <= width and box.bottom <= height):
        box = _box_of_pixels(mask.window)  # what is cut off at the border need not reach the corners that remain
    return [box.left, box.top, box.width, box.height]


def _box_of_pixels(window: Window) -> Box:
    rows, columns = np.flatnonzero(window.pixels.any(axis=1)), np.flatnonzero(window.pixels.any(axis=0))
    if not rows.size:
        return Box(0, 0, 0, 0)
    left, top, right, bottom = (int(place) for place in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return Box(window.left + left, window.top + top, window.left + right, window.top + bottom)
