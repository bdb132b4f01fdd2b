"""The sources of CheXmask-U as data: names, id rules, expected rows, and how their images became the model frame.

Facts from the published tables and the papers; ``docs/datasets.md`` says more about each.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Final, Literal

from cxu.errors import UsageError

FrameName = Literal["model", "image"]
# How an image became the model frame: cropped to its content and padded, only padded, or already 1024 x 1024.
Framing = Literal["crop_pad", "pad", "native", "unknown"]

DATASET_REPO: Final = "mcosarinsky/CheXmask-U"
FRAME_FOLDERS: Final[dict[FrameName, str]] = {"model": "Preprocessed", "image": "OriginalResolution"}
IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom")
ID_COLUMN_FALLBACKS: Final = ("image_id", "Image", "image", "id")


@dataclass(frozen=True)
class Source:
    """One source data set.

    Attributes
    ----------
    name, title, aliases
        Our name, the data set's own, and other spellings, matched without case or punctuation.
    id_column
        The id column of the published table and of the data set's own label files.
    rows_expected
        Rows of the published table: a mismatch is warned of, never an error. 0 where unknown.
    framing
        How an image became the model frame.
    reference_frame
        The published frame whose positions are reliable; the one ``fetch`` takes unless told otherwise.
    id_depth
        How many trailing parts of an image's path make its id.
    citation
        Key of the data set's reference in ``docs/citation.md``.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    id_column: str
    rows_expected: int
    framing: Framing
    reference_frame: FrameName
    id_depth: int = 1
    patient_pattern: str = ""
    citation: str = ""

    @property
    def id_columns(self) -> tuple[str, ...]:
        """Column names that may hold the id, best first."""
        return (self.id_column, *(name for name in ID_COLUMN_FALLBACKS if name != self.id_column))

    def canonical_id(self, text: str) -> str:
        """Return the canonical image id of ``text``: no image suffix, and for CheXpert no prefix.

        Examples
        --------
        >>> SOURCES["chexpert"].canonical_id("CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg")
        'train/patient00001/study1/view1_frontal'
        >>> SOURCES["chestxray8"].canonical_id("00013310_001.png")
        '00013310_001'
        """
        identifier = strip_image_suffix(text.strip())
        if self.id_depth > 1:
            match = re.search(r"(?:^|/)((?:train|valid|test)/.*)$", identifier.replace("\\", "/"))
            return match.group(1) if match else identifier
        return identifier

    def patient_id(self, image_id: str) -> str | None:
        """Return the patient that the canonical id names, or None where it names none."""
        match = re.search(self.patient_pattern, image_id) if self.patient_pattern else None
        return match.group(1) if match else None


def strip_image_suffix(text: str) -> str:
    """Return ``text`` without a known image suffix; any other dot is part of the id.

    Examples
    --------
    >>> strip_image_suffix("00013310_001.PNG"), strip_image_suffix("1.2.840.113")
    ('00013310_001', '1.2.840.113')
    """
    lowered = text.lower()
    for suffix in IMAGE_SUFFIXES:
        if lowered.endswith(suffix) and len(text) > len(suffix):
            return text[: -len(suffix)]
    return text


SOURCES: Final[dict[str, Source]] = {
    source.name: source
    for source in (
        Source(
            "mimic",
            "MIMIC-CXR-JPG",
            ("MIMIC-CXR-JPG", "MIMIC-CXR", "MIMIC"),
            "dicom_id",
            243_334,
            "crop_pad",
            "model",
            citation="johnson2019mimic",
        ),
        Source(
            "chexpert",
            "CheXpert",
            ("CheXpert",),
            "Path",
            187_825,
            "pad",
            "image",
            id_depth=4,
            patient_pattern=r"(?:^|/)(patient\d+)/",
            citation="irvin2019chexpert",
        ),
        Source(
            "chestxray8",
            "ChestX-ray8",
            ("ChestX-ray8", "ChestX-ray14", "NIH"),
            "Image Index",
            112_120,
            "native",
            "image",
            patient_pattern=r"^(\d{8})_\d+$",
            citation="wang2017chestxray8",
        ),
        Source(
            "padchest",
            "PadChest",
            ("Padchest", "PadChest"),
            "ImageID",
            96_184,
            "crop_pad",
            "model",
            citation="bustos2020padchest",
        ),
        Source(
            "vindr",
            "VinDr-CXR",
            ("VinDr-CXR", "VinDr", "VinBigData"),
            "image_id",
            18_000,
            "pad",
            "image",
            citation="nguyen2022vindr",
        ),
    )
}


def normalise_name(text: str) -> str:
    """Return ``text`` in lower case with letters and digits only: the form in which names are compared."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def find_source(name: str) -> Source:
    """Return the catalogued source called ``name`` or one of its aliases.

    Raises
    ------
    UsageError
        If there is none; the message names the known sources and the closest one.
    """
    wanted = normalise_name(name)
    for source in SOURCES.values():
        if wanted in {normalise_name(alias) for alias in (source.name, *source.aliases)}:
            return source
    raise UsageError(f"unknown source {name!r}{_suggestion(name)}; known sources: {', '.join(SOURCES)}.")


def source_or_custom(name: str) -> Source:
    """Return the catalogued source, or a plain one of that name for tables of one's own.

    A plain source keeps ids as they are (less the image suffix) and knows nothing of its images.

    Raises
    ------
    UsageError
        If the name is no lower-case identifier, or so close to a known one that it is likely a slip.
    """
    try:
        return find_source(name)
    except UsageError:
        if _suggestion(name) or not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name):
            raise
    return Source(name, name, (), "image_id", 0, "unknown", "image")


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(normalise_name(name), list(SOURCES), n=1, cutoff=0.75)
    return f" (did you mean {close[0]!r}?)" if close else ""
