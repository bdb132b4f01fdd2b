"""What the tests of crops share: noise as films, and organs that are boxes."""

import numpy as np
import pyarrow as pa
from PIL import Image

from builders import make_rows
from cxu import table
from cxu.anatomy import HEART, LEFT_LUNG, RIGHT_LUNG
from mask_helpers import box_ring, store_rows

IMAGE_HW = (240, 300)
# left, top, right, bottom of the outermost pixels
CORNERS = {"right_lung": (60, 50, 120, 170), "left_lung": (170, 60, 230, 190), "heart": (110, 120, 190, 200)}
TIGHT = {
    "right_lung": (60, 50, 121, 171),
    "left_lung": (170, 60, 231, 191),
    "heart": (110, 120, 191, 201),
    "lungs": (60, 50, 231, 191),
    "all": (60, 50, 231, 201),
}


def outlines():
    """Return the organs as landmarks [120, 2] in pixels of an image of :data:`IMAGE_HW`."""
    organs = ((RIGHT_LUNG, "right_lung"), (LEFT_LUNG, "left_lung"), (HEART, "heart"))
    return np.concatenate([box_ring(organ, *CORNERS[name]) for organ, name in organs])


def noise(shape_hw=IMAGE_HW, dtype=np.uint8, seed=0):
    """Return pixels of every level, none of them 0."""
    levels = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(1, levels, shape_hw, dtype, endpoint=True)


def save(path, grey, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(path, **options)
    return grey


def rows_of(ids=("a",), *, source="chestxray8", landmarks=None, confident=None, usable=None, **columns):
    """Return rows in the image frame, an organ a box."""
    n_rows = len(ids)
    landmarks = outlines() if landmarks is None else landmarks
    columns = {"frame": "image", "height": IMAGE_HW[0], "width": IMAGE_HW[1], **columns}
    xy = np.broadcast_to(np.asarray(landmarks, np.float32), (n_rows, 120, 2))
    rows = make_rows(n_rows, source=source, image_id=list(ids), landmarks_xy=xy, **columns)
    for name, values, width in (("confident", confident, 120), ("usable", usable, 3)):
        if values is not None:
            filled = np.broadcast_to(np.asarray(values, bool), (n_rows, width))
            rows = rows.append_column(table.field_of(name), table.lists_from_numpy(filled, table.field_of(name).type))
    return rows


def stored_rows(folder, *rows, group_rows=None):
    return store_rows(folder / "rows.parquet", pa.concat_tables(rows), group_rows=group_rows)


def read_crop(path):
    """Return the pixels of a PNG, by Pillow: uint8 for 8 bits, uint16 for 16."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode in {"L", "I;16"}
        return np.array(image).astype(np.uint8 if image.mode == "L" else np.uint16)
