"""The methods paragraph: every number a reader needs, for every kind of threshold, model and source."""

import numpy as np
import pyarrow as pa
import pytest

from cxu import __version__
from cxu.anatomy import N_NODES
from cxu.model.reference import bundled_references
from report_helpers import Desk, rows_of

NIH = ["00000001_000", "00000001_001", "00000002_000", "00000003_000"]


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path / "home")


def predicted(source, ids, px, **columns):
    """Return rows as ``cxu predict`` makes them."""
    own = {"model_id": "d" * 64, "seed": 3, "precision": "float32", "rca_mean": None, "quality": ["ok"] * len(ids)}
    return rows_of(source, ids, px, **{**own, **columns})


def methods(desk, rows, **asked):
    """Return the paragraph for a selection of rows of one source."""
    desk.put(rows)
    return desk.report(desk.select([rows["source"][0].as_py()], **asked)).methods


# --- where the rows came from ----------------------------------------------------------------------------------------


def test_published_rows_of_the_repository(desk):
    rows = rows_of("chestxray8", NIH, [2, 4, 6, 8], repo="mcosarinsky/CheXmask-U", revision="abc123")
    told = methods(desk, rows, max_std="5")
    assert told.startswith(
        "Landmarks of right lung (44 nodes), left lung (50) and heart (26) and their standard deviations were taken "
        "from CheXmask-U [cosarinsky2026chexmasku], which builds on CheXmask [gaggion2024chexmask]: means and standard "
        "deviations over 50 predictions of HybridGNet [gaggion2022hybridgnet] for each radiograph of ChestX-ray8 "
        "[wang2017chestxray8] (2). They were read from the repository mcosarinsky/CheXmask-U at revision abc123. "
        f"Positions were in px of the 1024 px model frame. Radiographs were selected with cxu {__version__} [cxu]."
    )


def test_places_of_several_sources_are_told_apart(desk):
    desk.put(rows_of("mimic", ["a"], [2], repo="r/s", revision="1"))
    desk.put(rows_of("vindr", ["b"], [2], repo="r/s", revision=None))
    desk.put(rows_of("padchest", ["c"], [2], file_sha256="e" * 64))
    told = desk.report(desk.select(["mimic", "vindr", "padchest"], max_std="5")).methods
    assert "MIMIC-CXR-JPG [johnson2019mimic] (1), PadChest [bustos2020padchest] (1) and VinDr-CXR [nguyen" in told
    assert (
        "They were read from the repository r/s at revision 1 (MIMIC-CXR-JPG), a file of unrecorded origin "
        f"(SHA-256 {'e' * 64}) (PadChest) and the repository r/s at a revision that is not recorded (VinDr-CXR)."
    ) in told


def test_whose_predictions_a_source_of_ones_own_holds_is_not_known(desk):
    desk.put(rows_of("mine", ["a", "b"], [2, 9]))
    report = desk.report(desk.select(["mine"], max_std="5"))
    assert report.methods.startswith(
        "Landmarks of right lung (44 nodes), left lung (50) and heart (26), with their standard deviations where the "
        "files have some, were read from files in the columns of CheXmask-U [cosarinsky2026chexmasku] for radiographs "
        "of the source 'mine' (1); what predicted them is not recorded. They were read from files whose repository and "
        "revision are not recorded."
    )
    assert report.keys == ["cosarinsky2026chexmasku", "cxu"]


def test_rows_without_standard_deviations_are_of_chexmask(desk):
    bare = {"sigma_xy": None, "sigma_model_px": None, "mean_sigma_model_px": None, "n_samples": None}
    told = methods(desk, rows_of("vindr", ["a"], [2], **bare), min_rca=0.7)
    assert told.startswith(
        "Landmarks of right lung (44 nodes), left lung (50) and heart (26), predicted by HybridGNet "
        "[gaggion2022hybridgnet], were taken from CheXmask [gaggion2024chexmask], without standard deviations, for "
        "radiographs of VinDr-CXR [nguyen2022vindr] (1)."
    )
    assert "cosarinsky" not in told
    assert "uncertainty" not in told


def test_frames_are_told_apart(desk):
    desk.put(rows_of("mimic", ["a"], [2]))
    desk.put(rows_of("vindr", ["b"], [2], frame="image"), frame="image")
    told = desk.report(desk.select(["mimic", "vindr"], min_rca=0.1)).methods
    assert "Positions were in px of the image (VinDr-CXR) and the 1024 px model frame (MIMIC-CXR-JPG)." in told


def test_predictions_name_model_samples_seed_and_precision(desk):
    told = methods(desk, predicted("mine", ["a", "b"], [2, 9]), max_std="5")
    assert told.startswith(
        "Landmarks of right lung (44 nodes), left lung (50) and heart (26) were predicted with cxu [cxu] by HybridGNet "
        f"[gaggion2022hybridgnet] with weights of one's own (SHA-256 {'d' * 64}): means and standard deviations over "
        "50 samples [cosarinsky2026chexmasku] an image, seed 3, the encoder in float32. These were radiographs of the "
        "source 'mine' (1)."
    )
    assert "gaggion2024chexmask" not in told
    assert "the quality gate of cxu did not reject them" in told


def test_weights_are_told_by_where_they_came_from(desk):
    shipped = bundled_references()[0].model_id
    rows = [
        predicted("mine", ["a"], [2], model_id=shipped, n_samples=1, seed=0, precision="bf16"),
        predicted("mine", ["b"], [2], repo="mcosarinsky/CheXmask-U", revision="v1", seed=None, precision=None),
        predicted("mine", ["c"], [2], model_id="c" * 64, repo="x/y", n_samples=None),
    ]
    told = methods(desk, pa.concat_tables(rows), where=["source=mine"])
    assert (
        f"the weights that ship with cxu (SHA-256 {shipped}): a single sample an image, without standard deviations"
        in told
    )
    assert "seed 0, the encoder in bf16" in told
    assert f"weights from the repository mcosarinsky/CheXmask-U at revision v1 (SHA-256 {'d' * 64})" in told
    assert "an unrecorded seed, the encoder in an unrecorded precision" in told
    assert "weights from the repository x/y at a revision that is not recorded" in told
    assert "an unrecorded number of samples" in told
    assert told.count("were predicted with cxu") == 3


def test_weights_that_ship_have_the_learned_spread_that_is_told_of_them(desk):
    from cxu.model.weights import bundled_path, bundled_variants, load_weights

    ids = {load_weights(bundled_path(variant)).model_id for variant in bundled_variants()}
    assert ids == {one.model_id for one in bundled_references()}
    assert all(load_weights(bundled_path(variant)).model.spread is not None for variant in bundled_variants())
    told = methods(desk, predicted("mine", ["a"], [2], model_id=ids.pop()), max_std="5")
    assert "over 50 samples [cosarinsky2026chexmasku] an image, each widened by the spread that the network has" in told


def test_published_and_predicted_rows_side_by_side(desk):
    desk.put(rows_of("vindr", ["a", "b"], [2, 4]))
    desk.put(predicted("mine", ["c", "d"], [20, 40]))
    told = desk.report(desk.select(["vindr", "mine"], max_std="p50")).methods
    assert "were taken from CheXmask-U" in told
    assert "were predicted with cxu" in told
    assert (
        f"p50, the 50th percentile by source and model, was 30.00 px for mine, weights (SHA-256 {'d' * 12}) and 3.00 "
        "px for VinDr-CXR, the published model"
    ) in told
    mixed = desk.report(desk.select(["vindr", "mine"], max_std="25", mix_models=True)).methods
    assert "One limit in px was held against standard deviations of several models, which do not compare." in mixed
    assert "several models" not in told


# --- what they were asked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"max_std": "5"}, "was at most 5 px in the 1024 px model frame."),
        ({"max_std": "heart=8,lungs=5"}, "was at most 5 px (lungs) and 8 px (heart) in the 1024 px model frame."),
        ({"max_std": "heart=8"}, "was at most 8 px (heart; lungs without a limit) in the 1024 px model frame."),
        (
            {"max_std": "p50"},
            (
                "was at most p50 in the 1024 px model frame; p50, the 50th percentile by source and model, was 5.00 px "
                "for ChestX-ray8."
            ),
        ),
        (
            {"max_std": "heart=p25,lungs=p50"},
            (
                "was at most p50 (lungs) and p25 (heart) in the 1024 px model frame; p25 and p50, the 25th and 50th "
                "percentiles by source and model, were 5.00 px (lungs) and 3.50 px (heart) for ChestX-ray8."
            ),
        ),
        ({"max_std": "5", "unit": "image"}, "was at most 5 px in the image."),
        (
            {"max_std": "5", "min_confident": 0.75, "max_gap": 9},
            "An organ was usable if at least 75 % of its nodes were, and no run of more than 9 neighbours was not.",
        ),
        ({"max_std": "5", "organs": ("heart",)}, "were kept if their heart was usable."),
        ({"max_mean_std": 6.5}, "the mean uncertainty of their nodes was at most 6.5 px in the 1024 px model frame."),
        ({"min_rca": 0.7}, "their mean reverse classification accuracy (RCA, an estimate of Dice) was at least 0.7."),
        (
            {"min_rca_max": 0.75},
            "their maximal reverse classification accuracy (RCA, an estimate of Dice) was at least",
        ),
        ({"quality": "ok"}, "the quality gate of cxu judged them ok."),
        ({"where": ["rca_mean>=0.5"]}, "were kept if rca_mean was at least 0.5."),
        ({"frame": "image", "sources": ["chestxray8"]}, "their source was ChestX-ray8 and their landmarks were in the"),
        ({}, "All radiographs were kept: nothing was asked of them."),
    ],
)
def test_every_kind_of_threshold(desk, asked, said):
    rows = rows_of("chestxray8", NIH, [2, 4, 6, 8], frame="image", frame_side=np.full(4, 1024.0), quality=["ok"] * 4)
    desk.put(rows.set_column(rows.column_names.index("rca_max"), "rca_max", rows["rca_mean"]), frame="image")
    assert said in desk.report(desk.select(["chestxray8"], **asked)).methods


def test_radii_are_a_threshold_too(desk):
    radius = np.repeat([[10.0], [30.0]], N_NODES, axis=1).astype(np.float32)
    told = methods(desk, predicted("mine", ["a", "b"], [2, 2], radius90_px=radius), max_std="5", max_radius90="20")
    assert (
        "A node was confident if its uncertainty, the mean of its standard deviations along x and y, was at most 5 px "
        "in the 1024 px model frame and its calibrated radius was at most 20 px in the 1024 px model frame."
    ) in told
    assert "1 (no usable organ)" in told


def test_a_list_of_ids_is_told_by_its_hash(desk, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("a\n")
    desk.put(rows_of("vindr", ["a", "b"], [2, 2]))
    report = desk.report(desk.select(["vindr"], ids=ids))
    assert f"they were on a list of ids (hash {report.stage.facts['ids'][:12]})" in report.methods
    assert "A list of ids is known by its hash only: say in words which images it names." in report.notes


# --- what was kept, and of whom --------------------------------------------------------------------------------------


def test_the_numbers_of_the_flow(desk):
    rows = rows_of("chestxray8", NIH, [2, 4, 6, 8], rca_mean=np.array([0.9, 0.5, 0.9, 0.9]))
    told = methods(desk, rows, min_rca=0.7, max_std="7")
    assert (
        "Of 4 radiographs, 2 (50.0 %) were kept; left out were 1 (mean RCA below 0.7, or unknown) and 1 (no usable "
        "organ). In ChestX-ray8, whose ids name patients, 2 of 3 patients were kept. Of the radiographs kept, 100.0 % "
        "(right lung), 100.0 % (left lung) and 100.0 % (heart) of the nodes were confident, and 100.0 % (right lung), "
        "100.0 % (left lung) and 100.0 % (heart) of the organs usable."
    ) in told


def test_nothing_kept_and_nothing_there(desk):
    told = methods(desk, rows_of("vindr", ["a"], [9]), max_std="5")
    assert told.startswith("Radiographs were selected with cxu")
    assert "Of 1 radiograph, 0 (0.0 %) were kept; left out were 1 (no usable organ). No radiograph was kept." in told
    desk.put(rows_of("mine", ["a"], [9]).slice(0, 1))
    assert "Nothing was left out: the table is no selection" in desk.report("mine").methods


def test_unequal_levels_are_told_with_their_rates(desk, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,ViewPosition,sex\na,PA,F\nb,PA,M\nc,AP,F\nd,AP,M\n")
    desk.put(rows_of("vindr", "abcd", [2, 2, 9, 9]))
    told = desk.report(desk.select(["vindr"], max_std="5", labels=[f"vindr={labels}"])).methods
    assert "Filtering by uncertainty leaves out sick patients and films taken AP more often than others" in told
    assert "By ViewPosition, the thresholds left out 100.0 % of AP (2) and 0.0 % of PA (2)." in told
    assert "By sex" not in told


def test_equal_levels_and_no_labels_are_told_so(desk, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,sex\na,F\nb,M\nc,F\nd,M\n")
    desk.put(rows_of("vindr", "abcd", [2, 2, 9, 9]))
    told = desk.report(desk.select(["vindr"], max_std="5", labels=[f"vindr={labels}"])).methods
    assert (
        "Between the levels of the labels that were joined, the shares left out differed by less than 5 points." in told
    )
    without = desk.report(desk.select(["vindr"], max_std="5")).methods
    assert "No labels with levels to compare were joined, so whom the limits left out here is not known." in without
    by_rca = desk.report(desk.select(["vindr"], min_rca=0.1)).methods
    assert "sick patients" not in by_rca
    assert "No labels" not in by_rca


def test_what_a_table_builds_on_is_told_stage_by_stage(desk):
    desk.put(rows_of("chestxray8", NIH, [2, 4, 6, 8]))
    desk.select(["chestxray8"], "wide", max_std="7")
    told = desk.report(desk.select(["wide"], "strict", where=["image_id!=00000001_000"])).methods
    assert (
        "For the selection wide, radiographs of ChestX-ray8 (model frame) were kept if at least one organ was" in told
    )
    assert "For the selection strict, radiographs of wide were kept if image_id was not 00000001_000." in told
    assert "Filtering by uncertainty leaves out sick patients" in told


def test_references_are_those_that_the_paragraph_cites(desk):
    desk.put(rows_of("mimic", ["a"], [2]))
    desk.put(rows_of("chexpert", ["train/patient00001/study1/view1_frontal"], [9]))
    report = desk.report(desk.select(["mimic", "chexpert"], max_std="5"))
    assert report.keys == [
        "cosarinsky2026chexmasku",
        "gaggion2024chexmask",
        "gaggion2022hybridgnet",
        "johnson2019mimic",
        "cxu",
    ]


def test_partial_sources_are_noted(desk):
    desk.put(rows_of("mimic", ["a"], [2]), partial=1)
    report = desk.report(desk.select(["mimic"], max_std="5"))
    assert "A source was fetched with --limit-rows: the rows read are not the whole of it." in report.notes
