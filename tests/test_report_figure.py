"""The diagram of the flow: boxes that hold their text, stand apart and say the numbers of the report."""

import sys

import numpy as np
import pytest

from cxu.errors import MissingExtraError
from cxu.plot import flow
from cxu.report.build import draw_report
from cxu.report.exclusions import Input, stage_of
from report_helpers import Desk, rows_of

NIH = ["00000001_000", "00000001_001", "00000002_000", "00000003_000"]


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path / "home")
    made.put(rows_of("chestxray8", NIH, [2, 4, 6, 8], rca_mean=np.array([0.5, 0.9, 0.9, 0.9])))
    made.put(rows_of("vindr", ["a", "b"], [2, 9]))
    return made


def boxes_of(stage):
    """Return the boxes of a stage where they are drawn, in the order of what was read, kept and left out."""
    column = flow._column(stage)
    for box in column.boxes():
        box.width = 3.0
    flow._place(column, 0.15, 0.15)
    return column.boxes()


def said(box):
    return [box.title, *(f"{text} {count}".strip() for text, count in box.lines)]


def overlap(one, other):
    return (
        one.x < other.x + other.width and other.x < one.x + one.width and one.y < other.bottom and other.y < one.bottom
    )


def test_boxes_say_the_numbers(desk):
    report = desk.report(desk.select(["chestxray8", "vindr"], min_rca=0.7, max_std="7"))
    read, between, kept, by_rca, by_std = (said(box) for box in boxes_of(report.stage))
    assert read == ["Read: n = 6", "ChestX-ray8 4", "VinDr-CXR 2", "patients (1 of 2 sources) 3"]
    assert by_rca == ["Left out: n = 1", "mean RCA below 0.7, or unknown", "ChestX-ray8 1", "patients lost 0"]
    assert between == ["n = 5", "patients (1 of 2 sources) 3"]
    assert by_std == [
        "Left out: n = 2",
        "no usable organ (limit: node uncertainty 7 px)",
        "ChestX-ray8 1",
        "VinDr-CXR 1",
        "patients lost 1",
    ]
    assert kept == [
        "Kept: n = 3 (50.0 %)",
        "selection latest",
        "ChestX-ray8 2",
        "VinDr-CXR 1",
        "patients (1 of 2 sources) 2",
    ]


def test_boxes_of_every_shape_stand_apart(desk):
    desk.select(["chestxray8"], "one", min_rca=0.7)
    desk.select(["vindr"], "two", max_std="5")
    desk.select(["one", "two"], "both", max_std="5", where=["image_id!=x"])
    for name in ("chestxray8", "one", "both", "latest"):
        if name == "latest":
            desk.select(["both"], "latest")
        boxes = boxes_of(desk.report(name).stage)
        assert not any(overlap(a, b) for index, a in enumerate(boxes) for b in boxes[:index]), name
        assert min(box.y for box in boxes) == pytest.approx(0.15)


def test_a_chain_goes_on_where_the_first_selection_ended(desk):
    desk.select(["chestxray8"], "wide", min_rca=0.7)
    boxes = boxes_of(desk.report(desk.select(["wide"], "strict", max_std="5")).stage)
    assert [box.title for box in boxes] == [
        "Read: n = 4",
        "Kept: n = 3 (75.0 %)",
        "Left out: n = 1",
        "Kept: n = 1 (33.3 %)",
        "Left out: n = 2",
    ]
    assert len({box.x for box in boxes}) == 2


def test_what_is_unknown_is_said_in_a_box():
    stage = stage_of("old", {"thresholds": {}}, [Input("mimic/model", 9)], {"mimic": 4}, 4)
    assert [said(box) for box in boxes_of(stage)] == [
        ["Read: n = 9"],
        ["Kept: n = 4 (44.4 %)", "selection old", "MIMIC-CXR-JPG 4"],
        ["Left out: n = 5", "the reasons are not known"],
    ]
    bare = stage_of("old", {"thresholds": {}}, [], None, None)
    assert [said(box)[0] for box in boxes_of(bare)] == ["Read: n unknown", "Kept: n unknown", "Left out: n unknown"]


def test_many_sources_are_cut_short(desk):
    counts = {f"s{index:02d}": 1 for index in range(20)}
    assert len(flow._by_source(counts)) == 13
    assert flow._by_source(counts)[-1] == ("and 8 more sources", "")


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_figures_are_whole_and_the_same_every_time(desk, tmp_path, suffix):
    report = desk.report(desk.select(["chestxray8", "vindr"], min_rca=0.7, max_std="7", where=["image_id!=$x$ y_{2}"]))
    for name in ("a", "b"):
        draw_report(report, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_every_text_lies_within_a_box(desk, tmp_path, monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    where = ["image_id!=" + "W" * 60, "image_id!=" + "i " * 80, "image_id!=$x$ y_{2}"]
    report = desk.report(desk.select(["chestxray8", "vindr"], "a" * 60, where=where, min_rca=0.7, max_std="heart=p80"))
    figures = []
    monkeypatch.setattr(flow, "save_figure", lambda figure, _: figures.append(figure))
    draw_report(report, tmp_path / "flow.png")
    (figure,) = figures
    figure.set_dpi(110)  # as it is saved
    renderer = FigureCanvasAgg(figure).get_renderer()
    (axes,) = figure.axes
    boxes = [patch.get_window_extent(renderer) for patch in axes.patches if patch.get_facecolor()[3]]
    texts = [text for text in axes.texts if text.get_text()]
    assert len(texts) > 30
    for text in texts:
        extent = text.get_window_extent(renderer)
        assert any(
            box.x0 + 3 <= extent.x0 and extent.x1 <= box.x1 - 3 and box.y0 + 3 <= extent.y0 and extent.y1 <= box.y1 - 3
            for box in boxes
        ), text.get_text()
    assert all(figure.bbox.x0 < box.x0 and box.x1 < figure.bbox.x1 and figure.bbox.y0 < box.y0 for box in boxes)


def test_without_matplotlib_it_says_how_to_get_it(desk, tmp_path, monkeypatch):
    report = desk.report(desk.select(["vindr"], max_std="5"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cxu\[plot\]'"):
        draw_report(report, tmp_path / "flow.png")
    assert not (tmp_path / "flow.png").exists()
