"""What the demo makes of a film: the numbers of predict, filter, measure and rasterize; damage."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import cxu
from cxu import table
from cxu.anatomy import IGNORE_LABEL
from cxu.demo import markup, results
from cxu.demo.desk import NOTHING, Desk
from cxu.demo.session import (
    EXAMPLE_NAME,
    MAX_STROKE_POINTS,
    MAX_STROKES,
    PICTURE_PX,
    LoadedFilm,
    Settings,
    Stroke,
    damaged_input,
    damaged_preview,
    example_png,
    load_film,
    painted,
    predict_film,
    select_nodes,
)
from cxu.demo.sessions import Session
from cxu.errors import ImageError, UsageError
from cxu.evaluation.corruption_damage import add_noise
from cxu.model.weight_source import load
from cxu.predict_run import predict_images
from cxu.raster import decode_png
from predict_helpers import film_pixels, write_film, write_weights

CPU = torch.device("cpu")
STROKE = Stroke.parse([[300, 300], [500, 500]], 50)


@pytest.fixture(scope="module")
def weights_path(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def weights(weights_path):
    return load(str(weights_path))


@pytest.fixture(scope="module")
def bundled():
    return load("bundled")


@pytest.fixture
def film(tmp_path, weights):
    return load_film(write_film(tmp_path / "a.png", shape_hw=(100, 80)), weights.model.config.size)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [2, 7])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "b.tif"])
def test_rows_are_those_of_predict(tmp_path, weights, weights_path, name, samples):
    path = tmp_path / name
    Image.fromarray(film_pixels(3, shape_hw=(90, 120))).save(path)
    loaded = load_film(path, weights.model.config.size)
    row = predict_film(loaded, Settings(n_samples=samples), (), weights, CPU)
    assert row.equals(predict_images(path, weights=str(weights_path), n_samples=samples, device="cpu"))


@pytest.mark.slow
@pytest.mark.shared
def test_rows_of_real_films_are_those_of_predict(shared_data, weights, weights_path):
    for path in sorted((shared_data / "demo").glob("*.*")):
        row = predict_film(load_film(path, weights.model.config.size), Settings(n_samples=3), (), weights, CPU)
        assert row.equals(predict_images(path, weights=str(weights_path), n_samples=3, device="cpu")), path


def test_the_example_is_that_of_predict_with_the_bundled_weights(tmp_path, bundled):
    path = tmp_path / EXAMPLE_NAME
    path.write_bytes(example_png())
    row = predict_film(load_film(path, bundled.model.config.size), Settings(), (), bundled, CPU)
    assert row.equals(predict_images(path, device="cpu"))
    assert row["quality"][0].as_py() == "ok"


def test_confident_nodes_and_usable_organs_are_those_of_filter(film, weights):
    row = predict_film(film, Settings(n_samples=5), (), weights, CPU)
    limit = float(np.median(table.list_column(row, "sigma_model_px")))
    chosen = select_nodes(row, limit)
    selection = cxu.filter_rows(row, max_std=limit, quality="any")
    if len(selection.rows):
        assert table.confident_of(chosen).tolist() == table.confident_of(selection.rows).tolist()
        assert table.usable_of(chosen).tolist() == table.usable_of(selection.rows).tolist()
    all_in = cxu.filter_rows(row, max_std=1e4, quality="any").rows
    assert table.confident_of(select_nodes(row, 1e4)).tolist() == table.confident_of(all_in).tolist()


def test_result_holds_the_numbers_of_measure(film, weights):
    row = select_nodes(predict_film(film, Settings(n_samples=5), (), weights, CPU), 1e4)
    result, (measured,) = results.describe(row), cxu.measure_rows(row).to_pylist()
    ratio = result.cardiothoracic_ratio
    assert (ratio.value, ratio.low, ratio.high) == (measured["ctr"], measured["ctr_low"], measured["ctr_high"])
    sigma = table.list_column(row, "sigma_model_px")[0]
    heart = result.organs[2]
    assert (heart.organ, heart.confident, heart.nodes, heart.usable) == ("heart", 26, 26, True)
    assert heart.mean_sigma_px == pytest.approx(sigma[94:].mean())
    assert heart.median_sigma_px == pytest.approx(np.median(sigma[94:]))
    assert heart.area_px2.value == measured["heart_area_px2"]
    assert heart.area_mm2.value is None
    assert heart.area_mm2.blank == "no_spacing"


def test_an_organ_without_confident_nodes_has_no_area_and_no_ratio(film, weights):
    row = select_nodes(predict_film(film, Settings(n_samples=5), (), weights, CPU), 0.001)
    result = results.describe(row)
    assert result.cardiothoracic_ratio == results.Measure(None, None, None, "unconfident")
    assert [(organ.confident, organ.usable, organ.area_px2.value) for organ in result.organs] == [(0, False, None)] * 3
    assert set(np.unique(decode_png(results.as_label_png(row)))) == {0, IGNORE_LABEL}


def test_downloads_read_back(film, weights, tmp_path):
    settings = Settings(10, 5, 60.0)
    row = select_nodes(predict_film(film, settings, [STROKE], weights, CPU), 1e4)
    (tmp_path / "rows.csv").write_bytes(results.as_csv(row, tmp_path))
    cxu.import_csv(tmp_path / "rows.csv", "mine", frame="image", home=tmp_path / "home")
    back = cxu.read_table("mine", home=tmp_path / "home")
    assert [back[name][0].as_py() for name in ("image_id", "height", "width")] == ["a.png", 100, 80]
    np.testing.assert_allclose(table.landmarks_of(back), table.landmarks_of(row), atol=0.006)
    labels = decode_png(results.as_label_png(row))
    assert labels.tolist() == cxu.rasterize_row(row).labels.tolist()
    assert labels.shape == (100, 80)
    content = json.loads(results.as_json(film, settings, [STROKE], row, results.describe(row), weights, CPU))
    assert content["settings"]["noise_sigma"] == 10
    assert content["settings"]["occlusions"] == [{"radius_px": 50.0, "points_xy": [[300.0, 300.0], [500.0, 500.0]]}]
    assert content["model"]["model_id"] == weights.model_id
    assert content["versions"]["cxu"] == cxu.__version__
    assert content["film"]["sha256"] == row["file_sha256"][0].as_py()
    np.testing.assert_allclose(content["nodes"]["landmarks_xy"], table.landmarks_of(row)[0], atol=6e-4)
    assert "not a medical device" in content["note"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "home", "rows.csv"]


# --- damage ----------------------------------------------------------------------------------------------------------


def test_noise_is_that_of_the_evaluation(film):
    assert damaged_input(film, Settings(), ()) is film.pixels
    assert np.array_equal(damaged_input(film, Settings(30), ()), add_noise(film.pixels, 30, film.seed))


def test_what_is_painted_is_black_whatever_the_noise(film):
    covered = painted([STROKE], len(film.pixels))
    pixels = damaged_input(film, Settings(190), [STROKE])
    assert covered.any()
    assert not covered.all()
    assert not pixels[covered].any()
    assert np.array_equal(pixels[~covered], damaged_input(film, Settings(190), ())[~covered])
    shown = damaged_preview(film, Settings(190), [STROKE])
    assert not shown[painted([STROKE], PICTURE_PX)].any()


def test_preview_without_damage_is_the_film(film):
    assert np.array_equal(damaged_preview(film, Settings(), ()), film.preview)
    assert film.preview.shape == (PICTURE_PX, PICTURE_PX)
    noisy = damaged_preview(film, Settings(40), ())
    assert np.abs(noisy.astype(int) - film.preview).mean() > 5


def test_a_dot_is_a_disc_and_a_line_is_round_at_its_ends():
    dot = painted([Stroke.parse([[512, 512]], 100)], 256)
    assert dot.sum() == pytest.approx(np.pi * 25**2, rel=0.05)
    assert dot[128, 128 + 24]
    assert not dot[128, 128 + 27]
    line = painted([Stroke.parse([[256, 512], [768, 512]], 100)], 256)
    assert line.sum() == pytest.approx(np.pi * 25**2 + 128 * 50, rel=0.05)


def test_painting_raises_the_uncertainty_where_it_hides_the_film(tmp_path, bundled):
    path = tmp_path / EXAMPLE_NAME
    path.write_bytes(example_png())
    loaded = load_film(path, bundled.model.config.size)
    stroke = Stroke.parse([[250, 500], [300, 800]], 120)
    plain, hidden = (predict_film(loaded, Settings(), strokes, bundled, CPU) for strokes in ((), [stroke]))
    right = [table.list_column(row, "sigma_model_px")[0, :44].mean() for row in (plain, hidden)]
    assert right[1] > 1.2 * right[0]


@pytest.mark.parametrize(
    ("points", "radius", "said"),
    [
        (None, 10, "expected 1 to"),
        ("x", 10, "no list of points"),
        ([[1, 2]], None, "no list of points"),
        ([[1, 2], [3]], 10, "no list of points"),
        ([1, 2], 10, r"shape \(2,\)"),
        ([], 10, "expected 1 to"),
        ([[0, 0]] * (MAX_STROKE_POINTS + 1), 10, "expected 1 to"),
        ([[float("nan"), 0]], 10, "no numbers"),
        ([[0, 0]], float("inf"), "no numbers"),
    ],
)
def test_strokes_that_are_none_are_refused(points, radius, said):
    with pytest.raises(UsageError, match=said):
        Stroke.parse(points, radius)


def test_strokes_far_away_and_too_wide_are_taken_into_range():
    stroke = Stroke.parse([[1e30, -1e30]], 1e9)
    assert stroke.points_xy.tolist() == [[2048, -1024]]
    assert stroke.radius_px == 150


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((-1, 50, 20), "noise sigma is -1; expected a number from 0 to 190"),
        ((191, 50, 20), "noise sigma"),
        ((0, 1, 20), "samples is 1; expected a number from 2 to 200"),
        ((0, 201, 20), "samples"),
        ((0, 50, 0), "max-std"),
        ((0, float("nan"), 20), "samples"),
        ((None, 50, 20), "noise sigma is None"),
    ],
)
def test_settings_out_of_range_are_refused(values, said):
    with pytest.raises(UsageError, match=said):
        Settings.parse(*values)


# --- files -----------------------------------------------------------------------------------------------------------


def test_lists_and_zips_are_no_films(tmp_path):
    secret = write_film(tmp_path / "secret.png")
    listing = tmp_path / "list.txt"
    listing.write_text(f"{secret}\n")
    with pytest.raises(ImageError, match="is no PNG, JPEG, TIFF or DICOM file"):
        load_film(listing, 64)


def test_the_example_is_the_same_every_time():
    assert example_png.__wrapped__() == example_png()


# --- the desk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(weights, tmp_path, monkeypatch):
    for module in ("session", "markup"):  # drawing takes most of the time
        monkeypatch.setattr(f"cxu.demo.{module}.PICTURE_PX", 96)
    made = tmp_path / "private"
    made.mkdir()
    return Desk(weights, CPU, made)


def test_a_film_is_shown_with_its_numbers(desk, tmp_path):
    shown = desk.open_film("page", write_film(tmp_path / "a.png"), Settings(n_samples=5))
    assert shown.problem == ""
    assert 'src="data:image/jpeg;base64,' in shown.picture
    assert "a.png · 96 × 96 px" in shown.result
    assert "these weights have no gate" in shown.result
    assert [name in shown.downloads for name in ("a.csv", "a.labels.png", "a.json")] == [True] * 3
    assert list(desk.folder.iterdir()) == []


def test_a_wrong_file_says_why_and_leaves_the_page_as_it_was(desk, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    desk.open_film("page", write_film(tmp_path / "a.png"), Settings(n_samples=5))
    held = desk.sessions.get("page")
    shown = desk.open_film("page", tmp_path / "notes.txt", Settings(n_samples=5))
    assert "notes.txt is no PNG, JPEG, TIFF or DICOM file" in shown.problem
    assert 'role="alert"' in shown.problem
    assert str(tmp_path) not in shown.problem
    assert shown.picture is None
    assert desk.sessions.get("page") is held


def test_names_are_escaped(desk, tmp_path):
    path = write_film(tmp_path / "plain.png").rename(tmp_path / "<img src=x onerror=alert(1)>.png")
    shown = desk.open_film("page", path, Settings(n_samples=5))
    assert "<img src=x" not in shown.picture + shown.result + shown.downloads
    assert "&lt;img src=x" in shown.result
    assert "<b>" not in markup.problem_html("<b>")


def test_pages_do_not_see_each_other(desk, tmp_path):
    settings = Settings(n_samples=5)
    first = desk.open_film("one", write_film(tmp_path / "a.png"), settings)
    desk.open_film("two", write_film(tmp_path / "b.png", 1), settings)
    desk.paint("two", STROKE, settings)
    assert desk.change("one", settings) == first
    assert desk.change("three", settings) == NOTHING
    desk.leave("one")
    assert desk.change("one", settings) == NOTHING
    assert len(desk.sessions) == 1


def test_a_limit_alone_asks_nothing_of_the_network(desk, tmp_path, monkeypatch):
    settings = Settings(n_samples=5)
    shown = desk.open_film("page", write_film(tmp_path / "a.png"), settings)
    monkeypatch.setattr("cxu.demo.desk.predict_film", None)
    assert desk.change("page", replace(settings, max_std_px=1.0)).picture != shown.picture
    with pytest.raises(TypeError):
        desk.change("page", replace(settings, noise_sigma=5.0))


def test_strokes_are_added_undone_and_cleared(desk, tmp_path):
    settings = Settings(n_samples=5)
    plain = desk.open_film("page", write_film(tmp_path / "a.png"), settings)
    once = desk.paint("page", STROKE, settings)
    twice = desk.paint("page", Stroke.parse([[700, 700]], 90), settings)
    assert len({plain.picture, once.picture, twice.picture}) == 3
    assert desk.undo("page", settings) == once
    assert desk.clear("page", settings) == plain
    assert desk.undo("page", settings) == plain
    assert [desk.paint("no page", STROKE, settings), desk.undo("no page", settings)] == [NOTHING, NOTHING]


def test_strokes_have_an_end(desk, film):
    desk.sessions.put("page", Session(film, (STROKE,) * MAX_STROKES))
    with pytest.raises(UsageError, match="200 strokes are the most"):
        desk.paint("page", STROKE, Settings(n_samples=5))


def test_an_example_is_opened_without_a_file_left(desk):
    shown = desk.open_example("page", Settings(n_samples=5))
    assert EXAMPLE_NAME in shown.result
    assert list(desk.folder.iterdir()) == []


def test_a_film_in_memory_is_small(tmp_path, weights):
    Image.fromarray(film_pixels(size=2000)).save(tmp_path / "large.png")
    loaded = load_film(tmp_path / "large.png", weights.model.config.size)
    arrays = [value for value in vars(loaded).values() if isinstance(value, np.ndarray)]
    assert isinstance(loaded, LoadedFilm)
    assert sum(array.nbytes for array in arrays) < 1_000_000


# --- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quality", "sign"), [("ok", "✓ Quality: ok"), ("review", "! Quality: review"), ("reject", "✕ Quality: reject")]
)
def test_the_flag_says_the_verdict_in_words_and_colour(quality, sign):
    result = results.Result(quality, 1.5, "seems <turned>", 9.0, results.Measure(None), None, ())
    flag = markup.flag_html(result)
    assert sign in flag
    assert f"cxu-{quality}" in flag
    assert "seems &lt;turned&gt;" in flag


def test_the_scale_marks_the_limit():
    assert 'style="left:50.0%"' in markup.scale_html(12.0, vmax_px=24.0)
    assert "max-std 30 (beyond the scale)" in markup.scale_html(30.0, vmax_px=24.0)


def test_areas_are_in_cm2_where_the_spacing_is_known():
    organ = results.OrganResult(
        "heart", 9.0, 8.0, 26, 26, True, results.Measure(5e4, 4e4, 6e4), results.Measure(12_345.0, 11_345.0, 13_345.0)
    )
    shown = markup.organs_html([organ])
    assert "area, cm²" in shown
    assert "123.5 <small>± 10.0</small>" in shown
    without = markup.organs_html([replace(organ, area_mm2=results.Measure(None))])
    assert "area, px²" in without
    assert "50,000 <small>± 10,000</small>" in without
