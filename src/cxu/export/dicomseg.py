"""A table → DICOM segmentations, one object a film, for films that are DICOM files themselves.

A segmentation belongs to its film: patient, study, references and geometry are copied from the film's own file, and
what that does not say is left out. Projection radiographs lie in no frame of reference; the segments then are the
film's own pixels, which the object refers to (PS3.3 A.51.5).

Source: PS3.3 A.51, C.8.20; highdicom's Segmentation.
"""

from __future__ import annotations

import io
import uuid
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import cxu
from cxu import dicom, files
from cxu.anatomy import Organ
from cxu.blockfolder import BlockFacts
from cxu.engine import run_shards
from cxu.errors import CxuError, ImageError
from cxu.export.blocks import ExportReport, Progress, block_tasks, image_stamp
from cxu.export.drawing import Account, BlockTask, DrawnRow, draw_rows
from cxu.export.plan import ExportPlan, folder_record
from cxu.image_listing import ImageFile
from cxu.images import file_kind, open_image
from cxu.maskfolder import INDEX_SCHEMA, MaskFolder
from cxu.maskplan import Block
from cxu.masks import Policy
from cxu.rasterize import Failure
from cxu.sharing import held

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIX: Final = ".dcm"
# SNOMED CT
_CATEGORY: Final = ("123037004", "SCT", "Anatomical Structure")
_TYPES: Final = {
    "right_lung": ("3341006", "SCT", "Right lung"),
    "left_lung": ("44029006", "SCT", "Left lung"),
    "heart": ("80891009", "SCT", "Heart"),
}
_FAMILY: Final = ("123110", "DCM", "Artificial Intelligence")
_LABEL: Final = "LUNGS_HEART"
_DESCRIPTION: Final = "Lungs and heart"
_NAME: Final = "cxu"
_SERIES_NUMBER: Final = 900  # behind those of the study's own images
_UID_SPACE: Final = uuid.uuid5(uuid.NAMESPACE_OID, "cxu export")

# What identifies the film: without one of these there is nothing that a segmentation could belong to.
_REFERENCES: Final = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# What every object of a patient and a study has to say, be it blank.
_IDENTITY: Final = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
# What is copied where the film has it.
_OPTIONAL: Final = (
    "SpecificCharacterSet",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "Modality",
    "Rows",
    "Columns",
    "PatientOrientation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
# What makes a position in space; part of it makes none, and spacing alone highdicom writes but does not read.
_POSITION: Final = (
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
)


def export_dicomseg(
    plan: ExportPlan, *, workers: int = 1, overwrite: bool = False, progress: Progress = lambda _: None
) -> ExportReport:
    """Write ``<out>/<source>/<image_id>.dcm`` for each film, then ``index.parquet``; resumable, whole files only.

    Raises
    ------
    OutputExistsError
        If the folder holds something else and ``overwrite`` is not given.
    """
    folder = MaskFolder(plan.out)
    planned = (name for block in plan.masks.blocks for name in _planned(block))
    with held(plan.out):
        folder.claim(folder_record(plan), planned, overwrite=overwrite)
        report = ExportReport(paths=[plan.out])
        tasks = block_tasks(plan, plan.out)
        with closing(run_shards(_write_block, tasks, workers=workers)) as results:
            for result in results:
                report.account.add(result.account)
                report.resumed_rows += result.account.rows if result.resumed else 0
                progress(result.account.seen)
        contents = folder.write_index([block.name for block in plan.masks.blocks])
        report.files, report.bytes = contents.files, contents.n_bytes
        return report


def _planned(block: Block) -> list[str]:
    return [f"{stem}{SUFFIX}" for stem in block.stems]


@dataclass(frozen=True)
class _Written:
    account: Account
    resumed: bool = False


def _write_block(task: BlockTask) -> _Written:
    """Write the objects of one block, unless an earlier run did."""
    block, out = task.block, task.settings
    folder = MaskFolder(out)
    stamp = image_stamp(block)
    finished = folder.finished(block.name, stamp)
    if finished is not None:
        return _Written(_account_of(pq.read_table(folder.lines_path(block.name)), finished.assumed), resumed=True)
    folder.begin(block.name, _planned(block))
    failed, lines, assumed, n_bytes = Account(), [], 0, 0
    for row in draw_rows(task, failed):
        name = f"{block.stems[row.number - task.first]}{SUFFIX}" if row.usable else None
        try:
            n_bytes += write_segmentation(row, task.options.policy, out / name) if name else 0
        except CxuError as error:
            failed.failures.append(Failure(row.key.source, row.key.image_id, str(error)))
            continue
        assumed += name is not None and not row.placement.exact
        lines += _lines(row, name)
    index = pa.Table.from_pylist(lines, schema=INDEX_SCHEMA)
    account = _account_of(index, assumed)
    account.add(failed)
    facts = BlockFacts(account.rows, len(failed.failures), assumed, n_bytes, images=stamp)
    folder.finish(block.name, index, facts)
    return _Written(account)


def _lines(row: DrawnRow, name: str | None) -> list[dict[str, Any]]:
    """Return what the index says of a row, a line an organ."""
    return [
        {
            "source": row.key.source,
            "image_id": row.key.image_id,
            "organ": organ,
            "path": name if mask.usable else None,
            "usable": mask.usable,
            "area_ratio": mask.area_ratio,
            "crosses_itself": row.crossing[organ],
        }
        for organ, mask in row.organs.items()
    ]


def _account_of(lines: pa.Table, assumed: int) -> Account:
    """Return the account of the rows that lines of the index tell of."""
    account = Account(assumed=assumed)
    columns = (lines[name].to_pylist() for name in ("source", "image_id", "organ", "usable", "crosses_itself"))
    rows: dict[tuple[str, str], bool] = {}
    for source, image_id, organ, is_usable, crosses in zip(*columns, strict=True):
        account.organs[organ] += is_usable
        account.unusable[organ] += not is_usable
        account.crossing[organ] += crosses
        rows[source, image_id] = rows.get((source, image_id), False) or is_usable
    account.empty = [pair for pair, has_usable in rows.items() if not has_usable]
    account.rows = len(rows) - len(account.empty)
    return account


def write_segmentation(row: DrawnRow, policy: Policy, path: Path) -> int:
    """Write the segmentation of one film, a whole file or none, and return its size in bytes.

    Raises
    ------
    ImageError
        If the film is no DICOM file, or one that no segmentation can refer to.
    """
    assert row.image is not None, "rows without an image have failed before"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of pydicom and highdicom cite what they find, names of patients too
        reference = read_reference(row.image)
        with _explained(row.image, f"no segmentation can be made for it, a {reference.SOPClassUID.name}"):
            segmentation = make_segmentation(row, reference, policy)
            content = io.BytesIO()
            segmentation.save_as(content, enforce_file_format=True)
    # not by pydicom itself, which turns a full disk into another error
    files.write_bytes(path, content.getvalue())
    return path.stat().st_size


@contextmanager
def _explained(file: ImageFile, what: str) -> Iterator[None]:
    """Turn what pydicom and highdicom raise for files that break the standard, nearly anything, into an ImageError."""
    try:
        yield
    except (CxuError, OSError):
        raise
    except Exception as error:
        raise ImageError(
            f"{file.name}: {what} ({type(error).__name__}: {error}); put the file right, or leave it out"
        ) from error


def read_reference(file: ImageFile) -> Dataset:
    """Return what a segmentation takes from its film's file, and nothing else of it.

    That is who, which study, series and object; size, and the position in space where it is complete; and whether the
    patient's identity was removed. Blank is what every object has to say and this one does not.

    Raises
    ------
    ImageError
        If the file is no DICOM file, is damaged, or does not say which study and series it belongs to.
    """
    from pydicom import Dataset  # noqa: PLC0415 - takes longer to import than most images to read

    with open_image(file) as stream:
        kind = file_kind(file, stream)
        if kind != "DICOM":
            raise ImageError(
                f"{file.name} is a {kind} file: a segmentation belongs to a DICOM file, which says patient and study; "
                "give that with --images"
            )
        header = dicom.read_header(file, stream)
    found = Dataset()
    with _explained(file, "its header cannot be read"):
        _copy_references(file, header, found)
        is_placed = all(header.get(name) for name in _POSITION)
        for name in (*_IDENTITY, *_OPTIONAL, *((*_POSITION, "PositionReferenceIndicator") if is_placed else ())):
            if name in header:
                found[name] = header[name]
            elif name in _IDENTITY:
                setattr(found, name, None)
    return found


def _copy_references(file: ImageFile, header: Dataset, found: Dataset) -> None:
    meta = getattr(header, "file_meta", {})
    for name in _REFERENCES:
        # the class and the object stand in the file's own head too
        setattr(found, name, header.get(name) or meta.get(f"MediaStorage{name}"))
    missing = [name for name in _REFERENCES if not found.get(name)]
    if missing:
        raise ImageError(
            f"{file.name} lacks {', '.join(missing)}: it does not say which study and series a segmentation of it "
            "would belong to"
        )


def make_segmentation(row: DrawnRow, reference: Dataset, policy: Policy) -> Dataset:
    """Return the segmentation of one film, a segment for each usable organ; segments may overlap.

    Its own numbers follow from the film, the outlines, their model and the version, so the same export names the same
    object; when it was made is all that differs. What highdicom raises for a film that breaks the standard comes
    through as it is.
    """
    made = _segmentation(row, reference, policy)
    if "SpecificCharacterSet" in reference:  # what names are written in; highdicom copied it only later than 0.24
        made.SpecificCharacterSet = reference.SpecificCharacterSet
    if "FrameOfReferenceUID" not in made:
        # without a position, which way the film lies has to be said, be it blank; highdicom leaves it out
        made.PatientOrientation = reference.get("PatientOrientation")
    # highdicom makes this one up anew each time
    organisation = _uid("dimensions", row, reference, policy)
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = organisation
    return made


def _segmentation(row: DrawnRow, reference: Dataset, policy: Policy) -> Any:
    import highdicom as hd  # noqa: PLC0415 - an extra, and slow to import

    organs = row.usable
    return hd.seg.Segmentation(
        source_images=[reference],
        pixel_array=np.stack([row.organs[organ.name].plane for organ in organs], axis=-1)[None],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _describe(organ, number, row.facts["model_id"], policy) for number, organ in enumerate(organs, start=1)
        ],
        series_instance_uid=_uid("series", row, reference, policy),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=_uid("object", row, reference, policy),
        instance_number=1,
        manufacturer=_NAME,
        manufacturer_model_name=_NAME,
        software_versions=cxu.__version__,
        device_serial_number=cxu.__version__,  # may not be blank, and software has none
        content_label=_LABEL,
        content_description=_DESCRIPTION,
        series_description=_DESCRIPTION,
        omit_empty_frames=False,
    )


def _uid(what: str, row: DrawnRow, reference: Dataset, policy: Policy) -> str:
    """Return a UID of the kind 2.25, which is a UUID in decimal."""
    content = {
        "what": what,
        "film": str(reference.SOPInstanceUID),
        "row": [row.key.source, row.key.image_id, row.facts["model_id"]],
        "drawn": [policy, row.placement.shape_hw, cxu.__version__],
        "outlines": {organ.name: row.organs[organ.name].vertices.tolist() for organ in row.usable},
    }
    return f"2.25.{uuid.uuid5(_UID_SPACE, files.hash_of(content)).int}"


def _describe(organ: Organ, number: int, model_id: str, policy: Policy) -> Any:
    import highdicom as hd  # noqa: PLC0415 - as above
    from skimage.color import rgb2lab  # noqa: PLC0415 - no other format needs it

    algorithm = hd.AlgorithmIdentificationSequence(
        name=_NAME,
        family=hd.sr.CodedConcept(*_FAMILY),
        version=cxu.__version__,
        parameters={"model_id": model_id, "policy": policy},
    )
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=organ.title.capitalize(),
        segmented_property_category=hd.sr.CodedConcept(*_CATEGORY),
        segmented_property_type=hd.sr.CodedConcept(*_TYPES[organ.name]),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        display_color=hd.color.CIELabColor(*rgb2lab(np.array(organ.colour_rgb) / 255).tolist()),
    )
