"""Made-up films as DICOM files."""

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

DX = "1.2.840.10008.5.1.4.1.1.1.1"


def save_film(path, *, shape_hw=(10, 12), without=(), **elements):
    """Write a film of one grey as DICOM; ``elements`` replace or add some, None leaves one blank."""
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    number = f"1.2.3.{sum(path.name.encode())}"
    defaults = {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": DX,
        "SOPInstanceUID": number,
        "StudyInstanceUID": f"{number}.1",
        "SeriesInstanceUID": f"{number}.2",
        "PatientName": "Müller^Jo",
        "PatientID": "P7",
        "PatientBirthDate": "19500101",
        "PatientSex": "F",
        "StudyDate": "20200102",
        "StudyTime": "101500",
        "StudyID": "S1",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "Who^Dr",
        "Modality": "DX",
        "Rows": shape_hw[0],
        "Columns": shape_hw[1],
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": bytes(shape_hw[0] * shape_hw[1]),
    }
    for name, value in {**defaults, **elements}.items():
        if name not in without:
            setattr(film, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    film.save_as(path, enforce_file_format=True)
