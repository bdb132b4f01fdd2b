from __future__ import annotations

import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cxu.catalog import SOURCES, source_or_custom
from cxu.errors import ImageError, UsageError
from cxu.frame import ModelFrame, crop_box, full_frame, padded_frame
from cxu.image_index import ImageFile, build_index
from cxu.images import MAX_PIXELS, draw_model_frame, image_frame, image_size, read_grey

SHARED = Path(__file__).parents[2] / "shared" / "data"


def save(path: Path, values: np.ndarray, mode: str | None = None, **options) -> ImageFile:
    picture = Image.fromarray(values)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return ImageFile.at(path)


def ramp(height: int, width: int, dtype=np.uint8) -> np.ndarray:
    return (np.arange(height * width).reshape(height, width) * 37 % 251).astype(dtype)


def write_dicom(path: Path, height: int, width: int) -> ImageFile:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.PatientName = "Nobody"
    dataset.Rows, dataset.Columns = height, width
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 7, 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = bytes(height * width + height * width % 2)
    dataset.save_as(path, enforce_file_format=True)
    return ImageFile.at(path)


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# --- sizes and grey values ---


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_files_keep_their_values(tmp_path, suffix, dtype):
    values = ramp(7, 12, dtype) * (1 if dtype is np.uint8 else 257)
    file = save(tmp_path / f"x{suffix}", values)
    assert image_size(file) == (7, 12)
    grey = read_grey(file)
    assert grey.dtype == dtype
    np.testing.assert_array_equal(grey, values)


def test_big_endian_16_bit_tiff(tmp_path):
    values = np.array([[0, 513], [65535, 256]], np.uint16)
    path = tmp_path / "x.tif"
    tags = [(256, 4, 2), (257, 4, 2), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 4, 2), (279, 4, 8)]
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in tags
    )
    directory = struct.pack(">H", len(tags)) + entries + struct.pack(">I", 0)
    path.write_bytes(b"MM\x00*" + struct.pack(">I", 16) + values.astype(">u2").tobytes() + directory)
    np.testing.assert_array_equal(read_grey(ImageFile.at(path)), values)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_tiff_is_inverted_at_either_depth(tmp_path, dtype):
    values = ramp(3, 4, dtype)
    file = save(tmp_path / "x.tif", values)
    normal = read_grey(file)
    raw = bytearray(file.path.read_bytes())
    at = raw.index(struct.pack("<HHI", 262, 3, 1)) + 8
    assert raw[at : at + 2] == struct.pack("<H", 1)
    raw[at : at + 2] = struct.pack("<H", 0)
    file.path.write_bytes(raw)
    np.testing.assert_array_equal(read_grey(file), np.iinfo(dtype).max - normal)


def test_jpeg(tmp_path):
    file = save(tmp_path / "x.JPEG", np.full((9, 5), 100, np.uint8), quality=95)
    assert image_size(file) == (9, 5)
    assert read_grey(file).shape == (9, 5)
    assert abs(read_grey(file).astype(int) - 100).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
def test_other_modes_become_8_bit_grey(tmp_path, mode):
    values = np.zeros((4, 6), np.uint8)
    values[1, 2] = 255
    file = save(tmp_path / "x.png", values, mode)
    assert image_size(file) == (4, 6)
    grey = read_grey(file)
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, values)


def test_colour_becomes_luma_and_transparency_is_ignored(tmp_path):
    colours = np.zeros((1, 3, 4), np.uint8)
    colours[0, 0, 0] = colours[0, 1, 1] = colours[0, 2, 2] = 255  # red, green, blue; alpha 0
    # ITU-R 601: 0.299, 0.587, 0.114 of 255
    np.testing.assert_array_equal(read_grey(save(tmp_path / "x.png", colours)), [[76, 150, 29]])


def test_palette_image_gives_the_colours_not_the_indices(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([200, 200, 200, 10, 10, 10])
    picture.putdata([0, 1])
    picture.save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_grey(ImageFile.at(tmp_path / "x.png")), [[200, 10]])


def test_orientation_in_exif_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    file = save(tmp_path / "x.jpg", ramp(10, 20), exif=exif)
    assert image_size(file) == read_grey(file).shape == (10, 20)


def test_content_decides_not_the_suffix(tmp_path):
    Image.fromarray(ramp(3, 5)).save(tmp_path / "x.png", format="JPEG")
    assert image_size(ImageFile.at(tmp_path / "x.png")) == (3, 5)


def test_zip_members_are_read_alike(tmp_path):
    values = ramp(5, 8, np.uint16) * 200
    save(tmp_path / "x.png", values)
    write_dicom(tmp_path / "y.dcm", 4, 9)
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "x.png", "a/x.png")
        archive.write(tmp_path / "y.dcm", "a/y.dcm")
    image, dicom = build_index(tmp_path / "all.zip")
    assert image_size(image) == (5, 8)
    np.testing.assert_array_equal(read_grey(image), values)
    assert image_size(dicom) == (4, 9)


@pytest.mark.parametrize("suffix", [".dcm", ".dicom"])
def test_dicom_gives_its_size_but_not_its_pixels(tmp_path, suffix):
    file = write_dicom(tmp_path / f"x{suffix}", 31, 17)
    assert image_size(file) == (31, 17)
    with pytest.raises(ImageError, match=r"x\.(dcm|dicom) is a DICOM file: only its size"):
        read_grey(file)


# --- refusals ---


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, world", "no PNG, JPEG, TIFF or DICOM"),
        (b"GIF89a" + bytes(200), "no PNG, JPEG, TIFF or DICOM"),
        (b"\x89PNG\r\n\x1a\n", "damaged or truncated"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR\x00\x00", "damaged or truncated"),
        (b"\xff\xd8\xff\xe0\x00", "damaged or truncated"),
        (b"II*\x00\x08\x00\x00\x00", "damaged or truncated"),
        (bytes(128) + b"DICM", "DICOM header"),
        (bytes(128) + b"DICM" + b"\xff" * 300, "DICOM header"),
    ],
)
def test_what_is_no_image_is_refused_by_name(tmp_path, content, reason):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"broken\.png.*{reason}"):
        image_size(ImageFile.at(path))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_truncated_pixels_are_refused(tmp_path, suffix):
    file = save(tmp_path / f"x.{suffix}", np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8))
    content = file.path.read_bytes()
    file.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=rf"x\.{suffix} is damaged or truncated"):
        read_grey(file)


def test_damaged_zip_member_is_refused(tmp_path):
    path = tmp_path / "all.zip"
    save(tmp_path / "x.png", ramp(40, 40))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "x.png", "x.png")
    raw = bytearray(path.read_bytes())
    raw[200] ^= 0xFF
    path.write_bytes(raw)
    (file,) = build_index(path)
    with pytest.raises(ImageError, match=r"all\.zip!x\.png is damaged"):
        read_grey(file)


def test_folder_and_missing_file_are_refused(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(ImageError, match=r"x\.png is a folder"):
        image_size(ImageFile.at(tmp_path / "x.png"))
    with pytest.raises(ImageError, match=r"y\.png does not exist"):
        image_size(ImageFile.at(tmp_path / "y.png"))


@pytest.mark.parametrize("shape", [(60_000, 60_000), (9_000, 10_000)])
def test_too_large_images_are_refused_from_the_header_without_a_warning(tmp_path, shape):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*shape))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (image_size, read_grey):
            with pytest.raises(ImageError, match=r"bomb\.png is too large"):
                read(ImageFile.at(path))


def test_pixel_limit_is_inclusive(tmp_path):
    assert MAX_PIXELS == 80_000_000
    path = tmp_path / "x.png"
    path.write_bytes(png_header(10_000, 8_000))
    assert image_size(ImageFile.at(path)) == (8_000, 10_000)


def test_too_large_dicom_is_refused(tmp_path):
    file = write_dicom(tmp_path / "x.dcm", 2, 2)
    raw = file.path.read_bytes()
    for tag in (0x0010, 0x0011):
        element = struct.pack("<HH", 0x0028, tag) + b"US" + struct.pack("<HH", 2, 2)
        assert element in raw
        raw = raw.replace(element, element[:-2] + struct.pack("<H", 60_000))
    file.path.write_bytes(raw)
    with pytest.raises(ImageError, match="too large: 60000 × 60000"):
        image_size(file)


def test_dicom_without_size_is_refused(tmp_path):
    import pydicom

    file = write_dicom(tmp_path / "x.dcm", 2, 2)
    dataset = pydicom.dcmread(file.path)
    del dataset.Rows
    dataset.save_as(file.path)
    with pytest.raises(ImageError, match="Rows"):
        image_size(file)


@pytest.mark.parametrize(
    ("values", "reason"), [(np.ones((2, 2), np.float32), "floating"), (np.full((2, 2), -1, np.int32), "32-bit")]
)
def test_other_pixel_types_are_refused(tmp_path, values, reason):
    with pytest.raises(ImageError, match=reason):
        read_grey(save(tmp_path / "x.tif", values))


# --- the frame of an image ---


def bordered(height: int, width: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    image = np.zeros((height, width), np.uint8)
    image[top : height - bottom, left : width - right] = 40
    return image


def test_sources_that_crop_use_the_content(tmp_path):
    file = save(tmp_path / "x.png", bordered(60, 80, left=10, top=5, right=21, bottom=4))
    # content 49 × 51 at (10, 5): side 51, one column before, one after
    assert image_frame(file, SOURCES["mimic"]) == ((60, 80), ModelFrame(51.0, (9.0, 5.0)))


@pytest.mark.parametrize(("name", "exact"), [("chexpert", True), ("vindr", True), ("mine", False)])
def test_sources_that_pad_use_the_header_only(tmp_path, name, exact):
    path = tmp_path / "x.png"
    path.write_bytes(png_header(80, 61))  # no pixels at all: decoding it would fail
    expected = ModelFrame(80.0, (0.0, -9.0), exact)
    assert image_frame(ImageFile.at(path), source_or_custom(name)) == ((61, 80), expected)


def test_native_source(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png_header(1024, 1024))
    assert image_frame(ImageFile.at(path), SOURCES["chestxray8"]) == ((1024, 1024), ModelFrame(1024.0, (0.0, 0.0)))


def test_dicom_frames(tmp_path):
    file = write_dicom(tmp_path / "x.dicom", 30, 20)
    assert image_frame(file, SOURCES["vindr"]) == ((30, 20), ModelFrame(30.0, (-5.0, 0.0)))
    with pytest.raises(ImageError, match="crop of PadChest"):
        image_frame(file, SOURCES["padchest"])


# --- drawing ---


def naive_draw(grey: np.ndarray, frame: ModelFrame, size: int) -> np.ndarray:
    """Average the image over each output pixel's window by brute force: pixels as unit boxes, zero outside."""
    step = frame.side / size
    width = max(step, 1.0)
    out = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            y, x = frame.offset_xy[1] + row * step, frame.offset_xy[0] + column * step
            for i in range(grey.shape[0]):
                for j in range(grey.shape[1]):
                    overlap_y = min(y + width / 2, i + 0.5) - max(y - width / 2, i - 0.5)
                    overlap_x = min(x + width / 2, j + 0.5) - max(x - width / 2, j - 0.5)
                    out[row, column] += max(overlap_y, 0) * max(overlap_x, 0) * grey[i, j]
    return out / width**2


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 12),
    st.floats(0.5, 30),
    st.tuples(st.floats(-8, 8), st.floats(-8, 8)),
)
def test_drawing_equals_brute_force(height, width, size, side, offset_xy):
    grey, frame = ramp(height, width), ModelFrame(side, offset_xy)
    np.testing.assert_allclose(draw_model_frame(grey, frame, size), naive_draw(grey, frame, size), atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_same_size_is_the_padded_image_bit_for_bit(dtype):
    grey = ramp(37, 50, dtype)
    drawn = draw_model_frame(grey, full_frame(37, 50), 50)
    assert drawn.dtype == np.float32
    assert drawn.flags.c_contiguous
    np.testing.assert_array_equal(drawn[6:43], grey)
    assert not drawn[:6].any()
    assert not drawn[43:].any()


def test_enlarging_interpolates_linearly_between_pixel_centres():
    grey = np.array([[10, 20], [10, 20]], np.uint8)
    # step 0.5: columns at 0, 0.5, 1 and 1.5, the last halfway into the zeros
    np.testing.assert_allclose(draw_model_frame(grey, full_frame(2, 2), 4)[0], [10, 15, 20, 10])


def test_shrinking_averages_and_blends_with_the_zeros_outside():
    grey = np.full((6, 6), 12, np.uint8)
    # step 2: windows of 2 px around columns 0, 2 and 4; the first has a quarter outside
    np.testing.assert_allclose(draw_model_frame(grey, full_frame(6, 6), 3)[1], [9, 12, 12])


def test_shrinking_does_not_alias():
    grey = np.zeros((1000, 1000), np.uint8)
    grey[::2] = 200  # stripes of one pixel, thinner than the output's pixels
    drawn = draw_model_frame(grey, full_frame(1000, 1000), 128)
    assert abs(drawn[1:, 1:] - 100).max() < 15


def test_a_frame_outside_the_image_is_black():
    assert not draw_model_frame(np.full((4, 4), 9, np.uint8), ModelFrame(10.0, (50.0, -80.0)), 8).any()


@pytest.mark.parametrize("aspect", [2, 3])
def test_high_pixels_are_drawn_like_repeated_rows(aspect):
    grey = ramp(12, 30)
    frame = full_frame(12 * aspect, 30)
    # row y lies at y * aspect, the middle of its copies (aspect - 1) / 2 further down
    shifted = ModelFrame(frame.side, (frame.offset_xy[0], frame.offset_xy[1] + (aspect - 1) / 2))
    size = 5  # windows of several pixels
    repeated = draw_model_frame(np.repeat(grey, aspect, axis=0), shifted, size)
    np.testing.assert_allclose(draw_model_frame(grey, frame, size, aspect=aspect), repeated, atol=1e-3)


@pytest.mark.parametrize("aspect", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_aspects_are_refused(aspect):
    with pytest.raises(UsageError, match="aspect"):
        draw_model_frame(ramp(4, 4), full_frame(4, 4), 8, aspect=aspect)


@pytest.mark.parametrize("side", [1.0, 3.0, 1e6])
def test_extreme_sides(side):
    drawn = draw_model_frame(np.full((3, 1), 255, np.uint8), ModelFrame(side, (0.0, 0.0)), 64)
    assert drawn.shape == (64, 64)
    assert np.isfinite(drawn).all()
    assert 0 <= drawn.min() <= drawn.max() <= 255


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        (ModelFrame(0.0, (0.0, 0.0)), 64),
        (ModelFrame(float("nan"), (0.0, 0.0)), 64),
        (ModelFrame(5.0, (float("inf"), 0.0)), 64),
        (ModelFrame(5.0, (0.0, 0.0)), 0),
    ],
)
def test_impossible_frames_are_refused(frame, size):
    with pytest.raises(UsageError, match="cannot draw"):
        draw_model_frame(np.zeros((2, 2), np.uint8), frame, size)


# --- a disc through crop, pad and resize ---


def paint_disc(image: np.ndarray, centre_xy: tuple[float, float], radius: float) -> None:
    """Add a disc of value 200 with an anti-aliased edge, so that its centroid is its centre."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    distance = np.hypot(columns - centre_xy[0], rows - centre_xy[1])
    share = np.clip(radius + 0.5 - distance, 0, 1)
    np.copyto(image, np.round(image * (1 - share) + 200 * share).astype(image.dtype))


def centroid_xy(image: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(image.shape)
    return np.array([(columns * image).sum(), (rows * image).sum()], np.float64) / image.sum(dtype=np.float64)


DISC_SHAPES_HW = [(999, 1203), (1203, 999), (613, 613), (301, 1111), (512, 1024), (1537, 1024), (129, 87), (2500, 2048)]


@pytest.mark.parametrize("size", [1024, 512])
@pytest.mark.parametrize("borders", [(0, 0, 0, 0), (17, 8, 5, 30)])
@pytest.mark.parametrize("shape_hw", DISC_SHAPES_HW, ids=str)
def test_disc_through_crop_pad_and_resize_lands_on_the_map(shape_hw, borders, size):
    image = bordered(*shape_hw, *borders)
    frame = padded_frame(crop_box(image))
    field = draw_model_frame(image, frame, size)
    centre_xy = np.array([0.37 * shape_hw[1] + 0.3, 0.58 * shape_hw[0] + 0.4])
    paint_disc(image, tuple(centre_xy), radius=0.08 * min(shape_hw))
    assert padded_frame(crop_box(image)) == frame

    drawn_xy = centroid_xy(draw_model_frame(image, frame, size) - field) * 1024 / size
    assert np.linalg.norm(drawn_xy - frame.to_model(centre_xy)) < 0.05
    assert np.linalg.norm(frame.to_image(drawn_xy) - centre_xy) < 0.05


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_disc_in_other_pixel_types(dtype):
    image = np.zeros((701, 433), dtype)
    paint_disc(image, (200.25, 333.5), radius=40)
    frame = full_frame(*image.shape)
    drawn_xy = centroid_xy(draw_model_frame(image, frame, 512)) * 2
    np.testing.assert_allclose(drawn_xy, frame.to_model(np.array([200.25, 333.5])), atol=0.05)


@pytest.mark.shared
def test_real_files_are_read():
    if not (SHARED / "demo").is_dir():
        pytest.skip(f"needs the real images in {SHARED}")
    files = [file for file in build_index(SHARED / "demo") if file.path.suffix == ".png"]
    assert files
    for file in files:
        shape, frame = image_frame(file, SOURCES["mimic"])
        grey = read_grey(file)
        assert grey.shape == shape == image_size(file)
        drawn = draw_model_frame(grey, frame, 512)
        assert drawn.max() > 0.5 * grey.max()
