"""``import cxu``: the verbs as functions, on small tables and on the embedded sample."""

from importlib.resources import files as package_files

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import cxu
from builders import chest, make_rows, published_csv, published_row
from cxu import codec, table
from cxu.anatomy import IGNORE_LABEL, ORGAN_NAMES
from cxu.errors import DuplicateIdError, FormatError, MissingInputError, OutputExistsError, UsageError
from cxu.raster import fill_polygon
from hub_server import HubServer

SAMPLE = package_files("cxu") / "data/sample_synthetic.csv"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sigma(value, n_rows=1):
    return np.full((n_rows, 120, 2), value, np.float32)


def rows_with_sigma(sigma_xy, **columns):
    """Return rows in the model frame with these standard deviations [n, 120, 2]."""
    return make_rows(len(sigma_xy), **{**table.sigma_columns(sigma_xy), "n_samples": 50, **columns})


# --- homes and tables ------------------------------------------------------------------------------------------------


def test_home_is_the_folder_named_or_the_environments_or_the_default(monkeypatch, tmp_path):
    assert cxu.open_home("here").root.as_posix() == "here"
    assert cxu.open_home().root.as_posix() == "cxu-data"
    monkeypatch.setenv("CXU_HOME", str(tmp_path / "there"))
    assert cxu.open_home().root == tmp_path / "there"
    assert cxu.open_home("here").root.as_posix() == "here"


def test_import_filter_read_and_draw_the_sample():
    report = cxu.import_csv(SAMPLE, "synthetic", frame="model")
    assert (report.imported, report.problems, report.already_there) == (24, [], False)
    rows = cxu.read_table("synthetic")
    assert cxu.landmarks(rows).shape == (24, 120, 2)
    assert cxu.landmarks(rows).dtype == np.float32
    assert np.isfinite(cxu.sigmas(rows)).all()
    assert cxu.import_csv(str(SAMPLE), "synthetic", frame="model").already_there


def test_import_says_which_rows_are_malformed(tmp_path):
    path = tmp_path / "NIH.csv"
    path.write_text(published_csv([published_row("a.png"), published_row("b.png", Height="tall")]))
    report = cxu.import_csv(path, "NIH", home=tmp_path / "home")
    assert report.source == "chestxray8"
    assert report.imported == 1
    assert [(problem.line, problem.image_id) for problem in report.problems] == [(3, "b.png")]
    with pytest.raises(FormatError, match="line 3"):
        cxu.import_csv(path, "NIH", home=tmp_path / "other", strict=True)


def test_import_keeps_the_shipped_masks_on_request(tmp_path):
    path = tmp_path / "NIH.csv"
    path.write_text(published_csv([published_row("a.png")]))
    cxu.import_csv(path, "nih", home="without")
    cxu.import_csv(path, "nih", home="with", keep_rle=True)
    assert "rle_heart" not in cxu.read_table("chestxray8", home="without").column_names
    assert cxu.read_table("chestxray8", home="with")["rle_heart"].to_pylist() == ["20 1"]


def test_import_refuses(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text(published_csv([published_row("a.png"), published_row("a.png")]))
    with pytest.raises(DuplicateIdError, match="lines 2, 3"):
        cxu.import_csv(path, "nih")
    with pytest.raises(MissingInputError, match=r"absent\.csv"):
        cxu.import_csv("absent.csv", "nih")
    with pytest.raises(UsageError, match="did you mean 'mimic'"):
        cxu.import_csv(path, "mimmic")
    assert not cxu.open_home().listings()


def test_read_table_takes_names_and_files(tmp_path):
    cxu.import_csv(SAMPLE, "synthetic", frame="model")
    rows = cxu.read_table("synthetic")
    path = tmp_path / "some.parquet"
    pq.write_table(rows.slice(0, 3), path)
    assert len(cxu.read_table(path)) == len(cxu.read_table(str(path))) == len(cxu.open_table(path).read()) == 3
    selection_path = cxu.open_home().selection_path("latest")
    selection_path.parent.mkdir()
    pq.write_table(cxu.filter_rows(rows, max_std=5).rows, selection_path)
    assert len(cxu.read_table()) == len(cxu.read_table("latest")) == 21


def test_read_table_refuses(tmp_path):
    with pytest.raises(MissingInputError, match="it is empty: start with cxu fetch or cxu import"):
        cxu.read_table()
    cxu.import_csv(SAMPLE, "synthetic", frame="model")
    with pytest.raises(MissingInputError, match="sources: synthetic"):
        cxu.read_table("absent")
    pq.write_table(pa.table({"x": [1]}), "foreign.parquet")
    with pytest.raises(FormatError, match="no cxu table"):
        cxu.read_table("foreign.parquet")
    cxu.import_csv(SAMPLE, "synthetic", frame="image")
    with pytest.raises(UsageError, match="choose with --frame"):
        cxu.read_table("synthetic")
    assert set(cxu.read_table("synthetic", frame="image")["frame"].to_pylist()) == {"image"}


def test_sigmas_are_nan_where_there_are_none():
    assert np.isnan(cxu.sigmas(make_rows(2))).all()
    assert cxu.landmarks(make_rows(2).slice(0, 0)).shape == (0, 120, 2)


# --- filter ----------------------------------------------------------------------------------------------------------


def test_filter_keeps_nodes_organs_and_rows():
    sigma_xy = np.concatenate([sigma(4.0), sigma(4.0), sigma(9.0)])
    sigma_xy[1, 94:99] = 9.0  # five neighbours of the heart: one more than may be bridged
    sigma_xy[1, 0] = 9.0
    chosen = cxu.filter_rows(rows_with_sigma(sigma_xy), max_std=5)
    assert chosen.rows["image_id"].to_pylist() == ["image0000", "image0001"]
    assert chosen.excluded.to_pylist() == [{"source": "chestxray8", "image_id": "image0002", "reason": "max_std"}]
    assert table.usable_of(chosen.rows).tolist() == [[True, True, True], [True, True, False]]
    assert np.flatnonzero(~table.confident_of(chosen.rows)[1]).tolist() == [0, 94, 95, 96, 97, 98]
    assert chosen.report.rows_in == 3
    assert chosen.report.rows_out == 2


@pytest.mark.parametrize("limit", [5, 5.0, "5", "right_lung=5,left_lung=5,heart=5", "p100"])
def test_filter_takes_limits_as_numbers_and_text(limit):
    assert len(cxu.filter_rows(rows_with_sigma(sigma(4.0, 2)), max_std=limit).rows) == 2


def test_filter_takes_every_option():
    sigma_xy = np.concatenate([sigma(4.0), sigma(4.0), sigma(4.0)])
    sigma_xy[1, 94:] = 9.0
    rows = rows_with_sigma(sigma_xy, rca_mean=np.array([0.6, 0.8, 0.9]), rca_max=np.array([0.7, 0.85, 0.99]))

    def kept(**options):
        return [int(name[-1]) for name in cxu.filter_rows(rows, **options).rows["image_id"].to_pylist()]

    assert kept() == [0, 1, 2]
    assert kept(max_std=5, organs="heart") == [0, 2]
    assert kept(max_std=5, organs="heart", max_gap=26, min_confident=0) == [0, 1, 2]
    assert kept(min_rca=0.8) == [1, 2]
    assert kept(min_rca_max=0.9) == [2]
    assert kept(max_mean_std=4.5) == [0, 2]
    assert kept(where=["rca_mean>=0.7", "image_id!=image0002"]) == [1]


def test_filter_by_the_pixels_of_the_image():
    side = np.array([512.0, 2048.0])
    columns = table.sigma_columns(np.concatenate([sigma(4.0), sigma(4.0)]), side)
    rows = make_rows(2, **columns, frame="image", frame_side=side, n_samples=50)
    assert cxu.filter_rows(rows, max_std=5).rows["image_id"].to_pylist() == ["image0001"]  # 8 and 2 px of 1024
    assert len(cxu.filter_rows(rows, max_std=5, unit="image").rows) == 2


def test_filter_joins_labels(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("Image Index,View Position\nimage0000.png,PA\nimage0001.png,AP\nelsewhere.png,PA\n")
    chosen = cxu.filter_rows(rows_with_sigma(sigma(4.0, 3)), labels=[path], where=["View Position=PA"])
    assert chosen.rows["image_id"].to_pylist() == ["image0000"]
    assert chosen.rows["View Position"].to_pylist() == ["PA"]
    assert chosen.excluded["reason"].to_pylist() == ["where View Position=PA"] * 2


def test_filter_refuses():
    with pytest.raises(UsageError, match="no standard deviations"):
        cxu.filter_rows(make_rows(1), max_std=5)
    with pytest.raises(UsageError, match="no limit"):
        cxu.filter_rows(rows_with_sigma(sigma(4.0)), max_std="much")
    with pytest.raises(UsageError, match="expected a share"):
        cxu.filter_rows(rows_with_sigma(sigma(4.0)), min_rca=70)
    with pytest.raises(UsageError, match="unknown organ 'liver'"):
        cxu.filter_rows(rows_with_sigma(sigma(4.0)), organs="liver")
    with pytest.raises(DuplicateIdError, match="more than once"):
        cxu.filter_rows(make_rows(2, image_id=["a", "a"]))
    mixed = rows_with_sigma(sigma(4.0, 2), model_id=["published", "other"])
    with pytest.raises(UsageError, match="mix-models"):
        cxu.filter_rows(mixed, max_std=5)
    assert len(cxu.filter_rows(mixed, max_std=5, mix_models=True).rows) == 2


def test_filtering_a_selection_again_gives_the_same():
    once = cxu.filter_rows(rows_with_sigma(sigma(4.0, 2)), max_std=5)
    assert cxu.filter_rows(once.rows, max_std=5).rows.equals(once.rows)


# --- masks of one row ------------------------------------------------------------------------------------------------


def test_full_is_the_fill_of_all_nodes():
    drawing = cxu.rasterize_row(make_rows(1), policy="full")
    assert drawing.labels.shape == (1024, 1024)
    assert list(drawing.organs) == list(ORGAN_NAMES)
    for organ in cxu.ORGANS:
        expected = fill_polygon(chest()[organ.nodes], (1024, 1024))
        assert np.array_equal(drawing.organs[organ.name], expected)
    assert set(np.unique(drawing.labels)) == {0, 1, 2, 3}
    heart = drawing.organs["heart"] == 1
    assert (drawing.labels[heart] == 3).all()  # painted last, over the lungs


@pytest.mark.parametrize("policy", ["confident", "ignore"])
def test_where_all_is_certain_policies_equal_full(policy):
    rows = rows_with_sigma(sigma(0.0))
    assert np.array_equal(cxu.rasterize_row(rows, policy=policy).labels, cxu.rasterize_row(rows, policy="full").labels)


def test_a_selection_draws_its_confident_nodes_and_usable_organs():
    sigma_xy = sigma(2.0)
    sigma_xy[0, 100:103] = 9.0
    sigma_xy[0, :44] = 9.0
    rows = cxu.filter_rows(rows_with_sigma(sigma_xy), max_std=5).rows
    full, drawing = cxu.rasterize_row(make_rows(1), policy="full"), cxu.rasterize_row(rows)
    assert sorted(drawing.organs) == ["heart", "left_lung"]
    nodes = np.r_[94:100, 103:120]
    assert np.array_equal(drawing.organs["heart"], fill_polygon(chest()[nodes], (1024, 1024)))
    assert (drawing.labels[full.organs["right_lung"] == 1] == IGNORE_LABEL).all()
    background = cxu.rasterize_row(rows, unusable="background")
    assert set(np.unique(background.labels)) == {0, 2, 3}


def test_ignore_is_full_where_it_is_not_255():
    sigma_xy = sigma(2.0)
    sigma_xy[0, 100:103] = 9.0
    rows = cxu.filter_rows(rows_with_sigma(sigma_xy), max_std=5).rows
    full = cxu.rasterize_row(rows, policy="full").labels
    narrow, wide = (cxu.rasterize_row(rows, policy="ignore", band=band).labels for band in (1.0, 2.8))
    for labels in (narrow, wide):
        assert (labels == IGNORE_LABEL).any()
        assert np.array_equal(labels[labels != IGNORE_LABEL], full[labels != IGNORE_LABEL])
    assert (wide == IGNORE_LABEL).sum() > (narrow == IGNORE_LABEL).sum()
    assert (wide[narrow == IGNORE_LABEL] == IGNORE_LABEL).all()


def test_probability_has_planes_and_no_labels():
    rows = rows_with_sigma(sigma(6.0))
    drawing = cxu.rasterize_row(rows, policy="probability")
    assert drawing.labels is None
    for name, plane in drawing.organs.items():
        assert plane.dtype == np.uint8
        assert np.array_equal(plane >= 128, cxu.rasterize_row(rows, policy="full").organs[name] == 1)
        assert len(np.unique(plane)) > 20


def test_size_scales_the_mask():
    small = cxu.rasterize_row(make_rows(1), policy="full", size_hw=(256, 512))
    assert small.labels.shape == (256, 512)
    scaled = chest() * [0.5, 0.25]
    assert np.array_equal(small.organs["heart"], fill_polygon(scaled[94:], (256, 512)))


def test_rasterize_row_counts_rows_like_a_list():
    shifted = np.stack([chest(), chest() + 7])
    rows = make_rows(2, landmarks_xy=shifted)
    assert np.array_equal(cxu.rasterize_row(rows, -1).labels, cxu.rasterize_row(rows, 1).labels)
    assert not np.array_equal(cxu.rasterize_row(rows, 0).labels, cxu.rasterize_row(rows, 1).labels)
    for index in (2, -3):
        with pytest.raises(IndexError):
            cxu.rasterize_row(rows, index)


@pytest.mark.parametrize("policy", ["ignore", "probability"])
def test_rasterize_row_refuses_what_the_row_does_not_have(policy):
    with pytest.raises(UsageError, match="standard deviations"):
        cxu.rasterize_row(make_rows(1), policy=policy)


def test_rasterize_row_refuses_a_row_of_unknown_size():
    with pytest.raises(UsageError, match="size"):
        cxu.rasterize_row(make_rows(1, frame="image", height=None, width=None))


def test_rasterize_row_draws_in_the_pixels_of_the_frame():
    rows = make_rows(1, frame="image", height=300, width=200, landmarks_xy=chest(200, 300)[None])
    assert cxu.rasterize_row(rows).labels.shape == (300, 200)


# --- masks of many rows ----------------------------------------------------------------------------------------------


def write(rows, name="rows.parquet"):
    pq.write_table(rows, name)
    return name


def test_rasterize_rows_writes_what_rasterize_row_draws(tmp_path):
    rows = rows_with_sigma(sigma(4.0, 3))
    report = cxu.rasterize_rows(write(rows), "masks", policy="ignore")
    assert (report.rows, report.files, report.failures) == (3, 3, [])
    drawn = np.asarray(Image.open(tmp_path / "masks/chestxray8/image0001.png"))
    assert np.array_equal(drawn, cxu.rasterize_row(rows, 1, policy="ignore").labels)


def test_rasterize_rows_takes_tables_in_every_form(tmp_path):
    path = write(make_rows(2))
    masks = []
    for number, stored in enumerate((path, tmp_path / path, cxu.open_table(tmp_path / path))):
        cxu.rasterize_rows(stored, f"masks{number}", policy="full", format="rle")
        masks.append(pq.read_table(f"masks{number}/masks/part-00000.parquet"))
    assert masks[0].equals(masks[1])
    assert masks[1].equals(masks[2])
    heart = masks[0].to_pylist()[2]
    assert heart["organ"] == "heart"
    decoded = codec.decode_rle(heart["rle"], (heart["height"], heart["width"]))
    assert np.array_equal(decoded, fill_polygon(chest()[94:], (1024, 1024)))


def test_rasterize_rows_reads_the_latest_selection():
    cxu.import_csv(SAMPLE, "synthetic", frame="model", home="home")
    path = cxu.open_home("home").selection_path("latest")
    path.parent.mkdir()
    pq.write_table(cxu.filter_rows(cxu.read_table("synthetic", home="home").slice(0, 2), max_std=5).rows, path)
    assert cxu.rasterize_rows(None, "masks", home="home", size_hw=(64, 64)).rows == 2


def test_rasterize_rows_on_images(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((512, 512), 9, np.uint8)).save("images/image0000.png")
    report = cxu.rasterize_rows(write(make_rows(2)), "masks", policy="full", images=["images"])
    assert report.rows == 1
    assert [(failure.image_id, failure.reason) for failure in report.failures] == [
        ("image0001", "no image of this id among the images given")
    ]
    assert Image.open("masks/chestxray8/image0000.png").size == (512, 512)


def test_rasterize_rows_continues_refuses_and_overwrites():
    path = write(make_rows(2))
    cxu.rasterize_rows(path, "masks")
    assert cxu.rasterize_rows(path, "masks").resumed_rows == 2
    with pytest.raises(OutputExistsError, match=r"policy was .confident., now .full."):
        cxu.rasterize_rows(path, "masks", policy="full")
    assert cxu.rasterize_rows(path, "masks", policy="full", overwrite=True).resumed_rows == 0


def test_rasterize_rows_refuses(tmp_path):
    path = write(make_rows(2))
    with pytest.raises(UsageError, match="standard deviations"):
        cxu.rasterize_rows(path, "masks", policy="ignore")
    with pytest.raises(UsageError, match="cannot be written as rle"):
        cxu.rasterize_rows(path, "masks", policy="ignore", format="rle")
    with pytest.raises(UsageError, match="--size does not go with --images"):
        cxu.rasterize_rows(path, "masks", images=["."], size_hw=(9, 9))
    with pytest.raises(UsageError, match="expected 1 or more"):
        cxu.rasterize_rows(path, "masks", workers=0)
    with pytest.raises(MissingInputError):
        cxu.rasterize_rows("absent", "masks")
    with pytest.raises(UsageError, match=r"written to .*rename one"):
        cxu.rasterize_rows(write(make_rows(2, image_id=["a", "A"]), "twins.parquet"), "masks")


# --- frames and errors -----------------------------------------------------------------------------------------------


def test_model_frame_maps_both_ways():
    frame = cxu.ModelFrame(2048.0, (-100.0, 0.0))
    points = np.array([[50.0, 10.0], [0.0, 0.0]])
    assert frame.to_image(points).tolist() == [[0.0, 20.0], [-100.0, 0.0]]
    assert np.allclose(frame.to_model(frame.to_image(points)), points)


def test_every_refusal_is_a_cxu_error():
    with pytest.raises(cxu.CxuError):
        cxu.read_table("absent")
    assert issubclass(MissingInputError, FileNotFoundError)
    assert issubclass(UsageError, ValueError)


def test_fetch_source_brings_a_source_into_the_home(tmp_path, monkeypatch):
    header = "dicom_id,Dice RCA (Mean),Dice RCA (Max),Landmarks (Mean),Landmarks (Std),Height,Width\n"
    numbers = ",".join(str(400 + node) for node in range(240)), ",".join(["1.25"] * 240)
    row = f'0000-1111,0.8,0.9,"{numbers[0]}","{numbers[1]}",1024,1024\n'
    with HubServer() as server:
        server.add("ann/chest", {"Preprocessed/MIMIC-CXR-JPG.csv": (header + row).encode()})
        server.lead_here(monkeypatch, tmp_path / "hf")
        result = cxu.fetch_source("MIMIC", home=tmp_path / "home", repo="ann/chest")
    assert result.rows == 1
    rows = cxu.read_table("mimic", home=tmp_path / "home")
    assert rows["repo"].to_pylist() == ["ann/chest"]
    assert cxu.sigmas(rows)[0, 0].tolist() == [1.25, 1.25]


def with_samples(rows, samples_xy):
    kept = pa.array([samples_xy.astype(np.float32).ravel()], table.field_of("samples_xy").type)
    return rows.append_column(table.field_of("samples_xy"), kept)


def test_rasterize_row_takes_kept_samples_for_the_probability():
    far, near = chest() + np.float32(300), chest()
    rows = with_samples(make_rows(1), np.stack([near, near, near, far]))
    heart = cxu.rasterize_row(rows, policy="probability").organs["heart"]
    full = fill_polygon(near[94:], heart.shape)
    assert set(np.unique(heart[full == 1])) <= {191, 255}  # three samples of four, or all where both lie


@pytest.mark.parametrize("size_hw", [(0, 5), (5, -1)])
def test_rasterize_row_refuses_a_size_without_pixels(size_hw):
    with pytest.raises(UsageError, match="sides of 1 to"):
        cxu.rasterize_row(make_rows(1), size_hw=size_hw)
