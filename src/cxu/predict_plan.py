"""What predict has to do: which images there are, under which ids. Folders are listed, no image is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cxu.catalog import IMAGE_SUFFIXES, SOURCES, Source, source_or_custom
from cxu.errors import DuplicateIdError, ImageError, MissingInputError
from cxu.image_listing import LIST_SUFFIXES, ZIP_SUFFIX, ImageFile, list_files, spec_texts

LOCAL_SOURCE: Final = "local"
_DICOM_MARK: Final = slice(128, 132)


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One image to predict: its file, and the id that its row gets."""

    source: Source
    image_id: str
    file: ImageFile


@dataclass(frozen=True)
class PredictPlan:
    """The images in order, and the files that lie among them and are no images by their names."""

    images: tuple[PlannedImage, ...]
    others: tuple[ImageFile, ...] = ()


def plan_images(
    specs: Sequence[str | Path], source_name: str | None = None, *, own_folders: Sequence[Path] = ()
) -> PredictPlan:
    """List the images to predict.

    Parameters
    ----------
    specs
        Images, folders (walked however deep), globs, zips, or lists of images (``.txt``, ``.lst``, ``.csv``). A file
        named itself is taken whatever its suffix. In a folder an image has an image suffix, or none and the mark of
        a DICOM file.
    source_name
        The data set that the images are of: its id rule makes the ids. None: ``local``, whose ids are paths below the
        folder that was named.
    own_folders
        Folders that cxu writes into: where they lie below a folder of images, they are left out.

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
    texts = spec_texts(list(specs))
    own = [folder.absolute() for folder in own_folders]
    listed = dict.fromkeys(file for text in texts for file in _list_spec(text) if not _is_own(file, own))
    kept = {file: file.is_image or str(file.path) in texts or _is_bare_dicom(file) for file in listed}
    images = tuple(PlannedImage(source, _image_id(file, source, source_name), file) for file in _once(kept))
    if not images:
        raise MissingInputError(
            f"no image in {', '.join(map(str, specs))}; expected files ending in {', '.join(IMAGE_SUFFIXES)}, or DICOM "
            "files without a suffix"
        )
    _check_ids(images)
    return PredictPlan(images, tuple(file for file, is_kept in kept.items() if not is_kept))


def _list_spec(text: str) -> Iterator[ImageFile]:
    path = Path(text)
    if path.is_file() and path.suffix.lower() not in (*LIST_SUFFIXES, ZIP_SUFFIX):
        return iter([ImageFile.at(path)])
    return list_files(text)


def _is_own(file: ImageFile, own: Sequence[Path]) -> bool:
    return any(file.path.is_relative_to(folder) and not Path(file.root).is_relative_to(folder) for folder in own)


def _is_bare_dicom(file: ImageFile) -> bool:
    """Tell whether a file without a suffix is DICOM: archives export files named IM0001 or by a UID."""
    if any(character.isalpha() for character in Path(file.file).suffix):
        return False
    try:
        with file.open() as stream:
            return stream.read(_DICOM_MARK.stop)[_DICOM_MARK] == b"DICM"
    except (ImageError, OSError):
        return False


def _once(kept: dict[ImageFile, bool]) -> Iterator[ImageFile]:
    """Yield the files that are kept, those that overlapping specs list twice once."""
    seen: set[tuple[Path, str | None]] = set()
    for file, is_kept in kept.items():
        place = (file.path, file.member)
        if is_kept and place not in seen:
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
