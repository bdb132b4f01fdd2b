"""The layout holds: imports point down, heavy libraries stay in their rooms, starting up is light."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

import cxu

ROOT = Path(__file__).parents[1]
# library → the rooms that may import it
ROOMS = {
    "torch": {
        "cxu.model",
        "cxu.predict",
        "cxu.predict_crew",
        "cxu.datasets",
        "cxu.training",
        "cxu.evaluation",
        "cxu.demo",
    },
    "huggingface_hub": {"cxu.hub"},
    "typer": {"cxu.cli", "cxu.__main__"},
    "rich": {"cxu.cli"},
    "matplotlib": {"cxu.plot"},
    "gradio": {"cxu.demo"},
    "cv2": {"cxu.raster", "cxu.images"},
    "dask": {"cxu.engine"},
    "distributed": {"cxu.engine"},
}


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("cxu", include_external_packages=True, cache_dir=None)


def test_imports_point_down():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_stands_on_a_floor(graph):
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    on_floors = {name for layer in contract["layers"] for name in re.split(r" *[:|] *", layer)}
    assert graph.find_children("cxu") - on_floors == set()


@pytest.mark.parametrize("library", ROOMS)
def test_heavy_library_stays_in_its_room(graph, library):
    if library not in graph.modules:
        return
    importers = graph.find_modules_that_directly_import(library)
    allowed = ROOMS[library]
    strays = {name for name in importers if not any(name == room or name.startswith(f"{room}.") for room in allowed)}
    assert strays == set()


def imported_by(*arguments: str) -> set[str]:
    code = (
        "import sys, json, runpy; sys.argv = ['cxu', *json.loads(sys.argv[1])]\n"
        "try: runpy.run_module('cxu', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {name.split(".")[0] for name in json.loads(done.stderr.strip().splitlines()[-1])}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["filter", "--help"], ["rasterize", "--help"], ["predict", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(arguments):
    heavy = {"torch", "pandas", "pyarrow", "cv2", "numpy", "huggingface_hub", "PIL", "shapely", "pydicom"}
    assert imported_by(*arguments) & heavy == set()


def test_importing_cxu_imports_only_the_standard_library():
    code = "import sys; before = set(sys.modules); import cxu; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} <= {"cxu", *sys.stdlib_module_names}


def test_public_names_are_pinned():
    assert sorted(cxu.__all__) == [
        "CxuError",
        "Drawing",
        "Home",
        "MaskDataset",
        "MaskOptions",
        "ModelFrame",
        "ORGANS",
        "Selection",
        "StoredTable",
        "__version__",
        "crop_rows",
        "fetch_source",
        "filter_rows",
        "import_csv",
        "landmarks",
        "measure_rows",
        "open_home",
        "open_table",
        "predict_images",
        "rasterize_row",
        "rasterize_rows",
        "read_table",
        "sigmas",
    ]


@pytest.mark.parametrize("name", cxu.__all__)
def test_public_name_exists_and_says_what_it_is(name):
    value = getattr(cxu, name)
    assert value is not None
    if callable(value):
        assert value.__doc__


def test_no_public_name_hides_a_module(graph):
    modules = {name.removeprefix("cxu.") for name in graph.find_children("cxu")}
    assert modules & set(cxu.__all__) == set()


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such"):
        _ = cxu.no_such
