"""``cxu filter`` as it is typed: exit codes, what it says where, and what it reads."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from builders import make_rows
from cxu import store, table
from cxu.anatomy import N_NODES
from cxu.catalog import SOURCES
from cxu.cli import app
from cxu.store import Home, Part, SourceFile, SourceListing

PAGE = Path(__file__).parents[1] / "docs" / "commands" / "filter.md"
SAMPLE = package_files("cxu") / "data" / "sample_synthetic.csv"


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def cxu(home):
    """Return a function that runs a command line of cxu in the home and returns its result."""

    def run(*arguments, exit_code=0):
        result = CliRunner().invoke(app, [*map(str, arguments), "--home", str(home.root)])
        assert result.exit_code == exit_code, result.output
        assert "Traceback" not in result.output
        return result

    return run


def rows_of(source, ids, px, **columns):
    """Return rows whose nodes are all as uncertain as ``px`` says."""
    sigma = np.repeat(np.asarray(px, np.float32)[:, None, None], N_NODES, axis=1).repeat(2, axis=2)
    own = {"source": source, "image_id": list(ids), "n_samples": 50, "rca_mean": np.full(len(ids), 0.8)}
    return make_rows(len(ids), **{**own, **table.sigma_columns(sigma), **columns})


@pytest.fixture
def put(home):
    """Return a function that puts rows into the home as a source."""

    def publish(rows, frame="model", partial=None):
        source = rows["source"][0].as_py()
        staged = home.staging(source, frame, "test")
        store.write_table(rows, staged / "part-0000.parquet")
        part = Part("part-0000.parquet", len(rows), "0" * 64)
        files = (SourceFile(f"{source}.csv", "0" * 64, len(rows), 0, parts=(part,)),)
        home.publish(SourceListing(source, frame, files, partial), staged)

    return publish


@pytest.fixture
def four(put):
    """Put four rows of NIH into the home: at 2, 4, 6 and 8 px."""
    put(rows_of("chestxray8", ["00000001_000", "00000001_001", "00000002_000", "00000003_000"], [2, 4, 6, 8]))


def kept(home, name="latest"):
    return home.open(name).read(["image_id"])["image_id"].to_pylist()


# --- the main job ----------------------------------------------------------------------------------------------------


def test_it_writes_the_selection_latest(cxu, home, four):
    result = cxu("filter", "--max-std", "5")
    assert kept(home) == ["00000001_000", "00000001_001"]
    excluded = pq.read_table(home.root / "selections" / "latest.excluded.parquet")
    assert excluded.column_names == ["source", "image_id", "reason"]
    assert excluded["reason"].to_pylist() == ["max_std", "max_std"]
    assert f"home {home.root} · source chestxray8/model: 4 rows, made " in result.stderr
    assert f"2 rows in {home.root / 'selections' / 'latest.parquet'}" in result.stderr


def test_the_summary_reads_as_it_should(cxu, four):
    result = cxu("filter", "--max-std", "heart=5,lungs=p50", "--min-rca", "0.7")
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "Rows",
        "asked                        rows in  rows out",
        "--min-rca 0.7                      4         4",
        "--max-std lungs=p50,heart=5        4         2",
        "",
        "Limit of a confident node, px of the 1024 model frame",
        "source      model      right_lung  left_lung  heart",
        "chestxray8  published        5.00       5.00   5.00",
        "",
        "Node uncertainty before --max-std, px of the 1024 model frame",
        "organ        5 %  25 %  50 %  75 %  95 %",
        "right_lung  2.00  3.50  5.00  6.50  8.00",
        "left_lung   2.00  3.50  5.00  6.50  8.00",
        "heart       2.00  3.50  5.00  6.50  8.00",
        "all         2.00  3.50  5.00  6.50  8.00",
        "",
        "--max-std that would keep this share of the nodes, px of the 1024 model frame",
        "organ       50 %  80 %  95 %",
        "right_lung  5.00  8.00  8.00",
        "left_lung   5.00  8.00  8.00",
        "heart       5.00  8.00  8.00",
        "all         5.00  8.00  8.00",
        "",
        "Of the rows kept (usable: at least 50.0 % of its nodes, no gap above 4)",
        "organ       nodes confident  organs usable",
        "right_lung          100.0 %        100.0 %",
        "left_lung           100.0 %        100.0 %",
        "heart               100.0 %        100.0 %",
    ]


def test_the_flow_names_the_sources(cxu, four, put):
    put(rows_of("vindr", ["a", "b"], [2, 9]))
    lines = [line.rstrip() for line in cxu("filter", "--max-std", "5").stdout.splitlines()]
    assert lines[:7] == [
        "Rows",
        "asked        rows in  rows out",
        "--max-std 5        6         3",
        "",
        "Rows out by source",
        "asked        chestxray8  vindr",
        "rows read             4      2",
    ]
    assert lines[7].split() == ["--max-std", "5", "2", "1"]


def test_what_was_kept_is_told_where_something_could_be_lost(cxu, four):
    assert "Of the rows kept (usable: " in cxu("filter", "--max-std", "9", "--name", "all").stdout
    assert "Of the rows kept" not in cxu("filter", "--min-rca", "0.1").stdout
    assert "Of the rows kept" not in cxu("filter", "--max-std", "1").stdout
    cxu("filter", "--max-std", "heart=5", "--name", "part")
    narrowed = cxu("filter", "part", "--min-rca", "0.1").stdout
    assert "Of the rows kept\n" in narrowed.replace(" \n", "\n")
    assert "heart                50.0 %         50.0 %" in narrowed


def test_no_line_is_wider_than_80_columns(cxu, four, put):
    put(rows_of("vindr", ["a", "b"], [2, 9]))
    result = cxu("filter", "--max-std", "heart=p80,lungs=5", "--min-rca", "0.7")
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80


def test_json_is_all_that_stdout_holds(cxu, home, four):
    result = cxu("filter", "--max-std", "5", "--json", "--name", "strict")
    content = json.loads(result.stdout)
    assert content["selection"] == str(home.root / "selections" / "strict.parquet")
    assert content["excluded"] == str(home.root / "selections" / "strict.excluded.parquet")
    assert (content["rows_in"], content["rows_out"], content["few_rows_left"]) == (4, 2, False)
    assert content["flow"][-1] == {
        "reason": "max_std",
        "rows_in": 4,
        "rows_out": 2,
        "by_source": {"chestxray8": [4, 2]},
    }
    assert content["thresholds"]["max_std"] == dict.fromkeys(("right_lung", "left_lung", "heart"), "5 px")
    assert content["keep_thresholds"]["all"] == [5.0, 8.0, 8.0]
    assert content["ids_unmatched"] == content["levels"] == content["label_files"] == []
    assert "strict.parquet" in result.stderr


def test_a_manifest_records_the_run(cxu, home, four, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"missing{number}\n" for number in range(30)))
    cxu("filter", "--max-std", "5", "--ids", ids, exit_code=3)
    (path,) = (home.root / "runs").glob("*-filter.json")
    manifest = json.loads(path.read_text())
    assert manifest["command"] == "filter"
    assert len(manifest["ids_unmatched"]) == 30
    assert manifest["flow"][0]["reason"] == "ids"


def test_out_names_a_file_of_its_own(cxu, home, four, tmp_path):
    cxu("filter", "--max-std", "5", "--out", tmp_path / "mine" / "s.parquet")
    assert store.open_table(tmp_path / "mine" / "s.parquet").kind == "selection"
    assert (tmp_path / "mine" / "s.excluded.parquet").is_file()
    assert home.selections() == []


def test_workers_change_nothing(cxu, home, four):
    for workers in (1, 2):
        cxu("filter", "--max-std", "5", "--workers", workers, "--name", f"by-{workers}")
    assert kept(home, "by-1") == kept(home, "by-2")
    cxu("filter", "--workers", "0", exit_code=2)


@pytest.mark.slow
def test_ctrl_c_ends_it_and_leaves_nothing_half_written(home, tmp_path):
    n_rows = 2000  # in so many shards that the signal comes before the end
    rows = rows_of("chestxray8", [f"{number:08d}_000" for number in range(n_rows)], [3] * n_rows)
    with pq.ParquetWriter(tmp_path / "t.parquet", rows.schema) as writer:
        writer.write_table(rows, row_group_size=5)
    folder = home.root / "selections"
    command = [sys.executable, "-m", "cxu", "filter", "t.parquet", "--max-std", "5", "--home", str(home.root)]
    running = subprocess.Popen(
        [*command, "--workers", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        while not list(folder.glob(".cxu-tmp-*")):
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert (running.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert list(folder.iterdir()) == []


def test_no_colour_and_no_bar_where_nobody_looks(home, four):
    command = [sys.executable, "-m", "cxu", "filter", "--max-std", "1", "--home", str(home.root)]
    environment = {**os.environ, "TERM": "xterm-256color"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0
    for text in (done.stdout, done.stderr):
        assert "\x1b" not in text
        assert "\r" not in text
    assert "warning: only 0 of 4 rows remain" in done.stderr


# --- which rows ------------------------------------------------------------------------------------------------------


def test_all_sources_of_the_home_or_those_named(cxu, home, four, put):
    put(rows_of("vindr", ["a", "b"], [2, 9]))
    cxu("filter", "--max-std", "5")
    assert kept(home) == ["00000001_000", "00000001_001", "a"]
    result = cxu("filter", "--max-std", "5", "--source", "VinDr")
    assert kept(home) == ["a"]
    assert "chestxray8" not in result.output
    cxu("filter", "--max-std", "5", "--source", "NIH", "--source", "vindr")
    assert len(kept(home)) == 3


def test_tables_may_be_named_instead(cxu, home, four, tmp_path):
    rows = pa.concat_tables([rows_of("mimic", ["m"], [2]), rows_of("vindr", ["v"], [2])])
    store.write_table(rows, tmp_path / "mixed.parquet")
    cxu("filter", tmp_path / "mixed.parquet", "chestxray8", "--max-std", "5")
    assert kept(home) == ["m", "v", "00000001_000", "00000001_001"]
    cxu("filter", tmp_path / "mixed.parquet", "--source", "VinDr", "--max-std", "5")
    assert kept(home) == ["v"]
    cxu("filter", "latest", "--min-rca", "0.9")
    assert home.open().rows == 0
    cxu("filter", "latest", "--max-std", "5")
    assert home.open().rows == 0


def test_frames_are_chosen(cxu, home, put):
    put(rows_of("mimic", ["a", "b"], [2, 2]))
    put(rows_of("mimic", ["a", "b"], [2, 9], frame="image", frame_side=np.full(2, 1024.0)), frame="image")
    result = cxu("filter", "--max-std", "5", exit_code=2)
    assert "2 images are there in both frames (mimic a first): choose with --frame" in result.stderr
    cxu("filter", "--max-std", "5", "--frame", "image")
    assert kept(home) == ["a"]
    cxu("filter", "mimic", "--max-std", "5", "--frame", "model")
    assert kept(home) == ["a", "b"]


def test_partial_sources_are_called_so(cxu, home, put):
    put(rows_of("mimic", ["a"], [2]), partial=1)
    assert "partial: of a source fetched with --limit-rows" in cxu("filter", "--max-std", "5").stderr
    assert home.open().facts["partial"] is True


def test_ids_that_are_missing_are_counted_and_exit_with_3(cxu, home, four, tmp_path):
    ids = tmp_path / "ids.csv"
    ids.write_text(
        "Image Index,x\n00000001_000.png,1\n00000003_000.png,1\n" + "".join(f"n{i}.png,1\n" for i in range(25))
    )
    result = cxu("filter", "--max-std", "5", "--ids", ids, exit_code=3)
    assert kept(home) == ["00000001_000"]
    assert "25 ids of --ids were not found:\n  n0.png\n" in result.stderr
    assert "… and 5 more: see" in result.stderr
    ids.write_text("00000001_000\n")
    cxu("filter", "--ids", ids)


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.csv"
    lines = ["00000001_000.png,PA,41", "00000001_001.png,PA,52", "00000002_000.png,AP,63", "00000009_000.png,AP,1"]
    path.write_text("\n".join(["Image Index,View Position,Age", *lines]))
    return path


def test_labels_are_joined_counted_and_compared(cxu, home, four, labels):
    result = cxu("filter", "--max-std", "5", "--labels", labels)
    assert home.open().read()["View Position"].to_pylist() == ["PA", "PA"]
    assert "labels labels.csv: 1 of 4 chestxray8 rows have no line, 1 of 4 lines have no row\n" in result.stderr
    unequal = result.stdout.split("Left out unequally by the thresholds\n")[1].splitlines()
    assert [line.split() for line in unequal[4:6]] == [
        ["View", "Position", "AP", "1", "100.0", "%"],
        ["View", "Position", "PA", "2", "0.0", "%"],
    ]
    assert unequal[-1] == "Filtering selects against some of these groups: report it, or filter within each."


def test_equal_exclusion_is_not_printed(cxu, four, labels):
    assert "unequally" not in cxu("filter", "--max-std", "9", "--labels", labels).stdout


def test_at_most_eight_columns_are_compared_on_the_screen(cxu, four, tmp_path):
    path = tmp_path / "labels.csv"
    names = [f"c{number}" for number in range(11)]
    path.write_text(
        "\n".join([",".join(["Image Index", *names]), "00000001_000" + ",x" * 11, "00000003_000" + ",y" * 11])
    )
    result = cxu("filter", "--max-std", "5", "--labels", path)
    assert "… and 3 more columns: see --json" in result.stdout
    assert sum(line.split()[:1] == ["c6"] for line in result.stdout.splitlines()) == 2
    assert len(json.loads(cxu("filter", "--max-std", "5", "--labels", path, "--json").stdout)["levels"]) == 22


def test_labels_of_nobody_are_noticed(cxu, four, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image_id,View\nsomebody,PA\n")
    result = cxu("filter", "--labels", path)
    assert "warning: no line of labels.csv has a row: does it label chestxray8?" in result.stderr


def test_conditions_on_labels(cxu, home, four, labels):
    cxu("filter", "--labels", f"NIH={labels}", "--where", "View Position=PA", "--where", "Age>=50")
    assert kept(home) == ["00000001_001"]
    assert home.open().facts["where"] == ["View Position=PA", "Age>=50"]


def test_the_thresholds_of_another_selection(cxu, home, put, four):
    cxu("filter", "--max-std", "p50", "--name", "train")
    put(rows_of("chestxray8", ["t0", "t1", "t2"], [4.9, 5.1, 9]))
    result = cxu("filter", "--like", "train", "--name", "test")
    assert kept(home, "test") == ["t0"]
    assert "thresholds of train: max_std p50 (5.00 px)" in result.stderr
    assert home.open("test").facts["limits_px"] == home.open("train").facts["limits_px"]
    cxu("filter", "--like", home.selection_path("train"), "--name", "again")
    assert kept(home, "again") == ["t0"]
    assert "thresholds of" in cxu("filter", "--like", "train", "--mix-models").stderr


def test_conditions_are_no_thresholds_of_another_selection(cxu, home, four, labels):
    cxu("filter", "--labels", f"NIH={labels}", "--where", "Age>=50", "--max-std", "5", "--name", "train")
    result = cxu("filter", "--like", "train", "--name", "test")
    assert "thresholds of train: max_std 5 px\n" in result.stderr
    assert home.open("test").facts["where"] == []


# --- warnings and failures -------------------------------------------------------------------------------------------


def test_a_plain_warning_where_few_rows_remain(cxu, four):
    result = cxu("filter", "--max-std", "1")
    assert "warning: only 0 of 4 rows remain; what is left may not stand for the whole." in result.stderr
    assert "limits that keep 50, 80 and 95 % of the nodes" in result.stderr
    assert "warning:" not in cxu("filter", "--max-std", "2").stderr


@pytest.mark.parametrize("option", [("--max-gap", "2"), ("--min-confident", "0.9"), ("--unit", "image")])
def test_options_without_effect_are_told(cxu, four, option):
    assert f"warning: {option[0]} changes nothing without --max-std" in cxu("filter", *option).stderr
    if option[0] != "--unit":
        assert "warning:" not in cxu("filter", "--max-std", "5", *option).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-std", "five"), "'five' is no limit; expected px such as 5, or a percentile such as p80"),
        (("--max-std", ""), "'' is no limit"),
        (("--organ", ""), "unknown organ ''"),
        (("--organ", "liver"), "unknown organ 'liver'; expected one of right_lung, left_lung, lungs, heart"),
        (("--unit", "mm"), "'mm' is not one of"),
        (("--min-rca", "70"), "min_rca is 70; expected a share from 0 to 1"),
        (("--max-gap", "-1"), "max_gap is -1"),
        (("--where", "view"), "expected column, operator"),
        (("--where", "veiw=PA"), "column 'veiw' is not there; expected one of source, image_id"),
        (("--where", "landmarks_xy=3"), "column 'landmarks_xy' holds lists"),
        (("--source", "mimic"), "has no mimic: fetch or import it first, or take chestxray8"),
        (("--source", "mimik"), "unknown source 'mimik' (did you mean 'mimic'?)"),
        (("--frame", "image"), "holds no source in the image frame to filter"),
        (("--source", "NIH", "--frame", "image"), "has no chestxray8 in the image frame"),
        (("--unit", "image", "--max-std", "5"), "do not know how many image pixels a model-frame pixel is"),
        (("--name", "a/b"), "selection name 'a/b'"),
        (("--out", "s.csv"), "--out s.csv: expected a .parquet file"),
        (("--out", "s.parquet", "--name", "s"), "and no --name beside it"),
        (("--like", "none"), "no table, selection or source called 'none'"),
        (("--like", "chestxray8"), "--like names no selection"),
        (("--like", "latest", "--max-std", "5"), "--like brings its own thresholds"),
        (("--ids", "none.txt"), "--ids none.txt: no such file"),
        (("--labels", "none.csv"), "--labels none.csv: no such file"),
        (("--labels", "mimic=none.csv"), "there are no rows of mimic, only of chestxray8"),
        (("nothing",), "no table, selection or source called 'nothing'"),
        (("chestxray8", "--source", "mimic"), "--source mimic: not in these tables, which hold chestxray8"),
    ],
    ids=" ".join,
)
def test_wrong_requests_exit_with_2_and_write_nothing(cxu, home, four, arguments, message):
    result = cxu("filter", *arguments, exit_code=2)
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""
    assert home.selections() == []


def test_an_empty_home_says_how_to_start(cxu):
    result = cxu("filter", "--max-std", "5", exit_code=2)
    assert "holds no source to filter: start with cxu fetch or cxu import" in result.stderr


def test_mixed_models_exit_with_2(cxu, home, tmp_path, four):
    store.write_table(rows_of("mine", ["a"], [2], model_id="0123456789abcdef"), tmp_path / "p.parquet")
    inputs = ("filter", "chestxray8", tmp_path / "p.parquet")
    result = cxu(*inputs, "--max-std", "5", exit_code=2)
    assert "one limit in px over 2 models (0123456789ab, published)" in result.stderr
    cxu(*inputs, "--max-std", "5", "--mix-models")
    assert len(kept(home)) == 3
    cxu(*inputs, "--max-std", "p100")
    assert len(kept(home)) == 5


def test_failures_exit_with_1(cxu, home, four, tmp_path, labels):
    labels.write_text(labels.read_text() + "\n00000001_000,PA,3\n")
    assert "1 lines repeat an id" in cxu("filter", "--labels", labels, exit_code=1).stderr
    twice = rows_of("chestxray8", ["00000001_000"], [2])
    store.write_table(twice, tmp_path / "more.parquet")
    result = cxu("filter", "chestxray8", tmp_path / "more.parquet", exit_code=1)
    assert "1 images stand more than once (chestxray8 00000001_000 first)" in result.stderr
    (tmp_path / "broken.parquet").write_text("no table")
    assert "is no readable Parquet file" in cxu("filter", tmp_path / "broken.parquet", exit_code=1).stderr
    assert home.selections() == []


def test_the_page_shows_what_the_sample_gives(cxu, home):
    cxu("import", SAMPLE, "--source", "synthetic", "--frame", "model")
    result = cxu("filter", "--max-std", "5")
    shown = PAGE.read_text("utf-8").split("```text\n")[1].split("```")[0]
    assert "".join(f"{line.rstrip()}\n" for line in result.stdout.splitlines()) == shown
    assert home.open().rows == 21


# --- real rows without standard deviations ---------------------------------------------------------------------------

REAL = {"chestxray8": "ChestX-Ray8.csv", "mimic": "MIMIC-CXR-JPG.csv", "padchest": "Padchest.csv"}


@pytest.mark.shared
@pytest.mark.parametrize("source", REAL)
def test_real_rows_of_the_original_chexmask(cxu, home, shared_data, source):
    cxu("import", shared_data / "chexmask" / REAL[source], "--source", source, "--frame", "model")
    rows = home.open(source).read()
    result = cxu("filter", "--max-std", "5", exit_code=2)
    assert f"rows of {source} have no standard deviations" in result.stderr
    assert "--min-rca" in result.stderr
    least = float(np.median(table.scalar_column(rows, "rca_mean")))
    report = json.loads(cxu("filter", "--min-rca", f"{least:.4f}", "--json").stdout)
    expected = rows["image_id"].filter(pa.array(table.scalar_column(rows, "rca_mean") >= np.float32(f"{least:.4f}")))
    assert kept(home) == expected.to_pylist()
    assert 0 < report["rows_out"] < len(rows)
    assert {SOURCES[source].canonical_id(text) for text in kept(home)} == set(kept(home))
