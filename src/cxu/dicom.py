"""DICOM radiographs as grey values: brighter is denser, whatever the file's photometric interpretation.

A stored value becomes a grey value in the order of the standard (PS3.3 C.7.6.3, C.11.1, C.11.2):

1. the modality LUT, or rescale slope and intercept;
2. the VOI LUT, or else the window; the first of several. A window no wider than one level is none, nor is one that
   leaves less than a tenth of the film between its ends, such as one of 8 bits left over on a film of 12: it is logged;
3. inversion, if the photometric interpretation is MONOCHROME1 or the presentation LUT shape is INVERSE. The standard
   makes the second accompany the first, so both together invert once.

All three depend on the stored value alone, so they are worked out once for each value that ``BitsStored`` allows.
Window positions count from the window's centre and are negated, not subtracted from a maximum: a MONOCHROME1 file and
its mirrored MONOCHROME2 twin go through the same arithmetic and give the same bits. Without LUT and window only the
sign of the slope is used: the rest of a rescale is the same for all pixels, and grey values count only up to scale and
offset.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from cxu.errors import CxuError, ImageError
from cxu.image_listing import ImageFile
from cxu.images import GreyArray, check_shape

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

_MAX_BITS: Final = 16
_SAMPLED: Final = 4  # every so many rows and columns are enough to judge a window
_BAND_ROWS: Final = 64  # so that the index numpy makes of the pixels stays in the cache
_SQUARE_TOLERANCE: Final = 1e-3  # spacings are written with three or four digits


def read_header(file: ImageFile, stream: BinaryIO) -> Dataset:
    """Return all of a DICOM file but its pixels, after checking that it says it holds one grey image.

    Raises
    ------
    ImageError
        If it is damaged, no image (a report, a presentation state), in colour, of several frames, too large, or
        has pixels of other than 8 or 16 bits.
    """
    import pydicom  # noqa: PLC0415 - takes longer to import than most images to read

    with _readable(file):
        header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        if header.get("Rows") is None or header.get("Columns") is None:
            raise ImageError(f"{file.name} is a DICOM object without an image ({_class_name(header)}); give the image.")
        check_shape(file, int(header.Rows), int(header.Columns))
        _refuse_what_is_no_film(file, header)
    return header


def spacing_mm_xy(header: Dataset) -> tuple[float, float] | None:
    """Return the distance of columns and of rows in mm, from PixelSpacing or else ImagerPixelSpacing.

    Examples
    --------
    >>> from pydicom import Dataset
    >>> header = Dataset(); header.PixelSpacing = [0.2, 0.1]  # rows first
    >>> spacing_mm_xy(header)
    (0.1, 0.2)
    """
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        pair = _positive_pair(header.get(name))
        if pair is not None:
            return pair[1], pair[0]
    return None


def pixel_aspect(header: Dataset) -> float:
    """Return the height of a pixel over its width: from the spacing, else PixelAspectRatio, else 1.

    Examples
    --------
    >>> from pydicom import Dataset
    >>> header = Dataset(); header.PixelAspectRatio = [3, 2]  # vertical first
    >>> pixel_aspect(header)
    1.5
    """
    spacing = spacing_mm_xy(header)
    ratio = _positive_pair(header.get("PixelAspectRatio")) if spacing is None else (spacing[1], spacing[0])
    aspect = 1.0 if ratio is None else ratio[0] / ratio[1]
    return 1.0 if abs(aspect - 1) < _SQUARE_TOLERANCE else aspect


def view_position(header: Dataset) -> str | None:
    """Return the view as the file says it (``PA``, ``AP``, ``LL``); None where it does not."""
    return str(header.get("ViewPosition") or "").strip() or None


def modality(header: Dataset) -> str | None:
    """Return what kind of device made the image (``CR``, ``DX``, ``CT``); None where the file does not say."""
    return str(header.get("Modality") or "").strip() or None


def read_pixels(file: ImageFile, stream: BinaryIO) -> GreyArray:
    """Return the grey values [H, W] of a DICOM file whose header passed :func:`read_header`.

    Returns
    -------
    uint8 or uint16
        Brighter is denser. With a window, 0 to 65535 across it; else as many levels as the file's bits or LUT give.

    Raises
    ------
    ImageError
        If the file has no pixels, they are truncated or damaged, or no decoder for their compression is installed.
    """
    import pydicom  # noqa: PLC0415 - as above

    with _readable(file):
        stream.seek(0)
        dataset = pydicom.dcmread(stream, force=True)
        if "PixelData" not in dataset:
            raise ImageError(f"{file.name} has a DICOM header but no 8- or 16-bit pixels; is it cut off?")
        stored = _stored_values(file, dataset)
        grey = _through_table(stored, *_grey_of_stored(dataset))
        if _window(dataset) is not None and "VOILUTSequence" not in dataset and _is_cut_off(stored, grey):
            logger.warning(
                "%s: its window (centre %s, width %s) cuts off more than nine tenths of the film, and is ignored",
                file.name,
                dataset.WindowCenter,
                dataset.WindowWidth,
            )
            del dataset.WindowCenter, dataset.WindowWidth
            grey = _through_table(stored, *_grey_of_stored(dataset))
        return grey


@contextmanager
def _readable(file: ImageFile) -> Iterator[None]:
    """Turn whatever pydicom and the decoders raise on unusual bytes, nearly anything, into an ImageError."""
    try:
        yield
    except CxuError:
        raise
    except Exception as error:
        raise ImageError(
            f"{file.name} is a DICOM file that cannot be read, damaged or truncated ({type(error).__name__}: {error})."
        ) from error


def _class_name(header: Dataset) -> str:
    uid = header.get("SOPClassUID") or header.get("file_meta", {}).get("MediaStorageSOPClassUID")
    return getattr(uid, "name", None) or "no Rows and Columns"


def _refuse_what_is_no_film(file: ImageFile, header: Dataset) -> None:
    samples, photometric = int(header.get("SamplesPerPixel") or 1), str(header.get("PhotometricInterpretation") or "")
    if samples != 1 or photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise ImageError(
            f"{file.name} is a colour DICOM image ({photometric or 'no photometric interpretation'}, {samples} samples "
            "a pixel); expected MONOCHROME1 or MONOCHROME2."
        )
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"{file.name} has {frames} frames; expected one. Save the frame you mean as its own file.")
    allocated, stored = int(header.BitsAllocated), _bits_stored(header)
    if allocated not in {8, _MAX_BITS} or not 1 < stored <= allocated:
        raise ImageError(f"{file.name} has pixels of {allocated} bits, {stored} of them stored; expected 8 or 16 bits.")
    high = int(header.get("HighBit", stored - 1))
    if high != stored - 1 and not header.file_meta.get("TransferSyntaxUID", _NATIVE).is_encapsulated:
        raise ImageError(
            f"{file.name} says HighBit {high} with {stored} bits stored, so which bits hold the grey values is not "
            f"clear; expected HighBit {stored - 1}. Rewrite the file with the values in the low bits."
        )


class _Native:
    """Stands for a file that names no transfer syntax: such a file cannot be compressed."""

    is_encapsulated = False


_NATIVE: Final = _Native()


def _bits_stored(header: Dataset) -> int:
    return int(header.get("BitsStored") or header.BitsAllocated)


def _positive_pair(value: Any) -> tuple[float, float] | None:
    """Return two positive finite numbers, or None where ``value`` is anything else, as an empty or zero spacing."""
    try:
        one, two = (float(part) for part in value)
    except (TypeError, ValueError):
        return None
    return (one, two) if 0 < one < np.inf and 0 < two < np.inf else None


def _stored_values(file: ImageFile, dataset: Dataset) -> npt.NDArray[np.integer]:
    """Decode the stored values [H, W], without rescale."""
    import pydicom  # noqa: PLC0415 - as above
    from pydicom.pixels.decoders.base import get_decoder  # noqa: PLC0415 - as above

    if "TransferSyntaxUID" not in dataset.file_meta:
        is_implicit = dataset.original_encoding[0]
        uids = pydicom.uid
        dataset.file_meta.TransferSyntaxUID = (
            uids.ImplicitVRLittleEndian if is_implicit else uids.ExplicitVRLittleEndian
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        is_known = get_decoder(syntax).is_available
    except NotImplementedError:
        is_known = False
    if not is_known:
        raise ImageError(_missing_decoder(file, syntax, "no decoder for it is installed"))
    try:
        values: npt.NDArray[np.integer] = dataset.pixel_array
    except Exception as error:
        if syntax.is_encapsulated and "precision" in str(error):
            raise ImageError(_missing_decoder(file, syntax, "the installed decoder only takes 8 bits")) from error
        raise
    return values


def _is_cut_off(stored: npt.NDArray[np.integer], grey: GreyArray) -> bool:
    """Tell whether a window shows most of a film, its darkest and brightest level aside, as plain black or white."""
    stored, grey = stored[::_SAMPLED, ::_SAMPLED], grey[::_SAMPLED, ::_SAMPLED]
    is_film = (stored > stored.min()) & (stored < stored.max())
    seen = grey[is_film]
    is_cut = (seen == 0) | (seen == np.iinfo(grey.dtype).max)
    return bool(10 * np.count_nonzero(is_cut) > 9 * is_cut.size)


def _missing_decoder(file: ImageFile, syntax: Any, why: str) -> str:
    return (
        f"{file.name} is compressed as {syntax.name} ({syntax}), and {why}. Install one that pydicom finds "
        "(`pip install python-gdcm`, or pyjpegls for JPEG-LS), or decompress the file with dcmdjpeg or gdcmconv --raw."
    )


def _through_table(stored: npt.NDArray[np.integer], first: int, table: GreyArray) -> GreyArray:
    """Return ``table[stored - first]``; a stored value outside the table takes its nearest end."""
    grey = np.empty(stored.shape, table.dtype)
    for row in range(0, len(stored), _BAND_ROWS):
        band = stored[row : row + _BAND_ROWS].astype(np.int32) - first
        table.take(band, out=grey[row : row + _BAND_ROWS], mode="clip")
    return grey


def _grey_of_stored(header: Dataset) -> tuple[int, GreyArray]:
    """Return the lowest stored value and the grey of every stored value from it on."""
    bits, is_signed = _bits_stored(header), int(header.get("PixelRepresentation") or 0) == 1
    first = -(1 << bits - 1) if is_signed else 0
    stored = np.arange(first, first + (1 << bits))
    is_inverted = header.PhotometricInterpretation == "MONOCHROME1" or header.get("PresentationLUTShape") == "INVERSE"

    voi = _first_item(header.get("VOILUTSequence"))
    window = _window(header)
    if voi is None and window is None:
        levels, top, slope = _modality_levels(header, stored - first)
        return first, _as_grey(levels, top, is_inverted=is_inverted != (slope < 0))
    values = _modality_values(header, stored)
    if voi is not None:
        return first, _as_grey(*_look_up(header, voi, values), is_inverted=is_inverted)
    assert window is not None
    position = _window_position(values, *window)
    position = -position if is_inverted else position
    return first, np.rint((position + 0.5) * np.iinfo(np.uint16).max).astype(np.uint16)


def _as_grey(levels: npt.NDArray[np.integer], top: int, *, is_inverted: bool) -> GreyArray:
    grey = top - levels if is_inverted else levels
    return grey.astype(np.uint8) if top <= np.iinfo(np.uint8).max else grey.astype(np.uint16)


def _rescale(header: Dataset) -> tuple[float, float]:
    slope = 1.0 if header.get("RescaleSlope") is None else float(header.RescaleSlope)
    intercept = 0.0 if header.get("RescaleIntercept") is None else float(header.RescaleIntercept)
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise ValueError(f"RescaleSlope {slope}, RescaleIntercept {intercept}; expected a slope other than 0")
    return slope, intercept


def _modality_levels(
    header: Dataset, stored_from_zero: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.integer], int, float]:
    """Return levels from 0 to a top, and the sign with which they stand for the modality's values."""
    item = _first_item(header.get("ModalityLUTSequence"))
    if item is not None:
        first = -(1 << _bits_stored(header) - 1) if int(header.get("PixelRepresentation") or 0) == 1 else 0
        return *_look_up(header, item, stored_from_zero + first), 1.0
    return stored_from_zero, len(stored_from_zero) - 1, _rescale(header)[0]


def _modality_values(header: Dataset, stored: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    item = _first_item(header.get("ModalityLUTSequence"))
    if item is not None:
        return _look_up(header, item, stored)[0].astype(np.float64)
    slope, intercept = _rescale(header)
    return stored.astype(np.float64) * slope + intercept


def _first_item(sequence: Any) -> Any:
    return sequence[0] if sequence else None


def _look_up(
    header: Dataset, item: Any, values: npt.NDArray[np.integer] | npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.integer], int]:
    """Return what a LUT item makes of ``values``, and its highest output level (PS3.3 C.11.1.1, C.11.2.1.1)."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 1 << _MAX_BITS  # 65536 does not fit into the descriptor
    if first >= 1 << 15 and values.min() < 0:
        first -= 1 << _MAX_BITS  # a negative number, read as unsigned
    order = ">" if header.original_encoding[1] is False else "<"
    data = item.LUTData
    words = np.frombuffer(data, f"{order}u2") if isinstance(data, bytes) else np.atleast_1d(np.asarray(data))
    if bits <= 8 and len(words) * 2 in {count, count + 1}:
        words = words.astype("<u2").view(np.uint8)  # two entries a word
    entries = words[:count].astype(np.int64)
    index = (np.floor(values) - first).clip(0, len(entries) - 1).astype(np.intp)
    return entries[index], max((1 << bits) - 1, int(entries.max()))


def _window(header: Dataset) -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window; None where there is none that shows two levels."""
    centre, width = (_first_number(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None:
        return None
    return (centre, width, function) if width > (1 if function == "LINEAR" else 0) else None


def _first_number(value: Any) -> float | None:
    try:
        number = float(np.atleast_1d(np.asarray(value, np.float64)).flat[0])
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None


def _window_position(
    values: npt.NDArray[np.float64], centre: float, width: float, function: str
) -> npt.NDArray[np.float64]:
    """Return where values lie in a window, −0.5 to 0.5 (PS3.3 C.11.2.1.2, C.11.2.1.3)."""
    if function == "SIGMOID":
        position = 0.5 * np.tanh(2 * (values - centre) / width)
    elif function == "LINEAR":
        position = (values - (centre - 0.5)) / (width - 1)
    elif function == "LINEAR_EXACT":
        position = (values - centre) / width
    else:
        raise ValueError(f"VOILUTFunction {function!r}; expected LINEAR, LINEAR_EXACT or SIGMOID")
    # twins with a fractional slope differ in the last bits: gone before anything is rounded to a level
    return np.asarray(np.round(position.clip(-0.5, 0.5), 12), dtype=np.float64)
