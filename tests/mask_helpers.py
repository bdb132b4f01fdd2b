"""What the tests of masks share: tiny organs worked out by hand, tables on disk, and plain readers."""

import io

import numpy as np
from PIL import Image

from builders import make_rows
from cxu import store, table
from cxu.anatomy import HEART, LEFT_LUNG, ORGANS, RIGHT_LUNG

SHARE_OF_NODES = {RIGHT_LUNG: (14, 14, 12, 4), LEFT_LUNG: (16, 15, 15, 4), HEART: (8, 8, 6, 4)}


def box_ring(organ, left, top, right, bottom):
    """Return an organ's nodes on the four corners of a box, in the order of its ring.

    Left top, right top, right bottom, left bottom; the last has four nodes, the longest gap that may be bridged.
    """
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return np.repeat(np.array(corners, np.float32), SHARE_OF_NODES[organ], axis=0)


def last_corner(organ):
    """Return which of the 120 nodes are the left bottom corner of a :func:`box_ring`."""
    nodes = np.zeros(120, bool)
    nodes[organ.stop - SHARE_OF_NODES[organ][-1] : organ.stop] = True
    return nodes


def tiny_chest():
    """Return landmarks [120, 2] in a frame of 12 × 10 px (width × height); the heart overlaps the left lung."""
    return np.concatenate(
        [box_ring(RIGHT_LUNG, 1, 1, 4, 6), box_ring(LEFT_LUNG, 7, 1, 10, 6), box_ring(HEART, 5, 5, 8, 8)]
    )


def tiny_rows(n_rows=1, *, sigma=0.5, confident=None, usable=None, **columns):
    """Return rows of :func:`tiny_chest` in the image frame."""
    sigma_xy = np.broadcast_to(np.asarray(sigma, np.float32), (n_rows, 120, 2)).copy()
    columns = {
        "height": 10,
        "width": 12,
        "frame": "image",
        "landmarks_xy": np.broadcast_to(tiny_chest(), (n_rows, 120, 2)),
        **table.sigma_columns(sigma_xy, np.full(n_rows, 12.0)),
        **columns,
    }
    rows = make_rows(n_rows, **columns)
    for name, values, width in (("confident", confident, 120), ("usable", usable, 3)):
        if values is not None:
            kind = table.field_of(name).type
            filled = np.broadcast_to(np.asarray(values, bool), (n_rows, width))
            rows = rows.append_column(table.field_of(name), table.lists_from_numpy(filled, kind))
    return rows


def picture(text):
    """Return the pixels that a drawing of characters means: ``.`` 0, ``#`` 255, digits themselves."""
    lines = text.split()
    values = {".": 0, "#": 255}
    return np.array([[values.get(c, c) for c in line] for line in lines], np.uint8)


def store_rows(path, rows, *, group_rows=None):
    """Write rows as a Parquet table, ``group_rows`` to a shard, and open it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with store.table_writer(path, rows.schema) as writer:
        for start in range(0, len(rows), group_rows or max(len(rows), 1)):
            writer.write(rows.slice(start, group_rows))
    return store.open_table(path)


def read_png(source):
    """Return the pixels of a PNG file or of its bytes, by Pillow."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.array(image)


def tree(folder):
    """Return every file below a folder: its path there and its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def plain_labels(planes, usable, *, background=False):
    """Paint planes [3, H, W] of 0, 1 and 255 as the format says: lungs, heart, then all that is to be ignored."""
    labels = np.zeros(planes[0].shape, np.uint8)
    for organ, plane, is_usable in zip(ORGANS, planes, usable, strict=True):
        if is_usable:
            labels[plane == 1] = organ.label
    for plane, is_usable in zip(planes, usable, strict=True):
        if is_usable:
            labels[plane == 255] = 255
        elif not background:
            labels[plane == 1] = 255
    return labels
