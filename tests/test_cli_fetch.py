"""``cxu fetch``: what it prints, its exit codes, and every refusal of a Hub, through the command line."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from builders import published_csv, published_row
from cxu.cli import app
from hub_server import HubServer

REPO = "mcosarinsky/CheXmask-U"
MIMIC = "Preprocessed/MIMIC-CXR-JPG.csv"
VINDR = "OriginalResolution/VinDr-CXR.csv"


def csv_of(id_column, ids, **fields):
    return published_csv([published_row(image_id, **fields) for image_id in ids], rename={"Image Index": id_column})


FILES = {
    MIMIC: csv_of("dicom_id", [f"{index:08x}" for index in range(12)]).encode(),
    VINDR: csv_of("image_id", [f"{index:032x}" for index in range(3)], Height="2048", Width="2048").encode(),
    "README.md": b"# CheXmask-U\n",
}


@pytest.fixture
def pauses(monkeypatch):
    waited = []
    monkeypatch.setattr("cxu.hub_retry.sleep", waited.append)
    return waited


@pytest.fixture
def server(tmp_path, monkeypatch, pauses):
    monkeypatch.chdir(tmp_path)
    with HubServer() as running:
        running.add(REPO, FILES)
        running.lead_here(monkeypatch, tmp_path / "hf")
        yield running


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["fetch", *arguments])
    assert result.exit_code == code, result.output
    return result


def run_json(*arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code).stdout)


def commit_of(server):
    return server.repos["dataset", REPO].branches["main"]


# Good


def test_it_says_first_where_from_and_where_to(server):
    result = run("mimic")
    assert result.stderr.splitlines()[:2] == [
        f"home cxu-data · repository {REPO}, revision main",
        f"commit {commit_of(server)}",
    ]
    assert result.stdout == "mimic: 12 rows into cxu-data/sources/mimic/model, 0 malformed\n"
    assert "warning: Preprocessed/MIMIC-CXR-JPG.csv holds 12 rows" in result.stderr


def test_again_it_says_that_nothing_is_to_do(server):
    run("mimic")
    result = run("MIMIC-CXR-JPG")
    assert result.stdout == "mimic: already here (12 rows in cxu-data/sources/mimic/model); nothing to do\n"
    assert "--force fetches it again" in result.stderr


def test_json(server, tmp_path):
    content = run_json("mimic", "vindr", "--home", "elsewhere")
    assert {name: content[name] for name in ("repo", "revision", "commit", "home")} == {
        "repo": REPO,
        "revision": "main",
        "commit": commit_of(server),
        "home": "elsewhere",
    }
    assert [(entry["source"], entry["frame"], entry["action"], entry["rows"]) for entry in content["sources"]] == [
        ("mimic", "model", "fetch", 12),
        ("vindr", "image", "fetch", 3),
    ]
    assert (tmp_path / "elsewhere/sources/vindr/image/source.json").is_file()


def test_list_shows_files_and_what_is_here(server, tmp_path):
    run("mimic")
    shown = run("--list").stdout.splitlines()
    assert shown[0].split() == ["file", "size", "source", "frame", "here"]
    assert [line.split()[0] for line in shown[1:]] == [VINDR, MIMIC, "README.md"]
    assert [line.split()[-1] for line in shown[1:3]] == ["no", "fetched"]
    listed = run_json("--list", "mimic")["files"]
    assert listed == [
        {"path": MIMIC, "bytes": len(FILES[MIMIC]), "source": "mimic", "frame": "model", "state": "fetched"}
    ]
    assert len(list(tmp_path.glob("cxu-data/runs/*"))) == 1  # to list is no run


def test_dry_run_shows_the_plan_and_does_nothing(server, tmp_path):
    result = run("mimic", "vindr", "--dry-run")
    assert [line.split()[:3] for line in result.stdout.splitlines()] == [
        ["source", "frame", "file"],
        ["mimic", "model", MIMIC],
        ["vindr", "image", VINDR],
    ]
    plan = run_json("mimic", "--dry-run")["plan"]
    assert plan == [
        {
            "source": "mimic",
            "frame": "model",
            "file": MIMIC,
            "bytes": len(FILES[MIMIC]),
            "to_download": len(FILES[MIMIC]),
            "action": "fetch",
        }
    ]
    assert not (tmp_path / "cxu-data").exists()
    assert server.bytes_sent(MIMIC) == 0


def test_all_means_every_source(server):
    server.add(
        REPO, {f"OriginalResolution/{name}.csv": b"" for name in ("mimic", "chexpert", "nih", "padchest", "vindr")}
    )
    assert [entry["source"] for entry in run_json("all", "--dry-run")["plan"]] == [
        "mimic",
        "chexpert",
        "chestxray8",
        "padchest",
        "vindr",
    ]


def test_limit_rows_is_partial_everywhere(server):
    assert run("mimic", "--limit-rows", "5").stdout.endswith(
        "5 rows, partial into cxu-data/sources/mimic/model, 0 malformed\n"
    )
    assert run("mimic", "--limit-rows", "5").stdout.startswith("mimic: already here (5 rows, partial in")
    assert "partial" in run("--list", "mimic").stdout
    shown = CliRunner().invoke(app, ["ls", "--json"])
    assert json.loads(shown.stdout)["sources"][0]["partial"] == 5
    assert run_json("mimic")["sources"][0]["partial"] is None


def test_another_frame_is_taken_and_said(server):
    server.add(REPO, {"Preprocessed/VinDr.csv": FILES[VINDR].replace(b"2048", b"1024")})
    result = run("vindr")
    assert "into cxu-data/sources/vindr/model" in result.stdout
    assert "vindr: VinDr-CXR is published as frame model only" in result.stderr


def test_revision_and_repository(server):
    server.add("ann/copy", {MIMIC: FILES[MIMIC]}, revision="v2")
    result = run("mimic", "--repo", "ann/copy", "--revision", "v2")
    assert "repository ann/copy, revision v2" in result.stderr


def test_offline_after_the_csv_has_gone(server):
    run("mimic")
    server.requests.clear()
    result = run("mimic", "--offline")
    assert "offline, so no newer one was looked for" in result.stderr
    assert server.requests == []


def test_passing_failures_are_retried_and_told(server, pauses):
    server.fail(status=503, times=2)
    server.fail(MIMIC, status=429, headers={"Retry-After": "7"})
    run("mimic")
    assert pauses == [1.0, 2.0, 7.0]


# Some rows failed


def test_malformed_rows_are_listed_and_exit_3(server, tmp_path):
    rows = [published_row("0a"), "too,short", published_row("0b", Height="-3")]
    server.add(REPO, {MIMIC: published_csv(rows, rename={"Image Index": "dicom_id"}).encode()})
    result = run("mimic", code=3)
    assert result.stdout.endswith("1 rows into cxu-data/sources/mimic/model, 2 malformed\n")
    assert f"  {MIMIC}, line 3: 2 fields, expected 10" in result.stderr
    assert run_json("mimic", "--force", code=3)["sources"][0]["malformed"] == 2
    assert run("mimic").exit_code == 0  # it is here


# Wrong requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one source: mimic, chexpert, chestxray8, padchest, vindr, or all"),
        (["mimick"], "unknown source 'mimick' (did you mean 'mimic'?); known sources: mimic, chexpert"),
        (["mimic", "--repo", "no name"], "'no name' is no repository name. Expected OWNER/NAME."),
        (["mimic", "--limit-rows", "0"], "--limit-rows"),
        (["mimic", "--frame", "lateral"], "--frame"),
    ],
)
def test_a_wrong_request_exits_2_and_asks_nothing(server, tmp_path, arguments, message):
    assert message in run(*arguments, code=2).stderr
    assert server.requests == []
    assert not (tmp_path / "cxu-data").exists()


def test_rows_imported_by_hand_are_kept(server, tmp_path):
    (tmp_path / "mine.csv").write_text(csv_of("dicom_id", ["aa"]))
    CliRunner().invoke(app, ["import", "mine.csv", "--source", "mimic", "--frame", "model"])
    for more in ([], ["--dry-run"]):
        error = run("mimic", *more, code=2).stderr
        assert "mimic in frame model (1 rows) was imported from mine.csv, not fetched. Use --force" in error
    assert run("mimic", "--force").stdout.startswith("mimic: 12 rows")


# Failures


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("padchest", [], "has no file of PadChest"),
        ("mimic", ["--frame", "image"], "has no MIMIC-CXR-JPG in frame image"),
        ("mimic", ["--revision", "v9"], "has no revision 'v9'"),
        ("mimic", ["--repo", "ann/nothing"], "has no dataset repository 'ann/nothing'"),
        ("mimic", ["--offline"], "offline, and nothing of dataset repository"),
    ],
)
def test_what_is_not_there_exits_1(server, tmp_path, source, options, message):
    assert message in run(source, *options, code=1).stderr
    assert not (tmp_path / "cxu-data").exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"status": 401}, "refuses access to file"),
        ({"status": 403}, "accept the terms at"),
        ({"status": 404}, "there is no file"),
        ({"status": 429, "headers": {"Retry-After": "3600"}}, "asks for a pause of 3600 s"),
        ({"status": 500}, "keeps failing"),
        ({"stop_at": 3000}, "is truncated"),
        ({"alter": True}, "is damaged"),
    ],
)
def test_what_the_hub_refuses_exits_1_and_leaves_no_rows(server, tmp_path, fault, message):
    server.fail(MIMIC, times=None, **fault)
    assert message in run("mimic", code=1).stderr
    assert not (tmp_path / "cxu-data/sources").exists()
    server.heal()
    assert run("mimic").stdout.startswith("mimic: 12 rows into")


def test_no_network_exits_1(server, monkeypatch, pauses):
    with socket.socket() as closed:  # bound, not listening
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert "cannot reach 127.0.0.1" in run("mimic", code=1).stderr
    assert len(pauses) == 4


def test_too_little_disk_exits_1(server, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "not enough disk space for the download and the tables of mimic" in run("mimic", code=1).stderr
    assert server.bytes_sent(MIMIC) == 0
    run("mimic", "--limit-rows", "2")


def test_two_files_that_could_be_meant_exit_1(server):
    server.add(REPO, {MIMIC: FILES[MIMIC], "Preprocessed/MIMIC.csv": b"other"})
    assert "several files that could be MIMIC-CXR-JPG in frame model" in run("mimic", code=1).stderr


# As a process


def test_without_a_terminal_there_are_neither_bars_nor_colours(server, tmp_path):
    environment = {**os.environ, **server.environment(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-m", "cxu", "fetch", "mimic"], cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"\r" not in done.stderr
    assert done.stdout.decode() == "mimic: 12 rows into cxu-data/sources/mimic/model, 0 malformed\n"


# The documentation


def test_every_command_line_of_the_page_runs(server, tmp_path):
    names = ("MIMIC-CXR-JPG", "CheXpert", "ChestX-ray8", "Padchest", "VinDr-CXR")
    columns = ("dicom_id", "Path", "Image Index", "ImageID", "image_id")
    tables = {name: csv_of(column, ["0a", "0b"]).encode() for name, column in zip(names, columns, strict=True)}
    for revision in ("main", "v1.0"):
        folders = ("Preprocessed", "OriginalResolution")
        files = {f"{folder}/{name}.csv": tables[name] for folder in folders for name in names}
        server.add(REPO, files, revision=revision)
    page = (Path(__file__).parents[1] / "docs/commands/fetch.md").read_text("utf-8")
    lines = re.findall(r"^    cxu fetch (.*)$", page, re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        run(*shlex.split(line.replace("/data/cxu", str(tmp_path / "elsewhere"))))
