"""What predict has to do: which images there are, under which ids. Folders are listed, no image is read."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cxu import files
from cxu.catalog import IMAGE_SUFFIXES, SOURCES, Source, source_or_custom
from cxu.errors import DuplicateIdError, ImageError, MissingInputError
from cxu.image_listing import LIST_SUFFIXES, ZIP_SUFFIX, ImageFile, list_files, spec_texts
from cxu.sharing import Share

LOCAL_SOURCE: Final = "local"
PREDICTIONS: Final = "predictions.parquet"
_BLOCK_IMAGES: Final = 64
_DICOM_MARK: Final = slice(128, 132)
_RESULT_FOLDERS: Final = ("overlays", "masks")


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One image to predict: its file, and the id that its row gets."""

    source: Source
    image_id: str
    file: ImageFile


@dataclass(frozen=True)
class PredictPlan:
    """The images in order, and what else was found.

    Attributes
    ----------
    images
        What to predict.
    others
        Files that lie among the images and are none by their names.
    own
        Pictures and masks that cxu wrote.
    unusable
        Archives and lines of lists that name no image, and why.
    """

    images: tuple[PlannedImage, ...]
    others: tuple[ImageFile, ...] = ()
    own: tuple[ImageFile, ...] = ()
    unusable: tuple[tuple[ImageFile, str], ...] = ()

    def of_share(self, share: Share | None) -> dict[int, PlannedImage]:
        """Return the images of one job of an array by their positions, in blocks, so that all jobs have some."""
        places = range(len(self.images))
        if share is None:
            return dict(zip(places, self.images, strict=True))
        size = max(1, min(_BLOCK_IMAGES, -(-len(self.images) // share.total)))
        return {place: self.images[place] for place in places if share.holds(place // size)}


def plan_images(specs: Sequence[str | Path], source_name: str | None = None) -> PredictPlan:
    """List the images to predict.

    Parameters
    ----------
    specs
        Images, folders (walked however deep), globs, zips, or lists of images (``.txt``, ``.lst``, ``.csv``). A file
        named itself is taken whatever its suffix. In a folder or zip an image has an image suffix, or none and the
        mark of a DICOM file. Pictures and masks that cxu wrote there are left out.
    source_name
        The data set that the images are of: its id rule makes the ids. None: ``local``, whose ids are paths below the
        folder that was named, or below that of a list.

    Raises
    ------
    MissingInputError
        If a spec does not exist, or there is no image at all.
    DuplicateIdError
        If two files have one id.
    UsageError
        If the source's name is not usable.
    """
    source = source_or_custom(source_name or LOCAL_SOURCE)
    _holds_results.cache_clear()
    texts = spec_texts(list(specs))
    listed = _once(file for text in texts for file in _list_spec(text))
    sorted_out: dict[str, list[ImageFile]] = {"image": [], "other": [], "own": [], "unusable": []}
    for file in listed:
        sorted_out["image" if str(file.path) in texts and not file.archive else _kind(file)].append(file)
    images = tuple(PlannedImage(source, _image_id(file, source, source_name), file) for file in sorted_out["image"])
    unusable = tuple((file, _problem(file)) for file in sorted_out["unusable"])
    if not images and not unusable:
        raise MissingInputError(
            f"no image in {', '.join(map(str, specs))}; expected files ending in {', '.join(IMAGE_SUFFIXES)}, or DICOM "
            "files without a suffix, that cxu did not write itself"
        )
    _check_ids(images)
    return PredictPlan(images, tuple(sorted_out["other"]), tuple(sorted_out["own"]), unusable)


def _kind(file: ImageFile) -> Literal["image", "other", "own", "unusable"]:
    if not file.path.is_file() or (not file.archive and file.file.lower().endswith(ZIP_SUFFIX)):
        return "unusable"
    if not file.archive and _holds_results(file.path.parent, Path(file.root)):
        return "own"
    return "image" if file.is_image or _is_bare_dicom(file) else "other"


@functools.lru_cache(maxsize=1 << 16)
def _holds_results(folder: Path, root: Path) -> bool:
    """Tell whether a folder below ``root`` holds masks that cxu drew, or pictures of its predictions."""
    if folder.name in _RESULT_FOLDERS and (folder.parent / PREDICTIONS).is_file():
        return True
    if (folder / files.RECORD).is_file() and not (folder / PREDICTIONS).is_file():
        return True
    return folder not in (root, folder.parent) and _holds_results(folder.parent, root)


def _problem(file: ImageFile) -> str:
    """Say what is wrong with a listed file that is no image."""
    if not file.path.exists():
        return f"{file.name} does not exist."
    if file.path.is_dir():
        return f"the folder {file.name} cannot be listed: see to its permissions."
    return f"{file.name} is no readable zip: download or copy it again, or move it away."


def _list_spec(text: str) -> Iterator[ImageFile]:
    path = Path(text)
    if path.is_file() and path.suffix.lower() not in (*LIST_SUFFIXES, ZIP_SUFFIX):
        return iter([ImageFile.at(path)])
    return list_files(text)


def _is_bare_dicom(file: ImageFile) -> bool:
    """Tell whether a file without a suffix is DICOM: archives export files named IM0001 or by a UID."""
    path = Path(file.file)
    # DICOMDIR is the table of contents of a disc
    if path.name.upper() == "DICOMDIR" or any(character.isalpha() for character in path.suffix):
        return False
    try:
        with file.open() as stream:
            return stream.read(_DICOM_MARK.stop)[_DICOM_MARK] == b"DICM"
    except (ImageError, OSError):
        return False


def _once(listed: Iterable[ImageFile]) -> Iterator[ImageFile]:
    """Yield each file once, also where overlapping specs list it twice."""
    seen: set[tuple[Path, str | None]] = set()
    for file in listed:
        place = (file.path, file.member)
        if place not in seen:
            seen.add(place)
            yield file


def _image_id(file: ImageFile, source: Source, source_name: str | None) -> str:
    relative = file.relative.as_posix()
    # file names need not be UTF-8, but a table's text is
    text = relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if source_name is None:
        return text
    if source.name not in SOURCES:
        return source.canonical_id(text)
    # a catalogued id names its own folders, whatever folder was given
    return source.canonical_id(file.key(source.id_depth))


def _check_ids(images: Sequence[PlannedImage]) -> None:
    taken: dict[str, ImageFile] = {}
    for image in images:
        first = taken.setdefault(image.image_id, image.file)
        if first is not image.file:
            raise DuplicateIdError(
                f"{first.name} and {image.file.name} would both be image {image.image_id!r} of {image.source.name}: "
                "name one folder above both, or predict them apart, each with an --out of its own"
            )
