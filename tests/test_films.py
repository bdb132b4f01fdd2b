from __future__ import annotations

import dataclasses
import io
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)

from cxu.catalog import SOURCES
from cxu.errors import ImageError
from cxu.films import (
    Film,
    FilmFrame,
    chest_contrast,
    film_frame,
    grey_range,
    model_input,
    read_film,
    unit_grey,
)
from cxu.frame import ModelFrame
from cxu.image_listing import ImageFile
from cxu.phantom import synthetic_background
from cxu.shape import load_shape_model


def ramp(height: int = 40, width: int = 50, dtype=np.uint8) -> np.ndarray:
    return (np.arange(height * width).reshape(height, width) * 37 % 251).astype(dtype)


def read(path: Path) -> Film:
    return read_film(ImageFile.at(path))


def save(path: Path, values: np.ndarray, mode: str | None = None, **options) -> Path:
    picture = Image.fromarray(values)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def dicom(stored: np.ndarray, bits: int | None = None, photometric: str = "MONOCHROME2", **elements) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.BitsAllocated = stored.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit, dataset.SamplesPerPixel = dataset.BitsStored - 1, 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PhotometricInterpretation = photometric
    dataset.PixelData = stored.tobytes() + bytes(stored.nbytes % 2)
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def lut(first: int, entries: list[int], bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return item


def write(path: Path, dataset: Dataset) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def read_dicom(tmp_path: Path, dataset: Dataset) -> Film:
    return read(write(tmp_path / "x.dcm", dataset))


# --- PNG, JPEG, TIFF ---


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_files_keep_their_values(tmp_path, suffix, dtype):
    values = ramp(dtype=dtype) * (1 if dtype is np.uint8 else 257)
    film = read(save(tmp_path / f"x.{suffix}", values))
    assert (film.kind, film.grey.dtype, film.shape_hw) == ({"png": "PNG", "tif": "TIFF"}[suffix], dtype, (40, 50))
    assert (film.spacing_mm_xy, film.aspect, film.view) == (None, 1.0, None)
    np.testing.assert_array_equal(film.grey, values)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_in_colour_modes_is_read(tmp_path, mode):
    np.testing.assert_array_equal(read(save(tmp_path / "x.png", ramp(), mode)).grey, ramp())


def test_transparency_is_ignored(tmp_path):
    values = np.dstack([ramp()] * 3 + [np.zeros_like(ramp())])
    np.testing.assert_array_equal(read(save(tmp_path / "x.png", values)).grey, ramp())


def test_one_bit_pixels(tmp_path):
    values = np.zeros((40, 40), bool)
    values[3:7, 5] = True
    np.testing.assert_array_equal(read(save(tmp_path / "x.png", values)).grey, values * np.uint8(255))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg(tmp_path, mode):
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8)
    film = read(save(tmp_path / "x.jpg", smooth, mode, quality=98))
    assert film.kind == "JPEG"
    assert abs(film.grey.astype(int) - smooth).max() <= 3


def test_white_is_zero_tiff_is_inverted(tmp_path):
    path = save(tmp_path / "x.tif", ramp())
    raw = bytearray(path.read_bytes())
    at = raw.index(struct.pack("<HHI", 262, 3, 1)) + 8
    raw[at : at + 2] = struct.pack("<H", 0)
    path.write_bytes(raw)
    np.testing.assert_array_equal(read(path).grey, 255 - ramp())


def test_a_small_coloured_annotation_passes(tmp_path):
    values = np.dstack([ramp(200, 200)] * 3)
    values[:20, :20] = [255, 0, 0]  # 1 % of the image: 2.55 levels on average
    assert read(save(tmp_path / "x.png", values)).grey.shape == (200, 200)


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_a_colour_photograph_is_refused_with_its_measure(tmp_path, mode):
    values = np.dstack([ramp(), ramp(), ramp() * 0])
    values[0, 0] = 255
    with pytest.raises(ImageError, match=r"x\.png is a colour image: .* differ by \d+ of 255 .* at most 10"):
        read(save(tmp_path / "x.png", values, mode))


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_several_pages_are_refused(tmp_path, suffix):
    first, second = Image.fromarray(ramp()), Image.fromarray(ramp()[::-1].copy())
    first.save(tmp_path / f"x.{suffix}", save_all=True, append_images=[second])
    with pytest.raises(ImageError, match=rf"x\.{suffix} has 2 frames or pages; expected one"):
        read(tmp_path / f"x.{suffix}")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((31, 60), "too small: 60 × 31"), ((1, 5000), "too small"), ((32, 129), "4.0 times"), ((400, 40), "10.0 times")],
)
def test_small_and_long_images_are_refused(tmp_path, shape, reason):
    with pytest.raises(ImageError, match=reason):
        read(save(tmp_path / "x.png", ramp(*shape)))


def test_limits_of_size_and_length_are_inclusive(tmp_path):
    assert read(save(tmp_path / "x.png", ramp(32, 128))).shape_hw == (32, 128)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_constant_images_are_refused(tmp_path, dtype):
    with pytest.raises(ImageError, match="no contrast: every pixel is 7"):
        read(save(tmp_path / "x.png", np.full((40, 40), 7, dtype)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("value", [0, 7, 255])
def test_constant_images_are_taken_where_the_gate_is_to_judge_them(tmp_path, dtype, value):
    film = read_film(ImageFile.at(save(tmp_path / "x.png", np.full((40, 60), value, dtype))), even_flat=True)
    assert film.is_flat
    assert not film.turned
    for source in (None, SOURCES["mimic"]):
        assert (model_input(film, film_frame(film, source), 64) == 0).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"GIF89a" + bytes(200), "no PNG"), (bytes(128) + b"DICM" + b"\xff" * 300, "DICOM")],
)
def test_what_is_no_image_is_refused(tmp_path, content, reason):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=rf"x\.png .*{reason}"):
        read(tmp_path / "x.png")


def test_folder_and_missing_file_are_refused(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(ImageError, match="is a folder"):
        read(tmp_path / "x.png")
    with pytest.raises(ImageError, match="does not exist"):
        read(tmp_path / "y.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_truncated_files_are_refused(tmp_path, suffix):
    path = save(tmp_path / f"x.{suffix}", np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="damaged or truncated"):
        read(path)


# --- DICOM: what the values mean ---


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 12), (np.uint16, 16)])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_uncompressed(tmp_path, dtype, bits, photometric):
    stored = ramp(41, 51, dtype)
    film = read_dicom(tmp_path, dicom(stored, bits, photometric))
    expected = stored if photometric == "MONOCHROME2" else 2**bits - 1 - stored
    assert (film.kind, film.grey.dtype) == ("DICOM", dtype)
    np.testing.assert_array_equal(film.grey, expected)


def test_bits_above_those_stored_do_not_count(tmp_path):
    stored = ramp(dtype=np.uint16)
    np.testing.assert_array_equal(read_dicom(tmp_path, dicom(stored | 0xF000, 12)).grey, stored)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_signed_values_count_from_the_lowest(tmp_path, photometric):
    stored = ramp(dtype=np.int16) - 100
    film = read_dicom(tmp_path, dicom(stored, 12, photometric))
    expected = stored + 2048 if photometric == "MONOCHROME2" else 2047 - stored
    np.testing.assert_array_equal(film.grey, expected)


@pytest.mark.parametrize(
    ("photometric", "shape", "is_inverted"),
    [
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "IDENTITY", True),
    ],
)
def test_presentation_lut_shape(tmp_path, photometric, shape, is_inverted):
    film = read_dicom(tmp_path, dicom(ramp(), None, photometric, PresentationLUTShape=shape))
    np.testing.assert_array_equal(film.grey, 255 - ramp() if is_inverted else ramp())


def test_a_rescale_alone_only_tells_its_sign(tmp_path):
    rising = read_dicom(tmp_path, dicom(ramp(), RescaleSlope="2.5", RescaleIntercept="-1024"))
    np.testing.assert_array_equal(rising.grey, ramp())
    falling = read_dicom(tmp_path, dicom(ramp(), RescaleSlope="-1", RescaleIntercept="255"))
    np.testing.assert_array_equal(falling.grey, 255 - ramp())


@pytest.mark.parametrize(
    ("function", "centre", "width", "expected"),
    [
        # PS3.3 C.11.2.1.2: from centre − 0.5 − (width − 1)/2 to centre − 0.5 + (width − 1)/2
        ("LINEAR", 100.5, 101, [0, 0, 0.5, 1, 1]),
        ("LINEAR_EXACT", 100, 100, [0, 0, 0.5, 1, 1]),
        ("SIGMOID", 100, 100, 1 / (1 + np.exp(-4 * (np.array([0, 50, 100, 150, 200]) - 100) / 100))),
    ],
)
@pytest.mark.parametrize("slope", [1, 2])
def test_windows(tmp_path, function, centre, width, expected, slope):
    stored = np.resize(np.array([0, 50, 100, 150, 200], np.uint8), (40, 40))
    dataset = dicom(stored, VOILUTFunction=function, WindowCenter=[centre * slope, 1], WindowWidth=[width, 2])
    if slope == 2:
        dataset.RescaleSlope, dataset.RescaleIntercept = "2", "0"
        dataset.WindowCenter = {"LINEAR": 200.5}.get(function, 200)
        dataset.WindowWidth = {"LINEAR": 201}.get(function, 200)
    film = read_dicom(tmp_path, dataset)
    assert film.grey.dtype == np.uint16
    np.testing.assert_allclose(film.grey[0, :5] / 65535, expected, atol=1e-5)


@pytest.mark.parametrize("window", [("", ""), (100, 0), (100, 1), (100, None)])
def test_a_window_without_extent_is_none(tmp_path, window):
    film = read_dicom(tmp_path, dicom(ramp(), WindowCenter=window[0], WindowWidth=window[1]))
    np.testing.assert_array_equal(film.grey, ramp())


def test_a_window_beside_the_values_is_ignored(tmp_path):
    pixels = ramp() // 4 + np.uint8(100)
    plain, beside = dicom(pixels), dicom(pixels, WindowCenter=20, WindowWidth=10)
    np.testing.assert_array_equal(read_dicom(tmp_path, beside).grey, read_dicom(tmp_path, plain).grey)


def test_voi_lut_comes_before_the_window_and_the_first_one_counts(tmp_path):
    stored = np.resize(np.array([0, 10, 11, 12, 13, 255], np.uint8), (40, 42))
    item, other = lut(10, [5, 300, 700, 1000], 10), lut(0, [0, 1], 8)
    film = read_dicom(tmp_path, dicom(stored, VOILUTSequence=[item, other], WindowCenter=100, WindowWidth=50))
    assert film.grey[0, :6].tolist() == [5, 5, 300, 700, 1000, 1000]
    inverse = read_dicom(tmp_path, dicom(stored, None, "MONOCHROME1", VOILUTSequence=[item]))
    assert inverse.grey[0, :6].tolist() == [1018, 1018, 723, 323, 23, 23]


def test_modality_lut_then_window(tmp_path):
    stored = np.resize(np.array([0, 1, 2, 3], np.uint8), (40, 40))
    dataset = dicom(stored, ModalityLUTSequence=[lut(0, [0, 30, 20, 40], 8)])
    dataset.ModalityLUTSequence[0].ModalityLUTType = "US"
    assert read_dicom(tmp_path, dataset).grey[0, :4].tolist() == [0, 30, 20, 40]
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 20, 40, "LINEAR_EXACT"
    assert read_dicom(tmp_path, dataset).grey[0, :4].tolist() == [0, 49151, 32768, 65535]


@pytest.mark.parametrize(
    ("slope", "intercept", "centre", "width", "function"),
    [
        (1, 0, None, None, "LINEAR"),
        (1, 0, 1700, 900, "LINEAR"),
        (2, -1024, 1001, 777, "LINEAR"),
        (0.1, -3.7, 120.3, 95.5, "LINEAR"),
        (0.37, 5, 600, 1000, "LINEAR_EXACT"),
        (1, 0, 2000, 600, "SIGMOID"),
        (-1, 4095, 2000, 1500, "LINEAR"),
    ],
)
def test_monochrome1_and_its_mirrored_monochrome2_twin_are_identical(
    tmp_path, slope, intercept, centre, width, function
):
    stored = np.random.default_rng(0).integers(0, 4096, (64, 80), np.uint16)
    one, two = dicom(stored, 12, "MONOCHROME1"), dicom(4095 - stored, 12)
    for dataset in (one, two):
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    if centre is not None:
        # v' = slope · (4095 − p) + intercept = total − v; LINEAR's window is centred on centre − 0.5
        total = 4095 * slope + 2 * intercept
        one.WindowCenter, two.WindowCenter = centre, round(total - centre + (function == "LINEAR"), 6)
        one.WindowWidth = two.WindowWidth = width
        one.VOILUTFunction = two.VOILUTFunction = function
    first, second = read_dicom(tmp_path, one), read_dicom(tmp_path, two)
    assert len(np.unique(first.grey)) > 200
    np.testing.assert_array_equal(first.grey, second.grey)


@pytest.mark.shared
def test_real_monochrome_files(shared_data, tmp_path):
    one, two = (read(shared_data / "demo" / f"rsna_monochrome{k}.dcm") for k in (1, 2))
    assert (one.spacing_mm_xy, one.view) == ((0.168, 0.168), "PA")
    # the two files hold the same bytes of pixels, only the tag differs, so that one is a negative by its tag
    np.testing.assert_array_equal(one.grey, two.grey)
    assert (one.turned, two.turned) == (True, False)
    twin = read_dicom(tmp_path, dicom(255 - two.grey, None, "MONOCHROME1"))
    np.testing.assert_array_equal(twin.grey, two.grey)
    assert not twin.turned


@pytest.mark.shared
def test_real_films_are_told_from_their_negatives(shared_data):
    paths = [*sorted((shared_data / "train/images").iterdir())[::13], *sorted((shared_data / "demo").glob("*.png"))]
    assert len(paths) > 60
    for path in paths:
        film = read(path)
        assert not film.turned, path.name
        negative = dataclasses.replace(film, grey=255 - film.grey)
        assert chest_contrast(film) > 0.07, path.name
        assert chest_contrast(negative) < -0.07


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_negative_is_turned(tmp_path, dtype):
    grey = synthetic_background(load_shape_model().mean_xy, 256, np.random.default_rng(0)).astype(dtype)
    grey *= dtype(np.iinfo(dtype).max // 255)
    Image.fromarray(np.iinfo(dtype).max - grey).save(tmp_path / "negative.png")
    film = read(tmp_path / "negative.png")
    assert film.turned
    np.testing.assert_array_equal(film.grey, grey)


@pytest.mark.shared
def test_real_files_become_inputs(shared_data):
    paths = sorted((shared_data / "demo").iterdir())
    assert len(paths) == 9
    for path in paths:
        film = read(path)
        drawn = model_input(film, film_frame(film), 256)
        assert drawn.shape == (256, 256)
        assert 0 == drawn.min() < 0.2 < drawn.mean() < 0.8 < drawn.max() <= 1


# --- DICOM: compression, geometry, refusals ---


def encapsulated(dataset: Dataset, syntax: str, frame: bytes) -> Dataset:
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return dataset


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_lossless_compression_changes_nothing(tmp_path, syntax, photometric, dtype):
    dataset = dicom(ramp(40, 50, dtype), 12 if dtype != np.uint8 else 8, photometric)
    plain = read_dicom(tmp_path, dataset)
    dataset.compress(syntax)
    np.testing.assert_array_equal(read_dicom(tmp_path, dataset).grey, plain.grey)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_window_that_cuts_most_of_the_film_off_is_ignored(tmp_path, caplog, photometric):
    pixels = 16 * ramp(40, 50, np.uint16)  # of 12 bits
    plain = read_dicom(tmp_path, dicom(pixels, 12, photometric))
    left_over = dicom(pixels, 12, photometric)
    left_over.WindowCenter, left_over.WindowWidth = 128, 256
    np.testing.assert_array_equal(read_dicom(tmp_path, left_over).grey, plain.grey)
    assert (
        "its window (centre 128.0, width 256.0) cuts off more than nine tenths of the film, and is ignored"
        in caplog.text
    )
    caplog.clear()
    middle = int(np.median(pixels))
    wide = dicom(pixels, 12, photometric)
    wide.WindowCenter, wide.WindowWidth = middle, int(0.7 * np.ptp(pixels))
    windowed = read_dicom(tmp_path, wide).grey
    assert not caplog.text
    assert 0.2 < np.mean((windowed == 0) | (windowed == 65535)) < 0.4


def test_jpeg_baseline(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(smooth).save(stream, format="JPEG", quality=98)
    film = read_dicom(tmp_path, encapsulated(dicom(smooth, None, "MONOCHROME2"), JPEGBaseline8Bit, stream.getvalue()))
    assert abs(film.grey.astype(int) - smooth).max() <= 3


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    from pydicom.pixels.decoders import JPEGLosslessSV1Decoder

    monkeypatch.setattr(type(JPEGLosslessSV1Decoder), "is_available", property(lambda self: False))
    dataset = encapsulated(dicom(ramp(dtype=np.uint16), 12), JPEGLosslessSV1, b"\xff\xd8\xff\xd9")
    with pytest.raises(ImageError, match=r"JPEG Lossless.*1\.2\.840\.10008\.1\.2\.4\.70\), .*pip install python-gdcm"):
        read_dicom(tmp_path, dataset)


def test_video_is_refused(tmp_path):
    dataset = encapsulated(dicom(ramp()), "1.2.840.10008.1.2.4.100", bytes(20))
    with pytest.raises(ImageError, match="compressed as MPEG2"):
        read_dicom(tmp_path, dataset)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless, JPEGExtended12Bit, JPEGBaseline8Bit])
def test_damaged_compressed_pixels_are_refused(tmp_path, syntax):
    dataset = encapsulated(dicom(ramp(dtype=np.uint8)), syntax, b"\xff\xd8\xff\x00damaged.")
    with pytest.raises(ImageError, match=r"x\.dcm is (a DICOM file that cannot be read|compressed)"):
        read_dicom(tmp_path, dataset)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_dicom_is_refused(tmp_path, share):
    path = write(tmp_path / "x.dcm", dicom(ramp(200, 200)))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ImageError, match=r"x\.dcm .*(truncated|cut off)"):
        read(path)


@pytest.mark.parametrize(
    ("elements", "spacing", "aspect"),
    [
        ({}, None, 1.0),
        ({"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [9, 9]}, (0.1, 0.2), 2.0),
        ({"ImagerPixelSpacing": [0.15, 0.3]}, (0.3, 0.15), 0.5),
        ({"PixelAspectRatio": [3, 2]}, None, 1.5),
        ({"PixelSpacing": [0.1, 0.1], "PixelAspectRatio": [3, 2]}, (0.1, 0.1), 1.0),
        ({"PixelSpacing": [0, 0], "PixelAspectRatio": [1, 2]}, None, 0.5),
        ({"PixelSpacing": "", "ImagerPixelSpacing": [0.2, 0.2]}, (0.2, 0.2), 1.0),
        ({"PixelSpacing": [0.14300, 0.14301]}, (0.14301, 0.143), 1.0),
    ],
)
def test_spacing_and_aspect(tmp_path, elements, spacing, aspect):
    film = read_dicom(tmp_path, dicom(ramp(), **elements))
    assert (film.spacing_mm_xy, film.aspect) == (spacing, aspect)


def test_physical_proportions_decide_what_is_too_long(tmp_path):
    assert read_dicom(tmp_path, dicom(ramp(40, 240), PixelAspectRatio=[2, 1])).aspect == 2
    with pytest.raises(ImageError, match=r"aspect 5, one side 5\.0 times"):
        read_dicom(tmp_path, dicom(ramp(40, 40), PixelAspectRatio=[5, 1]))


def test_view(tmp_path):
    assert read_dicom(tmp_path, dicom(ramp(), ViewPosition="AP")).view == "AP"
    assert read_dicom(tmp_path, dicom(ramp(), ViewPosition="")).view is None


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"NumberOfFrames": 2}, "has 2 frames"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour DICOM image .RGB, 3 samples"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour DICOM image .PALETTE COLOR"),
        ({"Rows": 20_000, "Columns": 20_000}, "too large"),
        ({"BitsAllocated": 32}, "pixels of 32 bits"),
        ({"BitsStored": 6, "HighBit": 7}, "HighBit 7 with 6 bits stored"),
        ({"RescaleSlope": 0}, "RescaleSlope 0"),
        ({"Rows": 41}, "damaged or truncated"),
        ({"VOILUTFunction": "ODD", "WindowCenter": 9, "WindowWidth": 9}, "VOILUTFunction 'ODD'"),
    ],
)
def test_other_dicom_is_refused(tmp_path, elements, reason):
    with pytest.raises(ImageError, match=rf"x\.dcm .*{reason}"):
        read_dicom(tmp_path, dicom(ramp(), **elements))


def test_dicom_without_pixels_or_image_is_refused(tmp_path):
    dataset = dicom(ramp())
    del dataset.PixelData
    with pytest.raises(ImageError, match="no 8- or 16-bit pixels"):
        read_dicom(tmp_path, dataset)
    del dataset.Rows
    dataset.SOPClassUID = GrayscaleSoftcopyPresentationStateStorage
    with pytest.raises(ImageError, match=r"without an image .Grayscale Softcopy Presentation State"):
        read_dicom(tmp_path, dataset)


@pytest.mark.parametrize("is_implicit", [True, False])
def test_dicom_without_preamble_is_read_by_its_suffix(tmp_path, is_implicit):
    dataset = dicom(ramp())
    del dataset.file_meta
    for name in ("x.DCM", "x.dicom", "x.bin"):
        pydicom.dcmwrite(tmp_path / name, dataset, implicit_vr=is_implicit, little_endian=True)
    np.testing.assert_array_equal(read(tmp_path / "x.DCM").grey, ramp())
    np.testing.assert_array_equal(read(tmp_path / "x.dicom").grey, ramp())
    with pytest.raises(ImageError, match="no PNG, JPEG, TIFF or DICOM"):
        read(tmp_path / "x.bin")
    (tmp_path / "y.dcm").write_bytes(b"hello, world")
    with pytest.raises(ImageError, match="no PNG, JPEG, TIFF or DICOM"):
        read(tmp_path / "y.dcm")


# --- grey scaling ---


def test_limits_of_a_plain_ramp():
    # 1000 pixels: ranks 4 and 995 first; then those further than 991/64 = 15.5 from these, and 4 of their 961 in
    grey = np.arange(1000, dtype=np.uint16).reshape(20, 50)
    assert grey_range(grey) == (4 + 16 + 4, 995 - 16 - 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_types_agree(dtype):
    np.testing.assert_array_equal(unit_grey(ramp(dtype=dtype)), unit_grey(ramp()))


def test_padding_borders_markers_and_dead_pixels_do_not_set_the_limits():
    film = np.random.default_rng(2).integers(900, 1800, (300, 250)).astype(np.uint16)
    low, high = grey_range(film)
    padded = np.pad(film, ((0, 0), (60, 40)))
    padded[:4] = 4095  # a white border
    padded[10:30, 70:90] = 4095
    padded[200, 200] = 65535
    assert grey_range(padded) == pytest.approx((low, high), abs=30)
    np.testing.assert_allclose(unit_grey(padded)[40:190, 60:310], unit_grey(film)[40:190], atol=0.05)


@pytest.mark.parametrize("share", [0.002, 0.3])
def test_drawings_of_two_levels_keep_both(share):
    grey = np.full((100, 100), 40, np.uint8)
    grey.flat[: int(share * grey.size)] = 200
    np.testing.assert_array_equal(unit_grey(grey), (grey == 200).astype(np.float32))


def test_one_level_becomes_zeros():
    assert not unit_grey(np.full((4, 4), 9, np.uint16)).any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(0, 10_000), st.sampled_from([3, 40, 256]))
def test_scaling_does_not_depend_on_scale_offset_or_sign(seed, slope, offset, levels):
    grey = np.random.default_rng(seed).integers(0, levels, (23, 31)).astype(np.uint16)
    expected = unit_grey(grey)
    assert expected.dtype == np.float32
    assert 0 <= expected.min() <= expected.max() <= 1
    np.testing.assert_array_equal(unit_grey(grey * np.uint16(slope) + np.uint16(offset)), expected)
    np.testing.assert_array_equal(unit_grey((grey * 0.5 - offset).astype(np.float32)), expected)
    np.testing.assert_allclose(unit_grey(np.uint16(65535) - grey), 1 - expected, atol=1e-6)


# --- frames and the model's input ---


coordinate = st.floats(-2000, 4000, allow_nan=False)


@given(st.integers(32, 4000), st.integers(32, 4000), st.floats(0.3, 3.5), st.lists(st.tuples(coordinate, coordinate)))
def test_frames_there_and_back(height, width, aspect, points):
    frame = film_frame(Film(np.broadcast_to(np.uint8(0), (height, width)), "DICOM", aspect=aspect))
    points_xy = np.array(points, np.float64).reshape(-1, 2)
    np.testing.assert_allclose(frame.to_image(frame.to_model(points_xy)), points_xy, atol=1e-6)
    np.testing.assert_allclose(frame.sigma_to_image(frame.sigma_to_model(points_xy)), points_xy, atol=1e-6)
    moved = frame.to_image(points_xy + 3) - frame.to_image(points_xy)  # a sigma is a distance
    np.testing.assert_allclose(moved, np.broadcast_to(frame.sigma_to_image(np.full(2, 3.0)), moved.shape), atol=1e-6)


def test_frame_by_hand():
    # 100 × 300 px, twice as high as wide: 200 × 300 square ones, padded by 50 above
    film = Film(np.zeros((100, 300), np.uint8), "DICOM", aspect=2.0)
    frame = film_frame(film)
    assert frame == FilmFrame(ModelFrame(300.0, (0.0, -50.0)), 2.0)
    np.testing.assert_allclose(frame.to_image(np.array([[512.0, 512.0]])), [[150, 50]])
    np.testing.assert_allclose(frame.sigma_to_image(np.array([1024.0, 1024.0])), [300, 150])


def test_only_pictures_of_sources_that_crop_are_cropped():
    grey = np.zeros((60, 80), np.uint8)
    grey[10:50, 20:60] = 99
    assert film_frame(Film(grey, "PNG"), SOURCES["mimic"]).frame == ModelFrame(40.0, (20.0, 10.0))
    for frame in (film_frame(Film(grey, "DICOM"), SOURCES["mimic"]), film_frame(Film(grey, "PNG"), SOURCES["vindr"])):
        assert frame.frame == ModelFrame(80.0, (0.0, -10.0))


def test_model_input_is_the_scaled_film_in_its_frame():
    film = Film(ramp(48, 64), "PNG")
    drawn = model_input(film, film_frame(film), 64)
    assert (drawn.dtype, drawn.shape) == (np.float32, (64, 64))
    np.testing.assert_allclose(drawn[8:56], unit_grey(film.grey), atol=1e-6)
    assert not drawn[:8].any()
    assert not drawn[56:].any()


def disc(shape_hw: tuple[int, int], centre_xy: tuple[float, float], aspect: float, border: int) -> np.ndarray:
    """Paint a round disc of 200 on 40, soft-edged, in pixels ``aspect`` times as high as wide; borders are 0."""
    rows, columns = np.ogrid[: shape_hw[0], : shape_hw[1]]
    radius = 0.12 * min(shape_hw[1], shape_hw[0] * aspect)
    distance = np.hypot(columns - centre_xy[0], (rows - centre_xy[1]) * aspect)
    image = 40 + 160 * np.clip((radius + 1 - distance) / 2, 0, 1)
    if border:
        image[:border] = image[-border:] = image[:, :border] = image[:, -2 * border :] = 0
    return image


@pytest.mark.parametrize("size", [256, 512, 1024])
@pytest.mark.parametrize(
    ("shape_hw", "aspect", "border", "dtype"),
    [
        ((999, 1203), 1.0, 0, np.uint8),
        ((1203, 999), 1.0, 0, np.uint16),
        ((613, 613), 1.0, 31, np.uint8),
        ((301, 1111), 1.0, 0, np.float32),
        ((1000, 1000), 2.0, 0, np.uint8),
        ((1101, 800), 0.6, 25, np.uint16),
        ((2500, 2048), 1.0, 70, np.uint16),
    ],
    ids=str,
)
def test_a_disc_is_found_back(shape_hw, aspect, border, dtype, size):
    centre_xy = np.array([0.37 * shape_hw[1] + 0.3, 0.58 * shape_hw[0] + 0.4])
    film = Film(disc(shape_hw, tuple(centre_xy), aspect, border).astype(dtype), "PNG", aspect=aspect)
    frame = film_frame(film)
    drawn = model_input(film, frame, size)
    share = (drawn - 0.21).clip(min=0)  # the ground is 0, or 0.2 where there are borders
    rows, columns = np.indices(drawn.shape)
    found_01 = (
        np.array([(columns * share).sum(), (rows * share).sum()], np.float64) / share.sum(dtype=np.float64) / size
    )
    assert np.linalg.norm(frame.to_image(found_01 * 1024) - centre_xy) < 0.5
    # round in the model's frame, whatever the pixels' shape
    width, height = np.count_nonzero(share.max(axis=0)), np.count_nonzero(share.max(axis=1))
    assert abs(width - height) <= 2
