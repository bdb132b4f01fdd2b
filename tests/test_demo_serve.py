"""The demo's server through HTTP, and the command that starts it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from cxu.demo.desk import NOTHING, Desk
from cxu.demo.folder import PREFIX
from cxu.demo.guard import MB
from cxu.demo.serve import ServeOptions, serving
from cxu.errors import UsageError
from cxu.model.weight_source import load
from predict_helpers import write_film, write_weights

pytest.importorskip("gradio", reason="the demo needs gradio")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SETTINGS = (0, 5, 20)
needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")


@pytest.fixture(scope="module")
def weights_path(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def running(weights_path, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        patch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # a proxy is not asked for what is on this machine
        with serving(load(str(weights_path)), torch.device("cpu"), ServeOptions(port=0, max_mb=1)) as made:
            yield made
        assert not made.folder.exists()


@pytest.fixture(scope="module")
def page_of():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import demo_soak

        yield demo_soak.Page


@pytest.fixture
def film(tmp_path):
    return write_film(tmp_path / "a.png").read_bytes()


def get(running, path, **options):
    return httpx.get(running.url.rstrip("/") + path, trust_env=False, **options)


def until(condition, seconds=20.0):
    """Wait until something holds; return whether it does."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


# --- the server ------------------------------------------------------------------------------------------------------


def test_it_is_bound_to_this_machine_alone(running):
    assert running.url.startswith("http://127.0.0.1:")
    assert running.share_url is None
    assert get(running, "/").status_code == 200


def test_other_hosts_are_refused(running):
    refused = get(running, "/", headers={"Host": "evil.example"})
    assert refused.status_code == 421
    assert get(running, "/config", headers={"Origin": "http://evil.example"}).status_code == 403


def test_an_oversize_upload_is_refused_before_it_is_read(running):
    port = httpx.URL(running.url).port
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {10**12}\r\n\r\n"
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    assert answer.startswith("HTTP/1.1 413")
    assert "the file is larger than 1 MB, the limit of this demo (--max-mb)" in answer


def test_an_oversize_film_leaves_nothing(running, page_of):
    with page_of(running.url) as page, pytest.raises(Exception, match=r"413 .*larger|413 .*exceeded"):
        page.upload("large.png", bytes(MB + 1))
    assert not [path for path in running.folder.rglob("*") if path.is_file() and path.stat().st_size > MB // 2]


def test_a_wrong_file_says_why(running, page_of):
    with page_of(running.url) as page:
        problem, *others = page.open_film("notes.txt", b"hello", SETTINGS)
    assert "notes.txt is no PNG, JPEG, TIFF or DICOM file" in problem
    assert str(running.folder) not in problem
    assert all(other["__type__"] == "update" and "value" not in other for other in others)


def test_settings_and_strokes_that_are_none_say_why(running, page_of, film):
    with page_of(running.url) as page:
        with pytest.raises(Exception, match="greater than maximum value 200"):
            page.open_film("a.png", film, (0, 5000, 20))
        page.open_film("a.png", film, SETTINGS)
        for sent in (None, {}, {"points": "x", "radius": 1}):
            assert "stroke" in page.ask("paint", list(SETTINGS), sent)[0]


def test_a_page_is_forgotten_when_it_is_closed(running, page_of, film):
    with page_of(running.url) as page:
        problem, picture, result, _ = page.open_film("a.png", film, SETTINGS)
        assert problem == ""
        assert "data:image/jpeg" in picture
        assert "a.png" in result
        assert running.desk.sessions.get(page.session_hash)
    assert until(lambda: running.desk.sessions.get(page.session_hash) is None)


def test_the_same_film_of_two_pages_is_no_conflict(running, page_of, film):
    with page_of(running.url) as one, page_of(running.url) as other:
        paths = [page.upload("a.png", film) for page in (one, other)]
        assert paths[0] == paths[1]
        for page in (one, other):
            assert "a.png" in page.open_film("a.png", film, SETTINGS)[2]


def test_uploads_lie_in_the_private_folder_and_cannot_be_fetched(running, page_of, film):
    with page_of(running.url) as page:
        path = page.upload("a.png", film)
    assert Path(path).is_relative_to(running.folder)
    assert os.name != "posix" or running.folder.stat().st_mode & 0o777 == 0o700
    assert get(running, f"/gradio_api/file={path}").status_code == 404


@pytest.mark.parametrize("path", ["/etc/hostname", "http://127.0.0.1:9/a.png"])
def test_files_of_the_server_and_addresses_are_no_films(running, page_of, path, monkeypatch):
    named = {"path": path, "meta": {"_type": "gradio.FileData"}}
    with page_of(running.url) as page:
        for data in ([named, *SETTINGS], [None, named, *SETTINGS[1:]]):
            with pytest.raises(Exception, match=r"403 .*no file that was uploaded here"):
                page.ask("open_film", data)
        # nor would gradio open a local one
        monkeypatch.setattr("cxu.demo.guard.Rules.foreign_file", lambda *_: None)
        if path.startswith("/"):
            with pytest.raises(Exception, match="open_film: "):
                page.ask("open_film", [named, *SETTINGS])


def test_the_page_names_no_other_place(running):
    text = get(running, "/").text + get(running, "/theme.css").text
    assert "googleapis" not in text
    assert "cdn" not in text.replace("'cdn'", "").lower()


def test_more_than_may_wait_are_told_so(weights_path, page_of, monkeypatch):
    begun, hold = threading.Event(), threading.Event()

    def change(*_):
        begun.set()
        hold.wait(60)
        return NOTHING

    monkeypatch.setattr("cxu.demo.page.MAX_WAITING", 1)
    monkeypatch.setattr(Desk, "change", change)
    with (
        serving(load(str(weights_path)), torch.device("cpu"), ServeOptions(port=0)) as made,
        page_of(made.url) as first,
        page_of(made.url) as second,
        page_of(made.url) as third,
        ThreadPoolExecutor(2) as pool,
    ):
        answers = [pool.submit(first.ask, "cxu-noise", list(SETTINGS))]
        assert begun.wait(60)
        answers.append(pool.submit(second.ask, "cxu-noise", list(SETTINGS)))
        assert until(lambda: get(made, "/gradio_api/queue/status").json()["queue_size"] == 1)
        with pytest.raises(Exception, match=r"503 .*Queue is full"):
            third.ask("cxu-noise", list(SETTINGS))
        hold.set()
        assert all("Drop a frontal chest radiograph" in str(answer.result()) for answer in answers)


# --- where it is served ----------------------------------------------------------------------------------------------


def serve_briefly(weights_path, **options):
    with serving(load(str(weights_path)), torch.device("cpu"), ServeOptions(**options)) as made:
        return made


def test_a_port_that_is_taken_says_so(weights_path, running):
    port = httpx.URL(running.url).port
    with pytest.raises(UsageError, match=rf"127.0.0.1, --port {port}: .*choose another --port"):
        serve_briefly(weights_path, port=port)


@pytest.mark.parametrize("host", ["no such host", "192.0.2.1"])
def test_an_address_of_elsewhere_says_so(weights_path, host):
    with pytest.raises(UsageError, match=host):
        serve_briefly(weights_path, host=host, port=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"port": 70_000}, "--port 70000"), ({"max_mb": 0}, "--max-mb 0"), ({"max_mb": -1}, "--max-mb")],
)
def test_options_that_are_none_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        ServeOptions(**options)


def test_a_share_link_is_a_host_of_this_server_and_only_while_asked_for(weights_path, monkeypatch):
    from gradio import networking

    asked = []
    monkeypatch.setattr(networking, "setup_tunnel", lambda *args: asked.append(args[:2]) or "https://x.gradio.live")
    with serving(load(str(weights_path)), torch.device("cpu"), ServeOptions(port=0, share=True)) as made:
        assert made.share_url == "https://x.gradio.live"
        assert asked == [("127.0.0.1", httpx.URL(made.url).port)]
        assert get(made, "/", headers={"Host": "x.gradio.live"}).status_code == 200
        assert get(made, "/", headers={"Host": "y.gradio.live"}).status_code == 421


def test_without_the_service_the_demo_runs_unshared(weights_path, monkeypatch):
    from gradio import networking

    def fail(*_):
        raise RuntimeError("no network")

    monkeypatch.setattr(networking, "setup_tunnel", fail)
    with serving(load(str(weights_path)), torch.device("cpu"), ServeOptions(port=0, share=True)) as made:
        assert made.share_url is None
        assert get(made, "/").status_code == 200


# --- the command -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def command(folder, *arguments):
    """Run ``cxu demo`` in a folder, with a home and a temporary folder of its own."""
    places = {"HOME": folder / "home", "TMPDIR": folder / "temporary", "XDG_CACHE_HOME": folder / "home" / ".cache"}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    environment = {**os.environ, **{name: str(place) for name, place in places.items()}, "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("HF_HOME", "DISPLAY", "WAYLAND_DISPLAY"):
        environment.pop(name, None)
    started = subprocess.Popen(
        [sys.executable, "-m", "cxu", "demo", "--port", "0", *map(str, arguments)],
        cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.communicate()


def printed_url(started):
    lines = iter(started.stdout.readline, "")
    text = ""
    for line in lines:
        text += line
        with contextlib.suppress(ValueError):
            return json.loads(text)["url"]
    raise AssertionError(started.stderr.read())


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@needs_posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_ends_cleanly_and_leaves_nothing(tmp_path, weights_path, page_of, film, number, code):
    with command(tmp_path, "--json", "--no-browser", "--weights", weights_path) as started:
        url = printed_url(started)
        with page_of(url) as page:
            page.open_film("a.png", film, SETTINGS)
            (private,) = (tmp_path / "temporary").glob(f"{PREFIX}*")
            started.send_signal(number)
            _, said = started.communicate(timeout=60)
        assert started.returncode == code, said
    assert "Traceback" not in said
    assert "Ctrl-C ends it" in said
    assert "not a medical device" in said
    assert code != 130 or "interrupted. What was uploaded is deleted." in said
    assert not private.exists()
    assert files_in(tmp_path) == ["a.png"]


@pytest.mark.slow
@needs_posix
def test_what_a_killed_one_leaves_the_next_removes(tmp_path, weights_path, page_of, film):
    with (
        command(tmp_path, "--json", "--no-browser", "--weights", weights_path) as started,
        page_of(printed_url(started)) as page,
    ):
        page.open_film("a.png", film, SETTINGS)
        started.kill()
        started.wait()
    (left,) = (tmp_path / "temporary").glob(f"{PREFIX}*")
    with command(tmp_path, "--json", "--no-browser", "--weights", weights_path) as started:
        printed_url(started)
        assert not left.exists()


def test_without_gradio_the_command_says_what_to_install(tmp_path, weights_path):
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "sys.argv = ['cxu', 'demo', '--port', '0', '--weights', sys.argv[1]]\n"
        "from cxu.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, weights_path], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "cxu demo needs gradio: pip install 'cxu[demo]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['cxu', 'demo', '--help']\n"
        "from cxu.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*{'gradio', 'torch', 'numpy', 'pyarrow', 'uvicorn'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
