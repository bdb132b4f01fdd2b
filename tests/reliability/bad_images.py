"""Image files that are not what they should be: ``cxu predict``."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from pydicom.uid import MPEG2MPML, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless

from film_helpers import save_film
from predict_helpers import film_pixels
from reliability.case import Case

TITLE: Final = "Images"
INTRO: Final = (
    "`cxu predict` of a folder in which all of these lie, with a good film before and behind each few. Every good"
    " film gets its row, and images predicted and images listed without a row add up to the images of the folder."
)
CT: Final = "1.2.840.10008.5.1.4.1.1.2"
REPORT: Final = "1.2.840.10008.5.1.4.1.1.88.11"
JPIPReferenced: Final = "1.2.840.10008.1.2.4.94"


@dataclass(frozen=True, kw_only=True)
class ImageCase(Case):
    """A bad file, among good films.

    Attributes
    ----------
    file
        What it is called; ``make`` writes it.
    rows
        How many rows it gets: 0 where it is refused.
    quality
        What the gate calls it, where it has to do so.
    """

    file: str
    exit_code: int = 3
    says: str = ""
    rows: int = 0
    quality: str | None = None
    images: int = 1

    @property
    def happens(self) -> str:
        """What comes of it, for the table."""
        if self.rows or not self.images:
            return self.says
        # readers of other libraries say it in words of their own
        reason = "with the reader's reason" if self.says == self.file else f"“…{self.says}…”"
        return f"listed without a row (exit {self.exit_code}): {reason}"


def _refused(name: str, file: str, content: bytes | Callable[[], bytes], says: str, **case: Any) -> ImageCase:
    """Return the case of a file of these bytes that is refused."""

    def make(folder: Path) -> None:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content() if callable(content) else content)

    return ImageCase(name=name, file=file, make=make, says=says, **case)


def _taken(name: str, file: str, content: bytes | Callable[[], bytes], what: str, **case: Any) -> ImageCase:
    """Return the case of a file that looks wrong and is read, with what is made of it for the table."""
    return _refused(name, file, content, what, exit_code=0, rows=1, **case)


def _dicom(name: str, says: str, *, shape_hw: tuple[int, int] = (80, 80), **elements: Any) -> ImageCase:
    """Return the case of a DICOM film with some elements changed."""
    without = elements.pop("without", ())

    def make(folder: Path) -> None:
        pixels = {"PixelData": film_pixels(3, shape_hw=shape_hw).tobytes(), **elements}
        syntax = pixels.pop("TransferSyntaxUID", None)
        save_film(folder / "m.dcm", shape_hw=shape_hw, without=without, **pixels)
        if syntax is not None:
            _relabel(folder / "m.dcm", syntax)

    return ImageCase(name=name, file="m.dcm", make=make, says=says)


def _ct(folder: Path) -> None:
    pixels = film_pixels(3, shape_hw=(80, 80)).tobytes()
    save_film(folder / "m.dcm", shape_hw=(80, 80), SOPClassUID=CT, Modality="CT", PixelData=pixels)


def _relabel(path: Path, syntax: str) -> None:
    """State another transfer syntax of the same length in a file's meta information."""
    import pydicom

    film = pydicom.dcmread(path)
    film.file_meta.TransferSyntaxUID = syntax
    film.PixelData = pydicom.encaps.encapsulate([bytes(film.PixelData)])
    film["PixelData"].VR = "OB"
    film.save_as(path, enforce_file_format=True)


def _saved(kind: str, pixels: np.ndarray | None = None, **how: Any) -> bytes:
    """Return a film, or other pixels, as the bytes of an image file."""
    stream = io.BytesIO()
    image = Image.fromarray(film_pixels(2) if pixels is None else pixels)
    image.convert(how.pop("mode", image.mode)).save(stream, format=kind, **how)
    return stream.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, depth: int = 8, colour: int = 0, *, interlaced: int = 0, body: bytes = b"") -> bytes:
    """Return a PNG that claims this size, whatever its body holds."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = body or zlib.compress(bytes(64))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _interlaced() -> bytes:
    """Return a PNG whose data say that they are interlaced, and end within the first pass."""
    return _png(96, 96, interlaced=1, body=zlib.compress(bytes(150)))


def _text_bomb() -> bytes:
    """Return a PNG with a compressed text of 80 MB before its pixels."""
    text = b"comment\0\0" + zlib.compress(bytes(80_000_000), 9)
    whole = _saved("PNG")
    return whole[:33] + _chunk(b"zTXt", text) + whole[33:]


def _flipped(content: bytes, at: int, bit: int = 0) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 1 << bit
    return bytes(changed)


def _jpeg_of_size(width: int, height: int) -> bytes:
    """Return a JPEG whose frame header claims another size."""
    content = bytearray(_saved("JPEG"))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def _tiff(tags: dict[int, Any], pixels: np.ndarray | None = None) -> bytes:
    """Return a TIFF with some tags replaced after it was written: all of them one number."""
    content = bytearray(_saved("TIFF", pixels))
    start = struct.unpack("<I", content[4:8])[0]
    for entry in range(struct.unpack("<H", content[start : start + 2])[0]):
        at = start + 2 + 12 * entry
        tag, kind = struct.unpack("<HH", content[at : at + 4])
        if tag in tags:
            content[at + 8 : at + 12] = struct.pack("<HH" if kind == 3 else "<I", *([tags[tag]] + [0] * (kind == 3)))
    return bytes(content)


def _tiff_ring() -> bytes:
    """Return a TIFF whose first directory names itself as the next one."""
    content = bytearray(_saved("TIFF"))
    start = struct.unpack("<I", content[4:8])[0]
    n_entries = struct.unpack("<H", content[start : start + 2])[0]
    end = start + 2 + 12 * n_entries
    content[end : end + 4] = struct.pack("<I", start)
    return bytes(content)


def _pages(kind: str) -> bytes:
    stream = io.BytesIO()
    pages = [Image.fromarray(film_pixels(seed)) for seed in (2, 3)]
    pages[0].save(stream, format=kind, save_all=True, append_images=pages[1:])
    return stream.getvalue()


def _photo(mode: str, kind: str) -> Callable[[], bytes]:
    colours = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    return lambda: _saved(kind, colours, mode=mode)


def _zip(edit: Callable[[bytearray], None] = lambda _: None, *, member: str = "m.png", deflate: bool = True) -> bytes:
    """Return a zip with one film, its bytes edited."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        archive.writestr(member, _saved("PNG"))
    content = bytearray(stream.getvalue())
    edit(content)
    return bytes(content)


def _damage_member(content: bytearray) -> None:
    content[len(content) // 2] ^= 0xFF


def _encrypt(content: bytearray) -> None:
    """Set the bit that says encrypted, in the member's header and in the directory's entry."""
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1


def _unknown_method(content: bytearray) -> None:
    content[8:10] = struct.pack("<H", 99)
    at = content.index(b"PK\x01\x02")
    content[at + 10 : at + 12] = struct.pack("<H", 99)


def _make_folder(folder: Path) -> None:
    (folder / "m.png").mkdir()


def _make_dangling(folder: Path) -> None:
    (folder / "m.png").symlink_to(folder / "nowhere.png")


def _deep(values: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(values)).save(stream, format="TIFF")
    return stream.getvalue()


_FILM: Final = film_pixels(2)
_FLOAT: Final = _FILM.astype(np.float32) / 255

CASES: Final = (
    # what is no image at all
    _refused("an empty file", "m.png", b"", "is empty (0 bytes)"),
    _refused("a text named .png", "m.png", b"no image at all", "is no PNG, JPEG, TIFF or DICOM file"),
    _refused(
        "a page of HTML saved as .jpg", "m.jpg", b"<!DOCTYPE html><html>429</html>", "is no PNG, JPEG, TIFF or DICOM"
    ),
    _refused("a GIF named .png", "m.png", lambda: _saved("GIF"), "is no PNG, JPEG, TIFF or DICOM"),
    _refused("a PDF named .tif", "m.tif", b"%PDF-1.7\n", "is no PNG, JPEG, TIFF or DICOM"),
    ImageCase(
        name="a folder named m.png",
        file="m.png",
        make=_make_folder,
        exit_code=0,
        images=0,
        says="walked like any folder; the two films are predicted",
    ),
    ImageCase(
        name="a link that leads nowhere",
        file="m.png",
        make=_make_dangling,
        exit_code=0,
        images=0,
        says="no file, so no image; the two films are predicted",
    ),
    # PNG
    _refused(
        "PNG, its last third cut off",
        "m.png",
        lambda: _saved("PNG")[: len(_saved("PNG")) * 2 // 3],
        "is damaged or truncated",
    ),
    _refused("PNG, only its signature", "m.png", b"\x89PNG\r\n\x1a\n", "is damaged or truncated"),
    _refused(
        "PNG, a bit of its width flipped", "m.png", lambda: _flipped(_saved("PNG"), 19), "is damaged or truncated"
    ),
    _refused(
        "PNG, a byte of its pixels changed",
        "m.png",
        lambda: _flipped(_saved("PNG"), len(_saved("PNG")) // 2, 3),
        "is damaged or truncated",
    ),
    _refused("PNG of 60,000 × 60,000 px in 100 bytes", "m.png", lambda: _png(60_000, 60_000), "is too large"),
    _refused("PNG of 2³¹ px a side", "m.png", lambda: _png((1 << 31) - 1, (1 << 31) - 1), "is too large"),
    _refused("PNG of no width", "m.png", lambda: _png(0, 96), "m.png"),
    _refused(
        "PNG that claims 8,000 × 8,000 px and holds 64 bytes",
        "m.png",
        lambda: _png(8_000, 8_000),
        "is damaged or truncated",
    ),
    _refused("PNG, interlaced, cut off in its first pass", "m.png", _interlaced, "is damaged or truncated"),
    _refused("PNG with a text that swells to 80 MB", "m.png", _text_bomb, "is damaged or truncated"),
    _refused("PNG of two frames (animated)", "m.png", lambda: _pages("PNG"), "has 2 frames or pages; expected one"),
    _refused("PNG, a photograph in colour", "m.png", _photo("RGB", "PNG"), "is a colour image"),
    _refused("PNG, a photograph with a palette", "m.png", _photo("P", "PNG"), "is a colour image"),
    _refused(
        "PNG of one row of pixels",
        "m.png",
        lambda: _saved("PNG", np.arange(96, dtype=np.uint8)[None]),
        "is too small: 96 × 1 px",
    ),
    _refused(
        "PNG, one side ten times the other",
        "m.png",
        lambda: _saved("PNG", film_pixels(2, shape_hw=(40, 400))),
        "is no whole radiograph",
    ),
    _taken(
        "PNG of one grey throughout",
        "m.png",
        lambda: _saved("PNG", np.full((96, 96), 9, np.uint8)),
        "a row that the gate rejects: nothing to be seen",
        quality="reject",
    ),
    _taken(
        "PNG of grey values with a palette",
        "m.png",
        lambda: _saved("PNG", mode="P"),
        "read: the greys of the palette, not its indices",
    ),
    _taken("PNG of 16 bits", "m.png", lambda: _saved("PNG", _FILM.astype(np.uint16) << 8), "read with all its bits"),
    # JPEG
    _refused(
        "JPEG, cut off in the middle",
        "m.jpg",
        lambda: _saved("JPEG")[: len(_saved("JPEG")) // 2],
        "is damaged or truncated",
    ),
    _refused("JPEG, only its first three bytes", "m.jpg", b"\xff\xd8\xff", "is damaged or truncated"),
    _refused("JPEG that claims 65,000 × 65,000 px", "m.jpg", lambda: _jpeg_of_size(65_000, 65_000), "is too large"),
    _refused("JPEG that claims 0 rows", "m.jpg", lambda: _jpeg_of_size(96, 0), "m.jpg"),
    _refused("JPEG, a photograph in CMYK", "m.jpg", _photo("CMYK", "JPEG"), "is a colour image"),
    _taken("JPEG named .png", "m.png", lambda: _saved("JPEG"), "read: its first bytes count, not its name"),
    _taken("JPEG of a film in CMYK", "m.jpg", lambda: _saved("JPEG", mode="CMYK"), "read as grey"),
    # TIFF
    _refused("TIFF, cut off", "m.tif", lambda: _saved("TIFF")[:4000], "is damaged or truncated"),
    _refused("TIFF of floating-point pixels", "m.tif", lambda: _deep(_FLOAT), "has floating-point pixels"),
    _refused(
        "TIFF of NaN pixels", "m.tif", lambda: _deep(np.full((96, 96), np.nan, np.float32)), "has floating-point pixels"
    ),
    _refused(
        "TIFF of 32-bit pixels", "m.tif", lambda: _deep(_FILM.astype(np.int32) << 16), "has 32-bit or signed pixels"
    ),
    _refused(
        "TIFF of signed pixels", "m.tif", lambda: _deep(_FILM.astype(np.int32) - 500), "has 32-bit or signed pixels"
    ),
    _refused("TIFF of two pages", "m.tif", lambda: _pages("TIFF"), "has 2 frames or pages; expected one"),
    _refused("TIFF that claims 65,535 × 65,535 px", "m.tif", lambda: _tiff({256: 65_535, 257: 65_535}), "is too large"),
    _refused("TIFF whose pixels lie beyond its end", "m.tif", lambda: _tiff({273: 65_000}), "is damaged or truncated"),
    _refused("TIFF of 0 columns", "m.tif", lambda: _tiff({256: 0}), "is damaged or truncated"),
    _taken("TIFF whose directory names itself as the next", "m.tif", _tiff_ring, "read once: one page"),
    _refused("TIFF of unknown compression", "m.tif", lambda: _tiff({259: 9999}), "is damaged or truncated"),
    # DICOM
    _dicom("DICOM without pixels", "but no 8- or 16-bit pixels", without=("PixelData",)),
    _dicom(
        "DICOM report: no rows, no columns",
        "is a DICOM object without an image",
        without=("PixelData", "Rows", "Columns"),
        SOPClassUID=REPORT,
    ),
    ImageCase(
        name="DICOM of a CT slice",
        file="m.dcm",
        make=_ct,
        exit_code=0,
        rows=1,
        says="a row that the gate rejects: the file says CT",
        quality="reject",
    ),
    _dicom("DICOM with fewer pixels than rows × columns", "m.dcm", PixelData=bytes(300)),
    _dicom("DICOM with a wrong number of rows", "m.dcm", Rows=4000),
    _dicom("DICOM of 0 rows", "has no pixels", Rows=0),
    _dicom("DICOM of 65,535 × 65,535 px", "is too large", Rows=65_535, Columns=65_535),
    _dicom(
        "DICOM with pixels of 32 bits",
        "has pixels of 32 bits",
        BitsAllocated=32,
        BitsStored=32,
        HighBit=31,
        PixelData=bytes(25_600),
    ),
    _dicom("DICOM with pixels of 65,528 bits", "has pixels of 65528 bits", BitsAllocated=65_528),
    _dicom("DICOM with more bits stored than there are", "has pixels of 8 bits, 12 of them stored", BitsStored=12),
    _dicom(
        "DICOM with its values in the high bits",
        "says HighBit 15 with 12 bits stored",
        BitsAllocated=16,
        BitsStored=12,
        HighBit=15,
        PixelData=bytes(12_800),
    ),
    _dicom("DICOM of several frames", "has 3 frames; expected one", NumberOfFrames=3, PixelData=bytes(19_200)),
    _dicom(
        "DICOM in colour",
        "is a colour DICOM image (RGB",
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        PixelData=bytes(19_200),
    ),
    _dicom("DICOM with a palette", "is a colour DICOM image (PALETTE COLOR", PhotometricInterpretation="PALETTE COLOR"),
    _dicom("DICOM with a rescale slope of NaN", "RescaleSlope nan", RescaleSlope="NaN"),
    _dicom("DICOM with a rescale slope of 0", "RescaleSlope 0", RescaleSlope=0),
    _dicom(
        "DICOM with an infinite intercept and a window",
        "RescaleIntercept inf",
        RescaleIntercept="inf",
        WindowCenter=10,
        WindowWidth=20,
    ),
    _dicom(
        "DICOM with a window function of no standard",
        "VOILUTFunction 'CUBIC'",
        VOILUTFunction="CUBIC",
        WindowCenter=10,
        WindowWidth=20,
    ),
    _dicom("DICOM, video", "is compressed as MPEG2", TransferSyntaxUID=MPEG2MPML),
    _dicom("DICOM, JPEG 2000 that is none", "m.dcm", TransferSyntaxUID=JPEG2000Lossless),
    _dicom("DICOM, JPEG that is none", "m.dcm", TransferSyntaxUID=JPEGBaseline8Bit),
    _dicom("DICOM, JPEG-LS that is none", "m.dcm", TransferSyntaxUID=JPEGLSLossless),
    _dicom(
        "DICOM, compressed with no decoder for it", "no decoder for it is installed", TransferSyntaxUID=JPIPReferenced
    ),
    _refused("DICOM, its mark and nothing else", "m.dcm", bytes(128) + b"DICM", "m.dcm"),
    _refused(
        "DICOM, noise behind its mark",
        "m.dcm",
        lambda: bytes(128) + b"DICM" + np.random.default_rng(1).bytes(4000),
        "m.dcm",
    ),
    # zips
    _refused("a zip that is none", "m.zip", b"PK\x03\x04 nothing", "is no readable zip"),
    _refused("a zip, a byte of a member changed", "m.zip", lambda: _zip(_damage_member), "m.zip!m.png"),
    _refused("a zip, its member encrypted", "m.zip", lambda: _zip(_encrypt), "is encrypted"),
    _refused("a zip, its member packed in an unknown way", "m.zip", lambda: _zip(_unknown_method), "cannot be opened"),
    _refused("a zip, its directory cut off", "m.zip", lambda: _zip()[:-30], "is no readable zip"),
)
