"""Many pages of ``cxu demo`` at once: whether all are answered, and whether memory stays flat.

Starts a server of its own, opens a page in every thread, and lets each upload films, move sliders, paint and close
again, as a browser would, through HTTP. Prints answers, errors, waiting times, and the server's memory minute by
minute; the last line is memory at the end over memory after the first third.

    python benchmarks/demo_soak.py --minutes 5 --clients 20
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

API = "/gradio_api"
PATIENCE_SECONDS = 120.0
SETTINGS = (0, 50, 20)


class PageError(Exception):
    """The server did not answer as a page expects."""


class Page:
    """An open page of the demo, as the browser's side of gradio's protocol sees it.

    Parameters
    ----------
    url
        What ``cxu demo`` printed.
    """

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False)
        config = self.http.get("/config").raise_for_status().json()
        self.functions = {one["api_name"]: one["id"] for one in config["dependencies"]}
        self.session_hash = uuid.uuid4().hex[:12]

    def __enter__(self) -> Page:
        """Keep the page's connection open: the server forgets the page when it ends."""
        self._beat = self.http.stream("GET", f"{API}/heartbeat/{self.session_hash}")
        self._beat.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the page."""
        with contextlib.suppress(httpx.HTTPError):
            self._beat.__exit__(None, None, None)
        self.http.close()

    def upload(self, name: str, content: bytes) -> str:
        """Return where the server put a file."""
        answer = self.http.post(f"{API}/upload", files={"files": (name, content)})
        if answer.status_code != httpx.codes.OK:
            raise PageError(f"{answer.status_code} {answer.text}")
        return str(answer.json()[0])

    def open_film(self, name: str, content: bytes, settings: tuple[float, ...] = SETTINGS) -> list[Any]:
        """Upload a film; return the new content of the page: problem, picture, result, downloads."""
        file = {"path": self.upload(name, content), "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        return self.ask("open_film", [file, *settings])[1:]

    def ask(self, function: str, data: list[Any], event_data: Any = None) -> list[Any]:
        """Call a function of the page through the queue, and return its outputs."""
        body = {
            "data": data,
            "event_data": event_data,
            "fn_index": self.functions[function],
            "session_hash": self.session_hash,
        }
        joined = self.http.post(f"{API}/queue/join", json=body)
        if joined.status_code != httpx.codes.OK:
            raise PageError(f"{joined.status_code} {joined.text}")
        for message in self._messages():
            if message["msg"] == "process_completed" and message["event_id"] == joined.json()["event_id"]:
                if not message["success"]:
                    raise PageError(f"{function}: {message['output']}")
                return list(message["output"]["data"])
        raise PageError(f"{function}: the server ended the answer")

    def _messages(self) -> Iterator[dict[str, Any]]:
        path = f"{API}/queue/data"
        with self.http.stream("GET", path, params={"session_hash": self.session_hash}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])


def made_up_film(seed: int, size: int = 512) -> bytes:
    """Return a drawn chest as PNG."""
    from PIL import Image

    from cxu.phantom import synthetic_background
    from cxu.shape import load_shape_model, sample_shapes

    rng = np.random.default_rng(seed)
    landmarks = sample_shapes(load_shape_model(), 1, rng)[0]
    written = io.BytesIO()
    Image.fromarray(synthetic_background(landmarks, size, rng)).save(written, format="PNG")
    return written.getvalue()


def visit(url: str, film: bytes, name: str, rng: random.Random) -> list[float]:
    """Open a page, use it, close it; return how long each answer took."""
    waited = []
    with Page(url) as page:
        steps = [
            lambda: page.open_film(name, film),
            lambda: page.ask("cxu-noise", [rng.choice([5, 20, 60]), 50, 20]),
            lambda: page.ask("cxu-max-std", [0, 50, rng.choice([10, 24])]),
            lambda: page.ask("paint", [0, 50, 20], {"points": [[300, 300], [400, 500]], "radius": 40}),
            lambda: page.ask("clear", list(SETTINGS)),
        ]
        for step in steps:
            began = time.monotonic()
            shown = step()
            waited.append(time.monotonic() - began)
            if "<img" not in str(shown):
                raise PageError(f"no picture: {str(shown)[:200]}")
    return waited


def soak(url: str, clients: int, seconds: float, films: list[bytes]) -> tuple[list[float], list[str]]:
    """Let that many threads visit until the time is over; return waiting times and errors."""
    until = time.monotonic() + seconds
    waited: list[float] = []
    errors: list[str] = []

    def client(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < until:
            try:
                # two of three have a film of their own, the others share one
                film = films[number % len(films)]
                waited.extend(visit(url, film, f"film-{number}.png", rng))
            except (PageError, httpx.HTTPError) as error:
                errors.append(f"{type(error).__name__}: {error}"[:300])

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waited, errors


def watch(process: psutil.Process, ended: threading.Event, every: float, seen: list[float]) -> None:
    """Note the memory of a process, MB, now and then."""
    while not ended.wait(every):
        seen.append(process.memory_info().rss / 1e6)
        print(f"{len(seen) * every:5.0f} s  {seen[-1]:6.0f} MB  {process.num_fds()} open files", flush=True)


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between looks at the memory")
    arguments = parser.parse_args()
    films = [made_up_film(seed) for seed in range(max(1, 2 * arguments.clients // 3))]
    command = [sys.executable, "-m", "cxu", "demo", "--port", "0", "--no-browser", "--json"]
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stdout=said, text=True) as server:
        url = _address(said, server)
        ended, seen = threading.Event(), []
        watching = threading.Thread(target=watch, args=(psutil.Process(server.pid), ended, arguments.every, seen))
        watching.start()
        began = time.monotonic()
        waited, errors = soak(url, arguments.clients, 60 * arguments.minutes, films)
        ended.set()
        watching.join()
        server.terminate()
    seconds = time.monotonic() - began
    left = sorted(path.name for path in Path(tempfile.gettempdir()).glob(f"cxu-demo-{server.pid}-*"))
    print(f"{len(waited):,} answers in {seconds:.0f} s, {len(errors)} errors; left on disk: {left or 'nothing'}")
    for error in sorted(set(errors)):
        print(f"  {errors.count(error)} × {error}")
    if waited:
        median, most = np.quantile(waited, [0.5, 0.95])
        print(f"waiting: median {median:.2f} s, 95 % {most:.2f} s")
    if len(seen) >= 3:
        print(f"memory at the end over memory after the first third: {seen[-1] / seen[len(seen) // 3]:.2f} ×")


def _address(said: Any, server: subprocess.Popen[str]) -> str:
    while server.poll() is None:
        said.seek(0)
        with contextlib.suppress(ValueError):
            return str(json.loads(said.read())["url"])
        time.sleep(0.2)
    raise SystemExit("the demo did not start")


if __name__ == "__main__":
    main()
