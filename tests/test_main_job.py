"""The main job: the first three lines of the product, as they stand, in an empty folder against a loopback Hub."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders import N_MIMIC_ROWS as N_ROWS
from builders import mimic_csv
from cxu.anatomy import HEART, LEFT_LUNG, RIGHT_LUNG
from hub_server import HubServer

MAIN_JOB = """\
cxu fetch mimic
cxu filter --max-std 5
cxu rasterize --out masks/
"""


@pytest.fixture(scope="module")
def published():
    return mimic_csv()


@pytest.fixture(scope="module")
def job(published, tmp_path_factory):
    """The folder after the main job, and what each line printed."""
    folder, cache = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("hf")
    with HubServer() as server:
        server.add("mcosarinsky/CheXmask-U", {"Preprocessed/MIMIC-CXR-JPG_v2.csv": published.encode()})
        environment = {**os.environ, **server.environment(cache)}
        done = [run(line, folder, environment) for line in MAIN_JOB.splitlines()]
    assert not [path for path in cache.rglob("*") if path.is_file() and "blobs" in path.parts]
    return folder, done


def run(line, folder, environment):
    program, *arguments = shlex.split(line)
    return subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def confident_nodes(published):
    """Return which nodes of each row lie within 5 px, read from the published text itself."""
    rows = csv.DictReader(io.StringIO(published))
    return {
        row["dicom_id"]: np.array(row["Landmarks (Std)"].split(","), float).reshape(120, 2).mean(axis=1) <= 5
        for row in rows
    }


def masks_of(folder):
    return {path.stem: np.asarray(Image.open(path)) for path in (folder / "masks").rglob("*.png")}


def test_every_line_ends_well(job):
    _, done = job
    assert [result.returncode for result in done] == [0, 0, 0], "\n".join(result.stderr for result in done)


def test_each_line_says_what_it_reads(job):
    _, (fetched, filtered, drawn) = job
    assert fetched.stderr.startswith("home cxu-data · repository mcosarinsky/CheXmask-U, revision main\ncommit ")
    assert filtered.stderr.startswith(f"home cxu-data · source mimic/model: {N_ROWS} rows")
    assert drawn.stderr.startswith("home cxu-data · selection latest: ")
    assert "max_std 5" in drawn.stderr
    assert "do not overlay the original files" in drawn.stderr.splitlines()[-1]


def test_the_selection_is_called_latest_and_drops_some_rows(job):
    folder, _ = job
    names = {path.name for path in (folder / "cxu-data/selections").iterdir()}
    assert names == {"latest.parquet", "latest.excluded.parquet"}
    assert 0 < len(masks_of(folder)) < N_ROWS


def test_every_row_with_a_usable_organ_has_a_mask(job, published):
    folder, _ = job
    masks = masks_of(folder)
    surely = {name for name, nodes in confident_nodes(published).items() if nodes.all()}
    never = {name for name, nodes in confident_nodes(published).items() if not nodes.any()}
    assert surely <= set(masks)
    assert not never & set(masks)
    assert all(path.parent.name == "mimic" for path in (folder / "masks").rglob("*.png"))


def test_masks_hold_the_labels_where_the_organs_are(job, published):
    folder, _ = job
    confident = confident_nodes(published)
    rows = {row["dicom_id"]: row["Landmarks (Mean)"] for row in csv.DictReader(io.StringIO(published))}
    checked = 0
    for name, mask in masks_of(folder).items():
        assert (mask.shape, mask.dtype) == ((1024, 1024), np.uint8)
        assert set(np.unique(mask)) <= {0, 1, 2, 3, 255}
        landmarks = np.array(rows[name].split(","), float).reshape(120, 2)
        for organ, label in ((RIGHT_LUNG, 1), (LEFT_LUNG, 2), (HEART, 3)):
            if confident[name][organ.nodes].all():
                x, y = landmarks[organ.nodes].mean(axis=0).round().astype(int)
                assert mask[y, x] == label
                checked += 1
    assert checked > N_ROWS // 2
    # a reader faces the patient: the right lung is on the left of the image
    columns = np.arange(1024)
    both = [mask for mask in masks_of(folder).values() if {1, 2} <= set(np.unique(mask))]
    assert all(
        (columns * (m == 1).sum(0)).sum() / (m == 1).sum() < (columns * (m == 2).sum(0)).sum() / (m == 2).sum()
        for m in both
    )


def test_every_line_leaves_a_manifest(job):
    folder, _ = job
    records = [json.loads(path.read_text()) for path in (folder / "cxu-data/runs").iterdir()]
    assert sorted(record["command"] for record in records) == ["fetch", "filter", "rasterize"]
    assert {path.name for path in folder.iterdir()} == {"cxu-data", "masks"}
