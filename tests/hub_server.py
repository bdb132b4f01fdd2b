"""A loopback server that speaks the Hugging Face Hub's protocol, and fails in the ways one tells it to.

In a test::

    with HubServer() as server:
        commit = server.add("ann/chest", {"OriginalResolution/mimic.csv": b"...", "README.md": b"# hi"})
        server.lead_here(monkeypatch, tmp_path)  # HF_ENDPOINT, HF_HOME and the like; a subprocess inherits them
        server.fail("mimic.csv", status=503, times=2)  # the first two requests for it
        server.fail("mimic.csv", drop_after=1000)  # the third breaks off after 1,000 bytes of body
        ...
        assert server.bytes_sent("mimic.csv") == size

As a process of its own, for tests that kill the client or need a rate::

    python tests/hub_server.py --root DIR --repo ann/chest --port-file F [--rate BYTES_PER_S]

What it serves, as the real Hub does:

- ``/api/{datasets,models}/{repo}[/revision/{rev}]``: commit, and the files as siblings;
- ``/api/.../tree/{rev}[/{folder}]?recursive&expand&limit&cursor``: pages of ``page_size`` entries, ``Link`` header;
- ``/api/.../paths-info/{rev}`` (POST);
- ``[/datasets]/{repo}/resolve/{rev}/{path}`` (HEAD, GET, ranges): small files directly; files in large-file storage
  (by suffix, see ``LFS_SUFFIXES``) as a redirect with ``X-Linked-Etag`` and ``X-Linked-Size`` to a second port,
  another host as far as a client's credentials are concerned;
- ``/storage/{sha256}`` on that second port, likewise with ranges.

Errors carry the Hub's ``X-Error-Code``. ``server.requests`` records every request. Everything is safe between threads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

LFS_SUFFIXES = (".csv", ".gz", ".zip", ".parquet", ".npz", ".bin", ".pt", ".safetensors")
ERROR_CODES = {403: "GatedRepo"}
BLOCK = 64 * 1024


@dataclass(frozen=True)
class Entry:
    """A file as the server holds it."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def git_oid(self) -> str:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        blob = pointer.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid

    def describe(self, path: str, expand: bool) -> dict[str, Any]:
        """Return the file's entry in a tree listing."""
        entry: dict[str, Any] = {"type": "file", "oid": self.git_oid, "size": len(self.content), "path": path}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        if expand:
            entry["lastCommit"] = {"id": "0" * 40, "title": "Add files", "date": "2025-01-01T00:00:00.000Z"}
        return entry


@dataclass
class Repo:
    """A repository: what its branches point to, and the files of each commit."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)

    def commit_of(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What goes wrong with matching requests; see `HubServer.fail`."""

    path: str | None
    times: int | None
    stage: str | None
    methods: tuple[str, ...]
    status: int | None
    headers: dict[str, str]
    drop_after: int | None
    stop_at: int | None
    alter: bool
    body: bytes
    stall_s: float


@dataclass(frozen=True)
class Request:
    """A request as it came; stage is ``api``, ``resolve`` or ``storage``, ``path`` the file's path or empty."""

    method: str
    stage: str
    url: str
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str:
        return self.headers.get("range", "")

    @property
    def authorization(self) -> str:
        return self.headers.get("authorization", "")


class HubServer:
    """The server; a context manager that listens on two free loopback ports while it is entered.

    Parameters
    ----------
    page_size
        Entries on a page of a tree listing; more are on a next page.
    token
        If given, every request but those to the storage must carry it, otherwise 401.
    rate
        Bytes per second of a response body, or None for no limit. May be set at any time.
    ranges
        Whether ranges are served; otherwise a request for one gets the whole file. May be set at any time.
    port
        Port of the Hub itself; 0 takes a free one.
    """

    def __init__(
        self,
        *,
        page_size: int = 1000,
        token: str | None = None,
        rate: float | None = None,
        ranges: bool = True,
        port: int = 0,
    ) -> None:
        self.page_size, self.token, self.rate, self.ranges = page_size, token, rate, ranges
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._sent: dict[str, int] = {}
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._hub, self._storage = _Listener(("127.0.0.1", port), handler), _Listener(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._hub.server_address[1]}"
        self.storage = f"http://127.0.0.1:{self._storage.server_address[1]}"

    def __enter__(self) -> HubServer:
        for listener in (self._hub, self._storage):
            threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for listener in (self._hub, self._storage):
            listener.shutdown()
            listener.server_close()

    # What it serves

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes] | Path | str,
        *,
        repo_type: str = "dataset",
        revision: str = "main",
    ) -> str:
        """Commit ``files`` (path to content, or a folder) to a branch or tag of ``repo`` and return the commit."""
        if not isinstance(files, Mapping):
            root = Path(files)
            files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        entries = {path: Entry(bytes(files[path]), path.endswith(LFS_SUFFIXES)) for path in sorted(files)}
        listed = "".join(f"{path} {entry.git_oid}\n" for path, entry in entries.items())
        commit = hashlib.sha1(f"{repo}\n{listed}".encode()).hexdigest()
        with self._lock:
            held = self.repos.setdefault((repo_type, repo), Repo())
            held.commits[commit] = entries
            held.branches[revision] = commit
        return commit

    def environment(self, home: Path | str) -> dict[str, str]:
        """Return the environment that leads a client here, with its cache, token and state inside ``home``."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_TOKEN_PATH": str(Path(home) / "token"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    def lead_here(self, monkeypatch: Any, home: Path | str) -> None:
        """Lead this process's huggingface_hub here, for as long as pytest's ``monkeypatch`` lasts."""
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_CACHE", "NO_COLOR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in self.environment(home).items():
            monkeypatch.setenv(name, value)
        # read once, when huggingface_hub is imported
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(Path(home) / "token"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    # What goes wrong

    def fail(
        self,
        path: str | None = None,
        *,
        times: int | None = 1,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        drop_after: int | None = None,
        stop_at: int | None = None,
        alter: bool = False,
        body: bytes = b'{"error":"refused"}',
        stall_s: float = 0,
        stage: str | None = None,
        methods: tuple[str, ...] = ("GET",),
    ) -> None:
        """Let matching requests fail; faults wait in line, and each spends itself before the next one begins.

        Parameters
        ----------
        path
            End of the file's path, or None for every request, those for listings included.
        times
            How many requests fail; None for all from now on.
        status, headers, body
            Answer with this status, these headers besides, and this body.
        drop_after
            Announce the whole body, but close the connection after so many bytes of it.
        stop_at
            Likewise, but at this byte of the file: nothing beyond ever arrives, wherever a range begins.
        stall_s
            Wait so long before anything is answered.
        alter
            Send a body of the right length with its first byte changed.
        stage
            ``"api"`` (listings), ``"resolve"`` (before the redirect) or ``"storage"`` (behind it); None takes the
            stage where the fault can act: bodies where they are sent, a status wherever the request comes first.
        methods
            The methods that fail.
        """
        fault = Fault(
            path, times, stage, methods, status, dict(headers or {}), drop_after, stop_at, alter, body, stall_s
        )
        with self._lock:
            self._faults.append(fault)

    def heal(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._faults.clear()

    # What happened

    def bytes_sent(self, path: str) -> int:
        """Return how many bytes of bodies of files whose path ends in ``path`` were handed to the system."""
        with self._lock:
            return sum(count for name, count in self._sent.items() if name.endswith(path))

    def seen(self, path: str = "", *, stage: str | None = None, method: str | None = None) -> list[Request]:
        """Return the requests so far for files whose path ends in ``path``."""
        with self._lock:
            return [
                r
                for r in self.requests
                if r.path.endswith(path) and stage in {None, r.stage} and method in {None, r.method}
            ]

    # For the handlers

    def _record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def _count(self, path: str, sent: int) -> None:
        with self._lock:
            self._sent[path] = self._sent.get(path, 0) + sent

    def _take_fault(self, method: str, stage: str, path: str, sends_body: bool) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                acts = fault.status is not None or sends_body or fault.stall_s
                matches = fault.path is None or (bool(path) and path.endswith(fault.path))
                if acts and matches and method in fault.methods and fault.stage in {None, stage}:
                    if fault.times is not None:
                        fault.times -= 1
                        if fault.times == 0:
                            self._faults.remove(fault)
                    return fault
        return None

    def _entry_by_hash(self, sha256: str) -> tuple[str, Entry] | None:
        with self._lock:
            for repo in self.repos.values():
                for entries in repo.commits.values():
                    for path, entry in entries.items():
                        if entry.lfs and entry.sha256 == sha256:
                            return path, entry
        return None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that leaves early is what tests are about
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    _api = re.compile(r"/api/(dataset|model)s/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?$")
    _resolve = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
    _storage = re.compile(r"/storage/([0-9a-f]{64})$")

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query, keep_blank_values=True)
        self.posted = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server is self.hub._storage:
            match = self._storage.match(parts.path)
            found = self.hub._entry_by_hash(match[1]) if match else None
            self._begin("storage", found[0] if found else "", found is not None)
            if found is None:
                return self._refuse(404)
            return self._send_file(*found, {"ETag": f'"{found[1].sha256}"'})
        if match := self._resolve.match(parts.path):
            return self._answer_resolve(*match.groups())
        self._begin("api", "", False)
        if match := self._api.match(parts.path):
            return self._answer_api(*match.groups())
        return self._refuse(404)

    def _begin(self, stage: str, path: str, sends_body: bool) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub._record(Request(self.command, stage, self.path, path, headers))
        self.fault = self.hub._take_fault(self.command, stage, path, sends_body)
        if self.fault is not None:
            time.sleep(self.fault.stall_s)

    # Answers

    def _answer_api(self, repo_type: str, name: str, what: str | None, revision: str | None, below: str | None) -> None:
        repo, commit = self._find(repo_type, name, revision or "main")
        if repo is None or commit is None:
            return None
        entries = repo.commits[commit]
        if what in {None, "revision"}:
            return self._send_json(self._info(name, commit, entries))
        described = _tree(entries, below or "", self._flag("expand"), self._flag("recursive") or what == "paths-info")
        if what == "paths-info":
            wanted = set(parse_qs(self.posted.decode()).get("paths", []))
            return self._send_json([entry for entry in described if entry["path"] in wanted])
        size = min(self.hub.page_size, int(self.query.get("limit", [self.hub.page_size])[0]))
        first = int(self.query.get("cursor", ["0"])[0])
        links = {}
        if first + size < len(described):
            query = urlencode({**{k: v[0] for k, v in self.query.items()}, "cursor": first + size})
            links["Link"] = f'<{self.hub.endpoint}{urlsplit(self.path).path}?{query}>; rel="next"'
        return self._send_json(described[first : first + size], links)

    def _answer_resolve(self, datasets: str | None, name: str, revision: str, path: str) -> None:
        path, repo_type = unquote(path), "dataset" if datasets else "model"
        held = self.hub.repos.get((repo_type, name))
        known = held and held.commits.get(held.commit_of(unquote(revision)) or "", {}).get(path)
        self._begin("resolve", path, bool(known) and not known.lfs)
        repo, commit = self._find(repo_type, name, revision)
        if repo is None or commit is None:
            return None
        headers = {"X-Repo-Commit": commit}
        if (entry := repo.commits[commit].get(path)) is None:
            return self._refuse(404, "EntryNotFound", headers)
        if not entry.lfs:
            return self._send_file(path, entry, headers | {"ETag": f'"{entry.etag}"'})
        headers |= {"X-Linked-Etag": f'"{entry.etag}"', "X-Linked-Size": str(len(entry.content))}
        return self._send(302, b"", headers | {"Location": f"{self.hub.storage}/storage/{entry.sha256}"})

    def _find(self, repo_type: str, name: str, revision: str) -> tuple[Repo | None, str | None]:
        """Return the repository and the commit, or answer with the refusal that the real Hub would give."""
        if self.fault is not None and self.fault.status is not None:
            self._refuse(self.fault.status, ERROR_CODES.get(self.fault.status), self.fault.headers)
            return None, None
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._refuse(401, None, {"X-Error-Message": "Invalid username or password."})
            return None, None
        repo = self.hub.repos.get((repo_type, name))
        commit = repo.commit_of(unquote(revision)) if repo else None
        if repo is None:
            self._refuse(404, "RepoNotFound")
        elif commit is None:
            self._refuse(404, "RevisionNotFound")
        return repo, commit

    def _info(self, name: str, commit: str, entries: dict[str, Entry]) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in entries]
        if self._flag("blobs"):
            for sibling, entry in zip(siblings, entries.values(), strict=True):
                sibling |= {"blobId": entry.git_oid, "size": len(entry.content)}
                if entry.lfs:
                    sibling["lfs"] = {"sha256": entry.sha256, "size": len(entry.content), "pointerSize": 130}
        return {
            "_id": "0" * 24,
            "id": name,
            "author": name.partition("/")[0],
            "sha": commit,
            "lastModified": "2025-01-01T00:00:00.000Z",
            "createdAt": "2025-01-01T00:00:00.000Z",
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }

    def _flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in {"true", "1", ""}

    def _send_json(self, value: object, headers: Mapping[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _refuse(self, status: int, code: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        codes = {"X-Error-Code": code} if code else {}
        body = b'{"error":"refused"}' if self.fault is None else self.fault.body
        self._send(status, body, {**codes, "Content-Type": "application/json", **(headers or {})})

    def _send_file(self, path: str, entry: Entry, headers: Mapping[str, str]) -> None:
        fault, size = self.fault, len(entry.content)
        if fault is not None and fault.status is not None:
            return self._refuse(fault.status, ERROR_CODES.get(fault.status), fault.headers)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "") if self.hub.ranges else "")
        first, last = (int(asked[1]), min(int(asked[2] or size), size - 1)) if asked else (0, size - 1)
        if first >= size > 0:
            return self._refuse(416, None, {"Content-Range": f"bytes */{size}"})
        body = entry.content[first : last + 1]
        if fault is not None and fault.alter:
            body = bytes([body[0] ^ 1]) + body[1:]
        ends = [len(body)]
        if fault is not None and fault.drop_after is not None:
            ends.append(fault.drop_after)
        if fault is not None and fault.stop_at is not None:
            ends.append(max(0, fault.stop_at - first))
        partial = {"Content-Range": f"bytes {first}-{last}/{size}"} if asked else {}
        all_headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers, **partial}
        return self._send(206 if partial else 200, body, all_headers, path, min(ends))

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], path: str = "", until: int | None = None
    ) -> None:
        """Send ``body``, announced in full, but only ``until`` there; then close, if that is not its end."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        until = len(body) if until is None else until
        position = 0
        while position < until:
            block = body[position : min(position + self._block(), until)]
            if path:  # before the write: a client that has read the last byte may ask for the count at once
                self.hub._count(path, len(block))
            self.wfile.write(block)
            position += len(block)
            if path and self.hub.rate:
                time.sleep(len(block) / self.hub.rate)
        if until < len(body):
            self.close_connection = True

    def _block(self) -> int:
        return max(1, min(BLOCK, int(self.hub.rate / 20))) if self.hub.rate else BLOCK


def _tree(entries: dict[str, Entry], below: str, expand: bool, recursive: bool) -> list[dict[str, Any]]:
    """Return what lies in the folder ``below``: files and folders, as a listing has them."""
    prefix = f"{unquote(below).strip('/')}/" if below else ""
    folders, files = set(), []
    for path, entry in entries.items():
        if not path.startswith(prefix):
            continue
        inner = path[len(prefix) :].split("/")[:-1]
        depths = range(1, len(inner) + 1) if recursive else range(1, min(1, len(inner)) + 1)
        folders |= {prefix + "/".join(inner[:depth]) for depth in depths}
        if recursive or not inner:
            files.append(entry.describe(path, expand))
    described = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)]
    return described + files


def main() -> None:
    """Serve a folder until told to stop; the port file appears when the server is ready."""
    parser = argparse.ArgumentParser(description="Serve a folder as a repository of the Hugging Face Hub.")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the files")
    parser.add_argument("--repo", required=True, help="OWNER/NAME")
    parser.add_argument("--repo-type", default="dataset", choices=("dataset", "model"))
    parser.add_argument("--revision", default="main")
    parser.add_argument("--port-file", type=Path, required=True, help="written with the endpoint's port")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rate", type=float, help="bytes per second of a body")
    parser.add_argument("--token", help="refuse requests without it")
    arguments = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with HubServer(rate=arguments.rate, token=arguments.token, port=arguments.port) as server:
        server.add(arguments.repo, arguments.root, repo_type=arguments.repo_type, revision=arguments.revision)
        unfinished = arguments.port_file.with_suffix(".tmp")
        unfinished.write_text(str(urlsplit(server.endpoint).port))
        unfinished.replace(arguments.port_file)
        stop.wait()


if __name__ == "__main__":
    main()
