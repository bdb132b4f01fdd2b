"""The benchmark of masks: the usual loop that it measures against draws the same pixels, in folders that compare."""

from pathlib import Path

import cv2
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
N_ROWS = 3


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import rasterize

        yield rasterize


@pytest.fixture(scope="module")
def rows(benchmark, tmp_path_factory):
    """Return a home and a CSV of the same rows."""
    folder = tmp_path_factory.mktemp("rows")
    benchmark.write_home(folder / "home", N_ROWS, source=benchmark.SOURCE)
    benchmark.write_csv(folder / "rows.csv", N_ROWS, source=benchmark.SOURCE)
    return folder / "home", folder / "rows.csv"


@pytest.mark.parametrize(("format_", "n_masks"), [("labels", N_ROWS), ("organs", 3 * N_ROWS)])
def test_both_sides_write_the_same_masks(benchmark, rows, tmp_path, format_, n_masks):
    home, csv = rows
    clocks = [benchmark.Clock(), benchmark.Clock()]
    benchmark.usual(csv, format_, tmp_path / "usual", 1, clocks[0])
    benchmark.ours(benchmark.Home(home).open(benchmark.SOURCE), format_, tmp_path / "cxu", 1, clocks[1])
    assert benchmark.compare(tmp_path / "cxu" / benchmark.SOURCE, tmp_path / "usual") == n_masks
    assert [[n_rows for _, n_rows in clock.marks] for clock in clocks] == [[N_ROWS]] * 2


def test_a_pixel_that_differs_is_noticed(benchmark, rows, tmp_path):
    for name in ("a", "b"):
        benchmark.usual(rows[1], "labels", tmp_path / name, 1, benchmark.Clock())
    path = min((tmp_path / "b").iterdir())
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    image[5, 5] = 1
    cv2.imwrite(str(path), image)
    with pytest.raises(AssertionError, match=path.name):
        benchmark.compare(tmp_path / "a", tmp_path / "b")


def test_the_clock_starts_when_every_process_has_finished_its_first_rows(benchmark):
    clock = benchmark.Clock([(10.0, 256), (10.1, 256), (12.0, 256), (12.1, 100)])
    assert clock.speed(1) == pytest.approx(612 / 2.1)
    assert clock.speed(2) == pytest.approx(356 / 2.0)


def test_every_step_of_a_label_image_is_timed(benchmark, rows, tmp_path):
    seconds = benchmark.stages(benchmark.Home(rows[0]).open(benchmark.SOURCE), tmp_path)
    assert list(seconds) == ["read, place", "fill", "encode", "write"]
    assert len(list(tmp_path.iterdir())) == N_ROWS
