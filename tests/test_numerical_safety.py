"""No number that cannot be passes in silence: each is named, counted, and left out or refused by itself."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from builders import chest, join_numbers, make_rows, published_csv, published_row
from cxu import contour, store, table
from cxu.anatomy import HEART
from cxu.model.weights import save_weights
from predict_helpers import tiny_model, write_film
from reliability.case import run

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(rows, name="rows.parquet"):
    store.write_table(rows, Path(name))
    return name


def rows_of(n_rows=3, **columns):
    sigma = np.full((n_rows, 120, 2), 3, np.float32)
    return make_rows(n_rows, **{**table.sigma_columns(sigma), **columns})


def one(values, value, row=1):
    changed = np.array(values, np.float32)
    changed[row].flat[7] = value
    return changed


LANDMARKS = np.broadcast_to(chest(), (3, 120, 2))
SIGMA = np.full((3, 120, 2), 3)


# --- import ----------------------------------------------------------------------------------------------------------


def test_every_oddity_of_an_import_has_its_own_count(here):
    wide = join_numbers(chest(2000, 1200))
    low = join_numbers(chest(1200, 2000) + np.array([0, 500]))
    rows = [
        published_row("good.png", Height="1024", Width="1024"),
        published_row("swapped.png", **{"Dice RCA (Mean)": "0.9", "Dice RCA (Max)": "0.8"}),
        published_row("exchanged.png", Height="2000", Width="1200", **{"Landmarks (Mean)": wide}),
        published_row("outside.png", Height="2000", Width="1200", **{"Landmarks (Mean)": low}),
        published_row("blank.png", Height="", Width=""),
        published_row("negative.png", **{"Landmarks (Std)": "3," * 239 + "-3"}),
        published_row("nan.png", **{"Landmarks (Mean)": "nan," * 239 + "3"}),
        published_row("inf.png", **{"Landmarks (Std)": "inf," * 239 + "3"}),
    ]
    (here / "rows.csv").write_text(published_csv(rows, rename={"Image Index": "image_id"}))
    done = run("import", "rows.csv", "--source", "mine", "--frame", "image", "--json")
    assert done.exit_code == 3
    (told,) = done.content
    assert (told["imported"], told["malformed"]) == (5, 3)
    assert told["notes"] == {"rca_swapped": 1, "size_exchanged": 1, "out_of_frame": 1, "size_blank": 1}
    for said in (
        "1 × RCA mean and max were exchanged in the file; sorted and flagged in rca_swapped",
        "1 × height and width were exchanged in the file; put right by the landmarks",
        "1 × landmarks leave the image by more than",
        "1 × the file gives no height and width",
        "line 7 (negative.png): standard deviation -3 is negative",
        "line 8 (nan.png): landmarks: value 1 is nan, not a finite number",
        "line 9 (inf.png): sigma: value 1 is inf, not a finite number",
    ):
        assert said in done.stderr, said
    (found,) = (row for row in store.Home().open("mine").read().to_pylist() if row["image_id"] == "exchanged")
    assert (found["height"], found["width"]) == (1200, 2000)


# --- filter ----------------------------------------------------------------------------------------------------------

IMPOSSIBLE = {
    "NaN landmark": {"landmarks_xy": one(LANDMARKS, np.nan)},
    "infinite landmark": {"landmarks_xy": one(LANDMARKS, -np.inf)},
    "NaN sigma": table.sigma_columns(one(SIGMA, np.nan)),
    "infinite sigma": table.sigma_columns(one(SIGMA, np.inf)),
    "negative sigma": table.sigma_columns(one(SIGMA, -3)),
    "negative sigma of x, its node's mean positive": {"sigma_xy": one(SIGMA, -0.5)},
    "NaN uncertainty of a node": {"sigma_model_px": one(np.full((3, 120), 3), np.nan)},
}


@pytest.mark.parametrize(
    "limits", [("--max-std", 8), ("--max-std", "p80"), ("--min-rca", 0.5), (), ("--max-mean-std", 9)]
)
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_filter_leaves_out_what_cannot_be(here, what, limits):
    save(rows_of(rca_mean=np.full(3, 0.8), **IMPOSSIBLE[what]))
    done = run("filter", "rows.parquet", *limits, "--out", "kept.parquet", "--json")
    assert done.exit_code == 0, done.said
    assert "warning: 1 row left out as impossible" in done.stderr
    assert pq.read_table("kept.parquet")["image_id"].to_pylist() == ["image0000", "image0002"]
    assert pq.read_table("kept.excluded.parquet").to_pylist() == [
        {"source": "chestxray8", "image_id": "image0001", "reason": "impossible"}
    ]
    counts = {step["reason"]: (step["rows_in"], step["rows_out"]) for step in done.content["flow"]}
    assert counts["impossible"] == (3, 2)
    assert (done.content["rows_in"], done.content["rows_out"]) == (3, 2)


def test_the_step_is_told_only_where_it_left_something_out(here):
    save(rows_of())
    done = run("filter", "rows.parquet", "--max-std", 8, "--out", "kept.parquet")
    assert "impossible" not in done.said
    assert "numbers possible" not in done.said
    save(rows_of(**IMPOSSIBLE["NaN sigma"]))
    shown = run("filter", "rows.parquet", "--max-std", 8, "--out", "kept.parquet").stdout
    (line,) = (line for line in shown.splitlines() if line.startswith("numbers possible"))
    assert line.split()[-2:] == ["3", "2"]


def test_a_percentile_is_not_moved_by_what_cannot_be(here):
    rng = np.random.default_rng(0)
    sigma = rng.uniform(1, 9, (50, 120, 2)).astype(np.float32)
    bad = np.concatenate([sigma, -sigma[:30]])
    limits = []
    for name, values in (("good", sigma), ("bad", bad)):
        path = save(make_rows(len(values), **table.sigma_columns(values)), f"{name}.parquet")
        done = run("filter", path, "--max-std", "p50", "--out", f"{name}-kept.parquet", "--json")
        limits.append(done.content["limits_px"])
    assert limits[0] == limits[1]


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "columns", "said"),
    [
        ("full", {"landmarks_xy": one(LANDMARKS, np.nan)}, "landmarks that are no number"),
        ("full", {"landmarks_xy": one(LANDMARKS, np.inf)}, "landmarks that are no number"),
        ("full", {"landmarks_xy": one(LANDMARKS, 1e9)}, "beyond 1,000,000 px"),
        ("ignore", table.sigma_columns(one(SIGMA, -3)), "standard deviations that are negative or infinite"),
        ("ignore", table.sigma_columns(one(SIGMA, np.inf)), "standard deviations that are negative or infinite"),
        ("full", {"height": [1024, -1024, 1024]}, "does not know its height and width"),
        ("full", {"width": [1024, 0, 1024]}, "does not know its height and width"),
        ("full", {"frame": ["model", "lateral", "model"]}, "in the frame 'lateral'; expected model or image"),
    ],
)
def test_a_row_that_cannot_be_drawn_is_listed_and_the_others_are_drawn(here, policy, columns, said):
    save(rows_of(**columns))
    done = run("rasterize", "rows.parquet", "--policy", policy, "--out", "masks", "--json")
    assert done.exit_code == 3, done.said
    assert (done.content["rows"], done.content["failures"]) == (2, 1)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("  chestxray8 image0001: "))
    assert said in line
    assert len(list((here / "masks/chestxray8").glob("*.png"))) == 2


def folded():
    """Return a heart whose outline crosses itself once one node is dropped, and which one."""
    landmarks = chest()
    heart = landmarks[HEART.nodes]
    centre = heart.mean(axis=0)
    # a deep fold towards the far side that its own tip goes around: without the tip the edges cross
    for depth in np.linspace(0.5, 3, 26):
        for near in range(2, 20):
            for tip in range(len(heart)):
                moved = heart.copy()
                moved[near] = centre + (centre - heart[near]) * depth
                moved[tip] = centre + (moved[near] - centre) * 1.2
                whole, dropped = contour.crosses_itself([moved, np.delete(moved, tip, axis=0)])
                if dropped and not whole:
                    landmarks[HEART.nodes] = moved
                    return landmarks, HEART.first + tip
    raise AssertionError("no such outline")


def test_an_outline_that_crosses_itself_once_nodes_are_dropped_is_told_with_its_organ(here):
    landmarks, dropped = folded()
    sigma = np.full((3, 120, 2), 3, np.float32)
    sigma[1, dropped] = 30
    save(rows_of(landmarks_xy=np.stack([chest(), landmarks, chest()]), **table.sigma_columns(sigma)))
    assert run("filter", "rows.parquet", "--max-std", 8).exit_code == 0
    full = run("rasterize", "--policy", "full", "--out", "full", "--json")
    assert set(full.content["crossing"].values()) == {0}
    assert "cross themselves" not in full.stderr
    done = run("rasterize", "--out", "masks", "--json")
    assert done.content["crossing"] == {"right_lung": 0, "left_lung": 0, "heart": 1}
    assert (
        "warning: contours that cross themselves: 1 × heart; listed in index.parquet as crosses_itself" in done.stderr
    )
    index = pq.read_table("masks/index.parquet").to_pylist()
    assert [(line["image_id"], line["organ"]) for line in index if line["crosses_itself"]] == [("image0001", "heart")]


# --- predict ---------------------------------------------------------------------------------------------------------


def spoil(model, how):
    with torch.no_grad():
        if how == "latent":
            model.encoder.fc_logvar.bias.add_(1e6)
        elif how == "overflow":
            model.dec_lin.weight.mul_(1e38)
        else:
            model.graphConv_up1.lins[0].weight.mul_(1e9)
    return model


@pytest.mark.parametrize("how", ["latent", "overflow", "far away"])
def test_a_network_whose_numbers_cannot_be_gives_no_row(here, how):
    write_film(here / "a.png")
    save_weights(spoil(copy.deepcopy(tiny_model()), how), here / "w.safetensors", {})
    done = run(
        "predict",
        "a.png",
        "--weights",
        "w.safetensors",
        "--samples",
        2,
        "--device",
        "cpu",
        "--csv",
        "--masks",
        "--json",
    )
    assert done.exit_code == 3, done.said
    assert (done.content["rows"], done.content["predicted"]) == (0, 0)
    ((file, reason),) = done.content["rejected"]
    assert reason == f"{file}: the network gives landmarks or uncertainties that are no possible numbers."
