"""Image files as arrays: their size, their grey values, and the same drawn into the model frame.

Files are read as stored: an EXIF orientation is ignored, because landmarks and masks of the published tables are in
stored pixels. What a file is comes from its first bytes, not from its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final, Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL.ImageFile import ImageFile as Picture

from cxu.catalog import Source
from cxu.errors import CxuError, ImageError, UsageError
from cxu.frame import ModelFrame, crop_box, full_frame, padded_frame
from cxu.image_listing import ImageFile

FileKind = Literal["PNG", "JPEG", "TIFF", "DICOM"]
GreyArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
DrawableArray = GreyArray | npt.NDArray[np.float32]

# The largest detector images have 60 million pixels; Pillow itself starts to warn at 89 million.
MAX_PIXELS: Final = 80_000_000

_MAGIC: Final[dict[bytes, FileKind]] = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
    b"MM\x00+": "TIFF",
}
_DICOM_MAGIC: Final = b"DICM"
_DICOM_PREAMBLE: Final = 128
_DICOM_SUFFIXES: Final = (".dcm", ".dicom")
_DICOM_GROUPS: Final = (b"\x02\x00", b"\x08\x00")  # of the file's meta information, and of its identification
# Opened by their own classes: Image.open would warn of large images, and warning filters are not thread-safe.
_OPENERS: Final = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
_TIFF_PHOTOMETRIC: Final = 262
_LONE_PRODUCTS: Final = 1 << 18  # OpenBLAS and MKL multiply up to about so many pairs in the calling thread
_BAND_ROWS: Final = 16  # measured: the matrix products of shorter bands cost more to start, of longer ones more zeros


def image_size(file: ImageFile) -> tuple[int, int]:
    """Return (height, width) in pixels, as stored, from the header alone.

    Raises
    ------
    ImageError
        If the file is missing, empty, a folder, no PNG, JPEG, TIFF or DICOM, damaged, or above :data:`MAX_PIXELS`.
    """
    with open_image(file) as stream:
        kind = file_kind(file, stream)
        if kind == "DICOM":
            return _dicom_shape(file, stream)
        picture = open_picture(file, stream, kind)
        return picture.height, picture.width


def read_grey(file: ImageFile) -> GreyArray:
    """Return the grey values [H, W] of a PNG, JPEG or TIFF, as stored: uint16 for 16-bit grey, uint8 for all else.

    Colour becomes luma (ITU-R 601), transparency is ignored, 1-bit pixels become 0 and 255, and a TIFF whose white
    is zero is inverted. Pillow reads colour, and grey with transparency, of 16 bits a channel as 8 bits.

    Raises
    ------
    ImageError
        As :func:`image_size`, and for DICOM, floating-point and 32-bit pixels and truncated image data.
    """
    return _decode(file, dicom_refusal="only its size is read, not its pixels; give a PNG, JPEG or TIFF of it")


def image_frame(file: ImageFile, source: Source) -> tuple[tuple[int, int], ModelFrame]:
    """Return (height, width) of an image and where the source's model frame lies in it.

    The pixels are read only where the source crops to the content; otherwise the header is enough. For a source that
    says nothing of its images the frame is that of a plain pad, and not ``exact``.

    Raises
    ------
    ImageError
        As :func:`read_grey` for sources that crop, else as :func:`image_size`.
    """
    if source.framing == "crop_pad":
        refusal = f"the crop of {source.title} is defined on its JPG and PNG copies; give those instead"
        grey = _decode(file, dicom_refusal=refusal)
        return (grey.shape[0], grey.shape[1]), grey_frame(grey, source)
    height, width = image_size(file)
    return (height, width), full_frame(height, width, exact=source.framing != "unknown")


def grey_frame(grey: GreyArray, source: Source) -> ModelFrame:
    """Return where the source's model frame lies in an image that is already read: grey [H, W]."""
    if source.framing == "crop_pad":
        return padded_frame(crop_box(grey))
    height, width = grey.shape
    return full_frame(height, width, exact=source.framing != "unknown")


def draw_model_frame(
    grey: DrawableArray, frame: ModelFrame, size: int, *, aspect: float = 1.0
) -> npt.NDArray[np.float32]:
    """Return an image [H, W] drawn into its model frame: float32 [size, size], in the image's own grey units.

    Output pixel k shows the image around ``x = offset + k * side / size`` on either axis, pixel centres at integers:
    the map of :class:`~cxu.frame.ModelFrame`, times size / 1024. A shrunk image is averaged over each output pixel's
    exact area, fractions of pixels included; an enlarged one is interpolated linearly. Outside the image is zero, and
    an output pixel across its edge is a mean of both.

    ``aspect`` is the height of an image pixel over its width. The frame counts in pixel widths on both axes, so row
    y of the image lies at ``y * aspect``.

    Raises
    ------
    UsageError
        If ``size``, ``aspect`` or the frame's side is not positive, or the frame is not finite.

    Examples
    --------
    >>> draw_model_frame(np.full((1, 3), 8, np.uint8), full_frame(1, 3), 3)
    array([[0., 0., 0.],
           [8., 8., 8.],
           [0., 0., 0.]], dtype=float32)
    """
    step = frame.side / size if size > 0 else np.nan
    if not (step > 0 and aspect > 0 and np.isfinite([step, aspect, *frame.offset_xy]).all()):
        raise UsageError(
            f"cannot draw {frame} into {size} px at aspect {aspect}: sides must be positive, positions finite."
        )
    offset_x, offset_y = frame.offset_xy
    rows = _resample_rows(grey, offset_y / aspect, step / aspect, size)
    return np.ascontiguousarray(_resample_rows(rows.T, offset_x, step, size).T)


def resize_grey(grey: GreyArray, shape_hw: tuple[int, int]) -> GreyArray:
    """Return an image [H, W] resized to ``shape_hw`` px, in its own type, halves rounded to even.

    The outer edges of both are the same. A shrunk image is averaged over each output pixel's exact area, fractions of
    pixels included; an enlarged one is interpolated linearly, and beyond its outer pixels' centres stays as they are.

    Raises
    ------
    UsageError
        If a side of either is not positive.

    Examples
    --------
    >>> resize_grey(np.array([[0, 4, 10, 20]], np.uint8), (1, 2))
    array([[ 2, 15]], dtype=uint8)
    """
    if min(*grey.shape, *shape_hw) < 1:
        raise UsageError(f"cannot resize {grey.shape} to {shape_hw} px: sides must be positive.")
    resized = _resize_rows(_resize_rows(grey, shape_hw[0]).T, shape_hw[1]).T
    return cast(GreyArray, np.ascontiguousarray(np.rint(resized)).astype(grey.dtype))


def _resize_rows(values: DrawableArray, size: int) -> npt.NDArray[np.float32]:
    """Average windows of ``values`` [N, M] along its first axis over what of them lies in it: float32 [size, M]."""
    step = len(values) / size
    resized = _resample_rows(values, (step - 1) / 2, step, size)
    half, centres = max(step, 1.0) / 2, step * (np.arange(size) + 0.5)
    inside = np.minimum(centres + half, len(values)) - np.maximum(centres - half, 0)
    resized *= (2 * half / inside).astype(np.float32)[:, None]
    return resized


def _resample_rows(values: DrawableArray, offset: float, step: float, size: int) -> npt.NDArray[np.float32]:
    """Average ``size`` windows of ``values`` [N, M] along its first axis: float32 [size, M].

    Window k is centred at ``offset + k * step`` and ``step`` wide, but at least one pixel. Over pixels that are unit
    boxes, a window of one pixel is linear interpolation, so shrinking and enlarging are one formula.
    """
    width = max(step, 1.0)
    out = np.zeros((size, values.shape[1]), np.float32)
    # pixel j covers j - 0.5 to j + 0.5; here edges count from the first pixel's left one
    lows = offset + 0.5 + step * np.arange(size) - width / 2
    for first in range(0, size, _BAND_ROWS):
        low = lows[first : first + _BAND_ROWS, None]
        start = max(int(np.floor(low[0, 0])), 0)
        stop = min(int(np.ceil(low[-1, 0] + width)), len(values))
        if start < stop:
            pixels = np.arange(start, stop)
            covered = np.minimum(low + width, pixels + 1) - np.maximum(low, pixels)
            weights = (covered.clip(min=0) / width).astype(np.float32)
            _multiply(weights, values[start:stop], out[first : first + _BAND_ROWS])
    return out


def _multiply(weights: npt.NDArray[np.float32], values: DrawableArray, out: npt.NDArray[np.float32]) -> None:
    """Write ``weights @ values`` into ``out``, in pieces for which no BLAS starts threads.

    Images are read by several threads or processes at a time; threads of BLAS within them halved the speed.
    """
    step = max(_LONE_PRODUCTS // weights.size, 1)
    for first in range(0, values.shape[1], step):
        piece = slice(first, first + step)
        np.matmul(weights, values[:, piece].astype(np.float32, copy=False), out=out[:, piece])


@contextmanager
def open_image(file: ImageFile) -> Iterator[BinaryIO]:
    """Open ``file`` for reading; whatever damaged bytes raise inside becomes an :class:`ImageError` that names it."""
    with file.open() as stream:
        try:
            yield stream
        except CxuError:
            raise
        except MemoryError as error:
            raise ImageError(f"{file.name} takes more memory than there is.") from error
        except Exception as error:  # damaged bytes make the decoders raise nearly anything
            raise ImageError(f"{file.name} is damaged or truncated: {error}.") from error


def file_kind(file: ImageFile, stream: BinaryIO) -> FileKind:
    """Return what the opened file is, by its first bytes; ``stream`` is left at its start.

    A DICOM file without its preamble has no mark of its own. It is taken for one if its name ends in ``.dcm`` or
    ``.dicom`` and it begins with an element of the first groups, as every such file does.

    Raises
    ------
    ImageError
        If the file is empty or none of the four.
    """
    head = stream.read(_DICOM_PREAMBLE + len(_DICOM_MAGIC))
    stream.seek(0)
    if not head:
        raise ImageError(f"{file.name} is empty (0 bytes).")
    if head[_DICOM_PREAMBLE:] == _DICOM_MAGIC:
        return "DICOM"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if file.file.lower().endswith(_DICOM_SUFFIXES) and head.startswith(_DICOM_GROUPS):
        return "DICOM"
    raise ImageError(f"{file.name} is no PNG, JPEG, TIFF or DICOM file: it begins with {head[:8]!r}.")


def _decode(file: ImageFile, *, dicom_refusal: str) -> GreyArray:
    with open_image(file) as stream:
        kind = file_kind(file, stream)
        if kind == "DICOM":
            raise ImageError(f"{file.name} is a DICOM file: {dicom_refusal}.")
        return grey_values(file, open_picture(file, stream, kind))


def open_picture(file: ImageFile, stream: BinaryIO, kind: FileKind) -> Picture:
    """Return the PNG, JPEG or TIFF in ``stream``, its header read and its size checked, its pixels not yet decoded.

    Raises
    ------
    ImageError
        If it has no pixels or more than :data:`MAX_PIXELS`. Damaged bytes raise what Pillow raises, which
        :func:`open_image` turns into one.
    """
    picture = _OPENERS[kind](stream)
    check_shape(file, picture.height, picture.width)
    return picture


def _dicom_shape(file: ImageFile, stream: BinaryIO) -> tuple[int, int]:
    import pydicom  # noqa: PLC0415 - takes longer to import than most images to read

    try:
        header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=["Rows", "Columns"], force=True)
        height, width = int(header.Rows), int(header.Columns)
    except Exception as error:  # damaged bytes make pydicom raise nearly anything
        raise ImageError(f"{file.name} has no readable DICOM header with Rows and Columns: {error}.") from error
    check_shape(file, height, width)
    return height, width


def check_shape(file: ImageFile, height: int, width: int) -> None:
    """Raise :class:`ImageError` if an image of ``height`` × ``width`` px has no pixels or above :data:`MAX_PIXELS`."""
    if height < 1 or width < 1:
        raise ImageError(f"{file.name} has no pixels: its header says {width} × {height}.")
    if height * width > MAX_PIXELS:
        raise ImageError(f"{file.name} is too large: {width} × {height} px; at most {MAX_PIXELS:,} pixels are read.")


def grey_values(file: ImageFile, picture: Picture) -> GreyArray:
    """Return the grey values [H, W] of an opened picture, by the rules of :func:`read_grey`.

    Raises
    ------
    ImageError
        For floating-point and 32-bit pixels.
    """
    if picture.mode == "F":
        raise ImageError(f"{file.name} has floating-point pixels; expected 8- or 16-bit ones.")
    if not picture.mode.startswith("I"):
        return np.array(picture.convert("L"), np.uint8)
    values = np.array(picture)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise ImageError(f"{file.name} has 32-bit or signed pixels; expected 8- or 16-bit ones.")
    grey = values.astype(np.uint16)
    # Pillow inverts such a file where it has 8 bits, but not where it has 16
    is_white_zero = isinstance(picture, TiffImagePlugin.TiffImageFile) and picture.tag_v2.get(_TIFF_PHOTOMETRIC) == 0
    return np.iinfo(np.uint16).max - grey if is_white_zero else grey
