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
    benchmark.usual(benchmark.Here(), csv, format_, tmp_path / "usual")
    benchmark.ours(benchmark.Here(), home, format_, tmp_path / "cxu", processes=1)
    assert benchmark.compare(tmp_path / "cxu" / benchmark.SOURCE, tmp_path / "usual") == n_masks


def test_a_pixel_that_differs_is_noticed(benchmark, rows, tmp_path):
    benchmark.usual(benchmark.Here(), rows[1], "labels", tmp_path / "a")
    benchmark.usual(benchmark.Here(), rows[1], "labels", tmp_path / "b")
    path = min((tmp_path / "b").iterdir())
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    image[5, 5] = 1
    cv2.imwrite(str(path), image)
    with pytest.raises(AssertionError, match=path.name):
        benchmark.compare(tmp_path / "a", tmp_path / "b")


def test_every_step_of_a_label_image_is_timed(benchmark, rows, tmp_path):
    seconds = benchmark.stages(benchmark.Home(rows[0]).open(benchmark.SOURCE), tmp_path)
    assert list(seconds) == ["read, place", "fill", "encode", "write"]
    assert len(list(tmp_path.iterdir())) == N_ROWS
