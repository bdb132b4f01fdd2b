"""Images and masks as pairs for PyTorch, drawn on the fly from landmarks: nothing is written to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from cxu import image_index, images
from cxu.anatomy import ORGAN_NAMES, ORGANS
from cxu.catalog import Source, source_or_custom
from cxu.errors import MissingInputError
from cxu.frame import MODEL_SIZE, ModelFrame
from cxu.image_listing import ImageFile, ImageSpec
from cxu.masks import MaskOptions, Placement, RowShape, draw_organs, merge_labels, resized
from cxu.placing import RowKey, place_in_image


class Pair(TypedDict):
    """One item: ``image`` float32 [1, S, S] in 0 to 1; ``mask``; ``usable`` bool [3]; ``source`` and ``image_id``."""

    image: torch.Tensor
    mask: torch.Tensor
    usable: torch.Tensor
    source: str
    image_id: str


class MaskDataset(Dataset[Pair]):
    """Pairs of image and mask: the image padded to a square and drawn at ``size`` px, the mask drawn on it.

    Parameters
    ----------
    rows
        A selection or any table in the schema.
    images
        Folder, glob, list or zip of the images, or several.
    size
        Side of image and mask, px.
    options
        Policy, band and what to do with unusable organs. The mask is int64 [S, S] of labels (255 to be ignored), under
        the policy ``probability`` float32 [3, S, S] in 0 to 1 in the order of ORGANS; an unusable organ's plane is NaN.
    missing
        What to do with rows whose image is not there: ``"error"``, or ``"skip"``, which lists them in :attr:`missing`.
    cache_folder
        Where the listing of the image folder is kept for the next time; None keeps none.

    Raises
    ------
    MissingInputError
        If images are missing, unless they may be skipped.
    """

    def __init__(
        self,
        rows: pa.Table,
        images: ImageSpec,
        *,
        size: int = 512,
        options: MaskOptions | None = None,
        missing: Literal["error", "skip"] = "error",
        cache_folder: Path | None = None,
    ) -> None:
        self.size, self.options = size, options or MaskOptions()
        sources = [source_or_custom(name) for name in rows["source"].to_pylist()]
        wanted = list(zip(sources, rows["image_id"].to_pylist(), strict=True))
        pairs = [(source.name, image_id) for source, image_id in wanted]
        self._files, self.missing = image_index.resolve(images, wanted, cache_folder)
        if self.missing and missing == "error":
            raise MissingInputError(
                f"{len(self.missing)} of {len(pairs)} rows have no image, {self.missing[0][1]!r} first; "
                'pass missing="skip" to leave them out'
            )
        self._rows = rows.filter(pa.array([pair in self._files for pair in pairs], pa.bool_()))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        key = RowKey.of(self._rows, range(len(self))[index])
        source = source_or_custom(key.source)
        file = self._files[source.name, key.image_id]
        grey = images.read_grey(file)
        frame = images.grey_frame(grey, source)
        picture = images.draw_model_frame(grey, frame, self.size) / np.iinfo(grey.dtype).max
        placement = self._place(file, source, key, frame)
        shape = RowShape.all_of(self._rows.slice(range(len(self))[index], 1))[0]
        return {
            "image": torch.from_numpy(picture.astype(np.float32))[None],
            "mask": self._mask(shape, placement),
            "usable": torch.from_numpy(shape.usable.copy()),
            "source": key.source,
            "image_id": key.image_id,
        }

    def _place(self, file: ImageFile, source: Source, key: RowKey, frame: ModelFrame) -> Placement:
        """Return where a row lies in the model frame of its image, drawn at ``size`` px."""
        square = (self.size, self.size)
        if key.frame == "model":
            return resized((MODEL_SIZE, MODEL_SIZE), square)
        in_image = place_in_image(file, source, key)
        (scale_x, scale_y), (x, y) = in_image.scale_xy, in_image.offset_xy
        scale, (left, top) = self.size / frame.side, frame.offset_xy
        return Placement(square, (scale_x * scale, scale_y * scale), ((x - left) * scale, (y - top) * scale))

    def _mask(self, shape: RowShape, placement: Placement) -> torch.Tensor:
        organs = draw_organs(shape, placement, self.options)
        if self.options.policy != "probability":
            return torch.from_numpy(merge_labels(organs, self.options).astype(np.int64))
        planes = np.stack([organs[name].plane for name in ORGAN_NAMES]).astype(np.float32) / 255
        planes[~shape.usable[: len(ORGANS)]] = np.nan
        return torch.from_numpy(planes)
