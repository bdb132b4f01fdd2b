"""The embedded sample: made by a script, in the published columns, importable, and instructive to filter."""

import csv
import importlib.util
import io
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from cxu.anatomy import HEART, LEFT_LUNG, ORGANS, RIGHT_LUNG
from cxu.catalog import source_or_custom
from cxu.codec import decode_rle, encode_rle, parse_landmarks
from cxu.contour import longest_gap
from cxu.ingest import import_file
from cxu.ingest_parts import ImportOptions
from cxu.raster import fill_polygon
from cxu.store import Home

ROOT = Path(__file__).parents[1]
SAMPLE = resources.files("cxu") / "data" / "sample_synthetic.csv"
MAX_STD = 5.0


@pytest.fixture(scope="module")
def rows():
    csv.field_size_limit(1 << 24)
    return list(csv.DictReader(io.StringIO(SAMPLE.read_text())))


@pytest.fixture(scope="module")
def landmarks_xy(rows):
    return np.stack([parse_landmarks(row["Landmarks (Mean)"]) for row in rows])


@pytest.fixture(scope="module")
def sigma_px(rows):
    return np.stack([parse_landmarks(row["Landmarks (Std)"]).mean(axis=1) for row in rows])


@pytest.fixture(scope="module")
def usable(sigma_px):
    """Tell which organs [24, 3] stay usable at 5 px with at least half the nodes and no gap above 4."""
    confident = sigma_px <= MAX_STD
    rings = [confident[:, organ.nodes] for organ in ORGANS]
    return np.stack([(ring.mean(axis=1) >= 0.5) & (longest_gap(ring) <= 4) for ring in rings], axis=1)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_sample", ROOT / "scripts" / "make_sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_gives_the_committed_file(script):
    assert script.sample_text().encode() == SAMPLE.read_bytes()


def test_another_seed_gives_another_sample(script):
    assert script.sample_text(1) != script.sample_text(2)


def test_columns_are_the_published_ones(rows):
    assert list(rows[0]) == [
        "image_id",
        "Dice RCA (Mean)",
        "Dice RCA (Max)",
        "Landmarks (Mean)",
        "Landmarks (Std)",
        "Left Lung",
        "Right Lung",
        "Heart",
        "Height",
        "Width",
    ]


def test_every_row_says_it_is_synthetic(rows):
    assert [row["image_id"] for row in rows] == [f"synthetic_{number:04d}" for number in range(1, 25)]
    assert {(row["Height"], row["Width"]) for row in rows} == {("1024", "1024")}


def test_numbers_are_written_as_published(rows):
    for row in rows:
        landmarks, stds = row["Landmarks (Mean)"].split(","), row["Landmarks (Std)"].split(",")
        assert len(landmarks) == len(stds) == 240
        assert all(value == str(int(value)) for value in landmarks)
        assert all(value == f"{float(value):.2f}" and float(value) > 0 for value in stds)


def test_rle_is_the_redrawn_outline(rows, landmarks_xy):
    for row, landmarks in zip(rows, landmarks_xy, strict=True):
        for organ in (RIGHT_LUNG, LEFT_LUNG, HEART):
            mask = fill_polygon(landmarks[organ.nodes], (1024, 1024))
            assert row[organ.published_column] == encode_rle(mask)
            assert decode_rle(row[organ.published_column], (1024, 1024)).sum() > 40_000


def test_kinds_of_rows(rows, landmarks_xy, sigma_px, script):
    rca = np.array([[float(row["Dice RCA (Mean)"]), float(row["Dice RCA (Max)"])] for row in rows])
    poor = np.array([kind.uncertain for kind in script.KINDS])
    run = np.array([kind.uncertain_run for kind in script.KINDS])
    assert (poor.sum(), run.sum()) == (3, 5)
    assert (rca[:, 1] < rca[:, 0]).sum() == 1
    assert rca[poor, 0].max() < 0.7 < rca[~poor].min()
    assert sigma_px[poor].mean(axis=1).min() > 7.5
    assert sigma_px[run].max(axis=1).min() > 10
    outside = (landmarks_xy > 1023).any(axis=(1, 2))
    assert outside.sum() == 1
    assert landmarks_xy[outside].max() == 1026


def test_sigmas_are_spread_like_a_real_table(sigma_px):
    share = np.mean((sigma_px >= 2) & (sigma_px <= 8))
    assert 0.75 < share < 0.92


def test_filtering_at_5_px_is_instructive(sigma_px, usable, script):
    kept = usable.any(axis=1)
    poor = np.array([kind.uncertain for kind in script.KINDS])
    assert 16 <= kept.sum() < 24
    assert not kept[poor].any()
    assert usable.all(axis=1).sum() >= 8
    assert (kept & ~usable.all(axis=1)).sum() >= 6
    assert (~usable[kept]).any(axis=0).all()  # every organ is lost somewhere
    bridged = [
        usable[:, index] & (longest_gap(sigma_px[:, organ.nodes] <= MAX_STD) > 0) for index, organ in enumerate(ORGANS)
    ]
    assert np.sum(bridged) >= 10


def test_the_sample_imports_without_loss(tmp_path):
    home = Home(tmp_path)
    with resources.as_file(SAMPLE) as path:
        report = import_file(path, source_or_custom("synthetic"), home, ImportOptions())
    assert (report.imported, report.problems) == (24, [])
    table = home.open_source("synthetic", "model").read()
    assert sum(table["rca_swapped"].to_pylist()) == 1
    assert set(table["source"].to_pylist()) == {"synthetic"}
