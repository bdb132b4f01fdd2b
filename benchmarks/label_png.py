"""How fast label images become PNG: our run-by-run writer against OpenCV and Pillow at their fastest settings.

    python benchmarks/label_png.py

Draws 40 synthetic label images of 1024 px, encodes each by every writer in turn, and prints milliseconds and bytes an
image and, last, the ratio of OpenCV's best time to ours.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from cxu.anatomy import ORGANS
from cxu.png import encode_label_png
from cxu.raster import fill_polygon
from cxu.shape import load_shape_model, sample_shapes

N_IMAGES = 40
SIDE = 1024


def with_opencv(*settings: int) -> Callable[[np.ndarray], bytes]:
    """Return an OpenCV writer with these parameters."""
    return lambda labels: cv2.imencode(".png", labels, settings)[1].tobytes()


def with_pillow(labels: np.ndarray) -> bytes:
    """Encode with Pillow's fastest level."""
    content = io.BytesIO()
    Image.fromarray(labels).save(content, "PNG", compress_level=1)
    return content.getvalue()


def writers() -> dict[str, Callable[[np.ndarray], bytes]]:
    """Return what is compared; OpenCV's filter setting exists in newer versions only."""
    level, strategy = (cv2.IMWRITE_PNG_COMPRESSION, 1), (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
    found = {"cxu": encode_label_png, "opencv default": with_opencv(), "opencv rle": with_opencv(*level, *strategy)}
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):
        no_filter = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
        found["opencv rle, no filter"] = with_opencv(*level, *strategy, *no_filter)
    return {**found, "pillow level 1": with_pillow}


def label_images() -> list[np.ndarray]:
    """Draw synthetic label images uint8 [1024, 1024]."""
    images = []
    for landmarks_xy in sample_shapes(load_shape_model(), N_IMAGES, np.random.default_rng(0)):
        labels = np.zeros((SIDE, SIDE), np.uint8)
        for organ in ORGANS:
            labels[fill_polygon(landmarks_xy[organ.nodes], labels.shape) == 1] = organ.label
        images.append(labels)
    return images


def main() -> None:
    """Encode every image by every writer in turn."""
    images = label_images()
    seconds, sizes = dict.fromkeys(writers(), 0.0), dict.fromkeys(writers(), 0)
    for writer in writers().values():
        writer(images[0])
    for labels in images:
        for name, writer in writers().items():
            start = time.perf_counter()
            content = writer(labels)
            seconds[name] += time.perf_counter() - start
            sizes[name] += len(content)
    for name in seconds:
        print(f"{name:24} {1000 * seconds[name] / N_IMAGES:6.2f} ms {sizes[name] / N_IMAGES:8.0f} bytes")
    best = min(value for name, value in seconds.items() if name.startswith("opencv"))
    print(f"ratio opencv at its best / cxu: {best / seconds['cxu']:.1f}")


if __name__ == "__main__":
    main()
