"""The four lines of the product as a user has them: the built wheel, a fresh environment, an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from builders import mimic_csv
from hub_server import HubServer
from predict_helpers import write_film

ROOT = Path(__file__).parents[1]
DATA_LINES = ("fetch mimic", "filter --max-std 5", "rasterize --out masks/")
# what Python imports at its start: from here on no connection is made
NO_NETWORK = """\
import socket

def refuse(*_):
    raise OSError("the network is cut")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def program(wheel, tmp_path_factory):
    """``cxu`` in a fresh environment that holds the wheel alone, and borrows what cxu needs from this one."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    command = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "-q", "--no-deps", wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    own = next(folder.glob("lib/python*/site-packages"))
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = subprocess.run(
        [folder / "bin/python", "-c", "import cxu; print(cxu.__file__)"], capture_output=True, text=True, check=True
    )
    assert Path(where.stdout.strip()).is_relative_to(own), where
    return folder / "bin/cxu"


def run(program, line, folder, environment):
    return subprocess.run(
        [program, *line.split()], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_four_lines_run_from_the_wheel(program, tmp_path):
    folder, start = tmp_path / "empty", tmp_path / "start"
    folder.mkdir()
    start.mkdir()
    with HubServer() as server:
        server.add("mcosarinsky/CheXmask-U", {"Preprocessed/MIMIC-CXR-JPG.csv": mimic_csv().encode()})
        environment = {**os.environ, **server.environment(tmp_path / "hf")}
        for line in DATA_LINES:
            done = run(program, line, folder, environment)
            assert done.returncode == 0, done.stderr
    assert any((folder / "masks").rglob("*.png"))

    write_film(folder / "image.png", size=256)
    (start / "sitecustomize.py").write_text(NO_NETWORK)
    done = run(program, "predict image.png", folder, {**os.environ, "PYTHONPATH": str(start)})
    assert done.returncode == 0, done.stderr
    table = pq.read_table(folder / "cxu-data/predictions/predictions.parquet")
    assert table["image_id"].to_pylist() == ["image.png"]
    assert max(table["sigma_model_px"].to_pylist()[0]) > 0


def test_the_wheel_holds_the_weights_and_no_image(wheel):
    with zipfile.ZipFile(wheel) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist()}
    weights = {name: size for name, size in sizes.items() if name.startswith("cxu/model/bundled/")}
    assert "cxu/model/bundled/hybridgnet-igsc.safetensors" in weights
    assert all(size <= 25e6 for size in weights.values())
    assert not [name for name in sizes if name.endswith((".png", ".jpg", ".jpeg", ".dcm"))]
