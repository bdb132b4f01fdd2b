"""What identifies a patient stays in the DICOM file, and a token where it was set: every output is searched."""

from __future__ import annotations

import gzip
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image

from film_helpers import save_film
from hub_server import HubServer
from predict_helpers import film_pixels, write_film, write_weights
from reliability import hub_faults
from reliability.case import run

# what stands in the films, and must stand nowhere else
PATIENT = {
    "PatientName": "Zzyzxquill^Orla",
    "PatientID": "PID73519Q",
    "PatientBirthDate": "19431207",
    "PatientAddress": "12 Nowhere Lane",
    "PatientTelephoneNumbers": "555-0173-99",
    "PatientComments": "likes heliotrope",
    "OtherPatientNames": "Brackish^Una",
    "AccessionNumber": "ACC88231Z",
    "InstitutionName": "Saint Nowhere Infirmary",
    "InstitutionAddress": "Nowhere Hill",
    "ReferringPhysicianName": "Vexmoor^Dr",
    "OperatorsName": "Quibbly^Op",
    "StudyID": "STU55102",
    "StudyDescription": "query pneumonia of Zzyzxquill",
    "RequestingPhysician": "Vexmoor",
    "SOPInstanceUID": "1.2.840.99999.73519.1",
    "StudyInstanceUID": "1.2.840.99999.73519.2",
    "SeriesInstanceUID": "1.2.840.99999.73519.3",
}
WORDS = (
    *("Zzyzxquill", "Orla", "PID73519Q", "19431207", "1943-12-07", "Nowhere", "555-0173", "heliotrope", "Brackish"),
    *("ACC88231Z", "Infirmary", "Vexmoor", "Quibbly", "STU55102", "99999.73519"),
)
TOKEN = "hf_SeCrEtToKeN0123456789abcdefghij"


def texts_in(folder):
    """Yield every file below a folder, its path and all that can be read in it: packed content unpacked as well."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        yield path, path.as_posix().encode() + content
        if path.suffix == ".parquet":
            rows = pq.read_table(path)
            yield path, f"{rows.to_pylist()} {rows.schema.metadata} {pq.read_metadata(path).metadata}".encode()
        elif path.suffix == ".gz":
            yield path, gzip.decompress(content)
        elif path.suffix in (".zip", ".npz"):
            with zipfile.ZipFile(path) as archive:
                yield path, b"".join(archive.read(name) for name in archive.namelist())
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
                yield path, str(picture.info).encode()


def found_in(folder, words, *printed):
    """Return which of the words stand anywhere in the files of a folder, or in what was printed."""
    places = [*texts_in(folder), *(("printed", text.encode()) for text in printed)]
    return {
        (str(where), word) for where, content in places for word in words if word.lower().encode() in content.lower()
    }


def write_patient(path, seed=0, **elements):
    pixels = film_pixels(seed, shape_hw=(90, 80))
    save_film(path, shape_hw=(90, 80), **{**PATIENT, "PixelData": pixels.tobytes(), **elements})


@pytest.fixture
def films(tmp_path, monkeypatch):
    """Two films that are read, and one that is not."""
    write_weights(tmp_path / "w.safetensors")
    write_patient(tmp_path / "films/a.dcm")
    write_patient(tmp_path / "films/b.dcm", 1, PixelSpacing=[0.4, 0.4], Modality="CT")
    write_patient(tmp_path / "films/c.dcm", 2, NumberOfFrames=3)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "films"


PREDICT = (
    "predict",
    "films",
    "--weights",
    "w.safetensors",
    "--samples",
    3,
    "--device",
    "cpu",
    "--out",
    "out/predictions",
)
TABLE = "out/predictions/predictions.parquet"


def test_the_search_finds_what_is_there(films, tmp_path):
    assert len(found_in(films, WORDS)) > len(WORDS)
    (tmp_path / "out").mkdir()
    with gzip.open(tmp_path / "out/a.gz", "wt") as stream:
        stream.write("of Vexmoor")
    assert found_in(tmp_path / "out", WORDS, "PID73519q") == {
        (str(tmp_path / "out/a.gz"), "Vexmoor"),
        ("printed", "PID73519Q"),
    }


def test_no_patient_in_any_output(films, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="cxu")
    commands = [
        ((*PREDICT, "--csv", "--overlay", "--masks", "--keep-samples", "--json"), 3),
        (("filter", TABLE, "--max-std", 50, "--quality", "any", "--out", "out/kept.parquet", "--json"), 0),
        (("measure", TABLE, "--out", "out/measures.csv", "--json"), 0),
        (("rasterize", TABLE, "--images", "films", "--format", "npz", "--out", "out/masks", "--json"), 0),
        (("overlay", TABLE, "--images", "films", "--out", "out/pictures", "--json"), 0),
        (("crop", TABLE, "--images", "films", "--out", "out/crops", "--json"), 0),
        (("export", TABLE, "--format", "geojson", "--out", "out/a.geojson", "--json"), 0),
        (("export", TABLE, "--format", "csv", "--out", "out/a.csv", "--json"), 0),
        (("export", TABLE, "--format", "coco", "--images", "films", "--out", "out/a.json", "--json"), 0),
        (("info", TABLE, "--json"), 0),
    ]
    for words, exit_code in commands:
        done = run(*words, "--home", "out/home")
        # a network of random weights may see lungs beside the film: such a row has no crop
        assert done.exit_code in {exit_code, 3 if words[0] == "crop" else exit_code}, done.said
        assert found_in(tmp_path / "out", WORDS, done.said) == set(), words[0]
    assert found_in(tmp_path / "out", WORDS, caplog.text) == set()
    assert len(pq.read_table(TABLE)) == 2


def test_a_segmentation_says_whose_it_is_and_nothing_else_does(films, tmp_path):
    pytest.importorskip("highdicom")
    assert run(*PREDICT, "--home", "out/home").exit_code == 3
    (films / "c.dcm").unlink()
    done = run(
        "export", TABLE, "--format", "dicomseg", "--images", films, "--out", "out/seg", "--home", "out/home", "--json"
    )
    assert done.exit_code == 0, done.said
    segments = sorted((tmp_path / "out/seg").rglob("*.dcm"))
    assert {pydicom.dcmread(path).PatientID for path in segments} == {"PID73519Q"}  # PS3.3 A.51: of the same patient
    assert not {"Nowhere", "heliotrope", "Quibbly"} & {word for _, word in found_in(tmp_path / "out/seg", WORDS)}
    for path in segments:
        path.unlink()
    assert found_in(tmp_path / "out", WORDS, done.said) == set()


@pytest.mark.parametrize("debug", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_no_patient_in_warnings_of_damaged_headers(films, tmp_path, debug):
    """As a process of its own: Python prints warnings past the command line."""
    content = (films / "a.dcm").read_bytes()
    # in place, so that lengths stay right: no date, a name of no character set, an id of another kind
    for old, new in (
        (b"19431207", b"Orla 43!"),
        (b"Zzyzxquill^Orla", b"Zzyzxquill^\xff\xfe\x1b$"),
        (b"PID73519Q", b"PID7\\519Q"),
    ):
        assert content.count(old) >= 1
        content = content.replace(old, new)
    (films / "d.dcm").write_bytes(content)
    (films / "e.dcm").write_bytes(content.replace(b"ISO_IR 192", b"ISO_IR ZZZ"))
    (films / "f.dcm").write_bytes((films / "d.dcm").read_bytes()[:700])
    (films / "g.dcm").write_bytes((films / "d.dcm").read_bytes()[:-300])
    words = [*PREDICT, "--json", "--home", "out/home"]
    done = subprocess.run(
        [sys.executable, "-W", "always", "-m", "cxu", *map(str, words)],
        env={**os.environ, "CXU_DEBUG": debug},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert found_in(tmp_path / "out", WORDS, done.stdout, done.stderr) == set()
    assert len(pq.read_table(TABLE)) == 4


# --- tokens ----------------------------------------------------------------------------------------------------------


FAULTS = {
    "well": {},
    "401": {"status": 401},
    "403": {"status": 403, "headers": {"X-Error-Message": f"Bearer {TOKEN} may not"}},
    "500": {"status": 500, "headers": {"X-Error-Message": f"what of {TOKEN}?"}},
    "cut": {"stop_at": 2000},
    "elsewhere": {
        "status": 302,
        "stage": "resolve",
        "methods": ("GET", "HEAD"),
        "headers": {"Location": "http://127.0.0.1:9/"},
    },
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("debug", ["0", "1"])
def test_no_token_in_any_output(tmp_path, monkeypatch, caplog, capfd, fault, debug):
    caplog.set_level(logging.DEBUG, logger="cxu")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cxu.hub_retry.sleep", lambda _: None)
    with HubServer(token=TOKEN) as server:
        server.add(hub_faults.REPO, {hub_faults.FILE: hub_faults.CSV})
        server.lead_here(monkeypatch, tmp_path / "hf")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("CXU_DEBUG", debug)
        if FAULTS[fault]:
            server.fail(hub_faults.FILE, times=None, **FAULTS[fault])
        printed = []
        for words in (
            ("fetch", "mimic"),
            ("fetch", "mimic", "--list", "--json"),
            ("predict", "a.png", "--weights", "ann/net"),
        ):
            write_film(tmp_path / "a.png")
            done = said(*words)
            printed.append(done)
        assert any(request.authorization == f"Bearer {TOKEN}" for request in server.seen())
        assert not any(request.authorization for request in server.seen(stage="storage"))
    assert (tmp_path / "cxu-data/sources").exists() == (fault == "well")
    out, err = capfd.readouterr()
    assert found_in(tmp_path, [TOKEN, TOKEN[3:]], *printed, out, err, caplog.text) == set()


def said(*words):
    """Return all that a command prints, tracebacks included."""
    from typer.testing import CliRunner

    from cxu.cli import app

    return CliRunner().invoke(app, [str(word) for word in words]).output


def test_a_password_in_the_address_is_not_shown(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cxu.hub_retry.sleep", lambda _: None)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for endpoint in ("http://ann:PassWord77@127.0.0.1:9", "ftp://ann:PassWord77@127.0.0.1"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        done = said("fetch", "mimic")
        assert "cxu: error" in done
        assert found_in(tmp_path, ["PassWord77"], done, caplog.text) == set()


def test_the_search_for_tokens_knows_files(tmp_path):
    (tmp_path / "a.json").write_text(TOKEN)
    assert {Path(where).name for where, _ in found_in(tmp_path, [TOKEN])} == {"a.json"}
