"""``cxu check`` on real films, which may not be committed: left as they are, moved, mirrored, exchanged."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from cxu import store, table
from cxu.check.plan import plan_check
from cxu.check.run import check_images
from cxu.model.weight_source import load
from cxu.training.data import read_folder

pytestmark = pytest.mark.shared

N = 12


@pytest.fixture(scope="module")
def films(shared_data):
    """Return pixels and landmarks of films that the network was not trained on: the validation part."""
    part = read_folder(shared_data / "train").part("val")
    chosen = np.flatnonzero(part.has_heart)[:N]
    files = {path.stem: path for path in (shared_data / "train" / "images").iterdir()}
    pixels = [np.asarray(Image.open(files[part.rows[place].name]).convert("L")) for place in chosen]
    return pixels, part.landmarks_xy[chosen]


@pytest.fixture
def look(tmp_path):
    def of(pixels, landmarks_xy):
        for index, one in enumerate(pixels):
            Image.fromarray(np.ascontiguousarray(one)).save(tmp_path / f"{index:02}.png", compress_level=1)
        columns = {"source": "own", "image_id": [f"{index:02}" for index in range(len(pixels))], "frame": "model"}
        columns |= {"height": 1024, "width": 1024, "landmarks_xy": landmarks_xy, "model_id": "annotated"}
        store.write_table(table.build_table(columns, len(pixels)), tmp_path / "rows.parquet")
        report = check_images(
            plan_check([store.open_table(tmp_path / "rows.parquet")], [str(tmp_path)]), load("bundled")
        )
        return Counter(row.verdict for row in report.rows), report

    return of


@pytest.mark.slow
def test_films_as_they_are(films, look):
    verdicts, report = look(*films)
    assert report.fits
    assert verdicts["ok"] >= N - 1


@pytest.mark.slow
def test_mirrored_films(films, look):
    pixels, landmarks_xy = films
    verdicts, report = look([one[:, ::-1] for one in pixels], landmarks_xy)
    assert verdicts["mirrored"] >= N - 1
    assert [finding.kind for finding in report.faults] == ["mirrored"]


@pytest.mark.slow
def test_films_and_table_mirrored_together(films, look):
    pixels, landmarks_xy = films
    verdicts, report = look([one[:, ::-1] for one in pixels], landmarks_xy * (-1, 1) + (1023, 0))
    assert verdicts["ok"] >= N - 1
    assert report.fits


@pytest.mark.slow
def test_films_whose_top_was_cut_off(films, look):
    pixels, landmarks_xy = films
    verdicts, report = look([np.vstack([one[20:], np.zeros((20, 512), np.uint8)]) for one in pixels], landmarks_xy)
    assert verdicts["shifted"] >= N - 2
    assert [finding.kind for finding in report.faults] == ["shift"]
    assert report.sources[0].intervals["shift_y"].value == pytest.approx(-40, abs=6)


@pytest.mark.slow
def test_films_of_other_patients(films, look):
    pixels, landmarks_xy = films
    verdicts, report = look(pixels, np.roll(landmarks_xy, 1, axis=0))
    assert verdicts["ok"] <= N // 3
    assert not report.fits
