"""What may go wrong between a user and the Hub: ``cxu fetch`` against a server on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from builders import published_csv, published_row
from hub_server import HubServer
from reliability.case import Case

TITLE: Final = "Faults of the Hub and the network"
INTRO: Final = (
    "`cxu fetch mimic` against a server on the same machine that fails as told. Where it fails for good, no row "
    "is there afterwards, and the same command fetches all of them once the server is well again."
)
REPO: Final = "mcosarinsky/CheXmask-U"
FILE: Final = "Preprocessed/MIMIC-CXR-JPG.csv"
N_ROWS: Final = 12
CSV: Final = published_csv(
    [published_row(f"{index:08x}") for index in range(N_ROWS)], rename={"Image Index": "dicom_id"}
).encode()
HTML: Final = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@dataclass(frozen=True, kw_only=True)
class HubCase(Case):
    """A fault; ``make`` tells a server of it, and ``exit_code`` 0 says that it passes."""

    exit_code: int = 1

    @property
    def happens(self) -> str:
        """What comes of it, for the table."""
        if not self.exit_code:
            return "all rows fetched" + (f": “…{self.says}…”" if self.says else "")
        return f"nothing imported (exit {self.exit_code}): “…{self.says}…”"


def _case(name: str, says: str, *faults: dict[str, Any], exit_code: int = 1, path: str | None = FILE) -> HubCase:
    """Return the case of a server that fails so when asked for the file, or for anything where ``path`` is None."""

    def make(server: HubServer) -> None:
        for fault in faults:
            there = {name: value(server) if callable(value) else value for name, value in fault.items()}
            server.fail(path, **{"times": None, **there})

    return HubCase(name=name, says=says, make=make, exit_code=exit_code)


def _moved(where: Callable[[HubServer], str]) -> dict[str, Any]:
    """Return the fault of a file that has moved."""
    return {
        "status": 302,
        "stage": "resolve",
        "methods": ("GET", "HEAD"),
        "headers": lambda server: {"Location": where(server)},
    }


def _other_file(server: HubServer) -> str:
    server.add("ann/other", {"other.csv": CSV.replace(b"0.8", b"0.7")})
    (entries,) = server.repos["dataset", "ann/other"].commits.values()
    return f"{server.storage}/storage/{entries['other.csv'].sha256}"


_NO_LISTING: Final = "with something that is no file listing"

CASES: Final = (
    # that pass
    _case("an answer of 500 twice, then well", "try 3 of 5 in 2 s", {"status": 500, "times": 2}, exit_code=0),
    _case("503 to the listing, then well", "HTTP status 503", {"status": 503, "times": 1}, exit_code=0, path=None),
    _case(
        "429 with Retry-After of 7 s, then well",
        "try 2 of 5 in 7 s",
        {"status": 429, "headers": {"Retry-After": "7"}, "times": 1},
        exit_code=0,
    ),
    _case(
        "429 with a Retry-After that is no time",
        "HTTP status 429",
        {"status": 429, "headers": {"Retry-After": "soon"}, "times": 1},
        exit_code=0,
    ),
    _case(
        "the connection cut in the middle, three times",
        "the connection broke after",
        {"drop_after": 20_000, "times": 3},
        exit_code=0,
    ),
    _case(
        "the rest of a file refused after a cut",
        "the server's copy is shorter than its listing says",
        {"drop_after": 20_000, "times": 1},
        {"status": 416, "times": 1},
        exit_code=1,
    ),
    _case("no answer for longer than we wait, then well", "try 2 of 5", {"stall_s": 1.5, "times": 1}, exit_code=0),
    # that do not
    _case("500 for good", "keeps failing", {"status": 500}),
    _case(
        "429 that asks for an hour", "asks for a pause of 3600 s", {"status": 429, "headers": {"Retry-After": "3600"}}
    ),
    _case("401: no token, or a wrong one", "refuses access to file", {"status": 401}),
    _case("403: a gated repository", "accept the terms at", {"status": 403}),
    _case("404: the file is gone", "there is no file", {"status": 404}),
    _case("451 and anything else", "HTTP status 451", {"status": 451}),
    _case("the file ends too early, every time", "is truncated", {"stop_at": 3000}),
    _case("a byte of the file changed: another hash", "is damaged", {"alter": True, "stage": "storage"}),
    _case(
        "a page of HTML in place of the file", "is truncated: 54 of", {"status": 200, "body": HTML, "stage": "storage"}
    ),
    _case("the body of another file, of the same length", "is damaged", _moved(_other_file)),
    _case(
        "a redirect to itself, without end",
        "TooManyRedirects",
        _moved(lambda server: f"{server.endpoint}/datasets/{REPO}/resolve/main/{FILE}"),
    ),
    _case("a redirect to a machine that does not answer", "cannot reach", _moved(lambda _: "http://127.0.0.1:9/file")),
    _case("a redirect to file:///etc/passwd", "UnsupportedProtocol", _moved(lambda _: "file:///etc/passwd")),
    # listings
    _case("a listing that is a page of HTML", _NO_LISTING, {"status": 200, "body": HTML}, path=None),
    _case("a listing cut off in the middle", _NO_LISTING, {"status": 200, "body": b'{"sha": "00'}, path=None),
    _case("a listing that is a list of numbers", _NO_LISTING, {"status": 200, "body": b"[1, 2, 3]"}, path=None),
    _case("a listing nested 100,000 deep", _NO_LISTING, {"status": 200, "body": b"[" * 100_000}, path=None),
    _case("a commit that is a path", _NO_LISTING, {"status": 200, "body": b'{"sha": "../../../x"}'}, path=None),
    HubCase(
        name="a listing with paths that leave the folder",
        make=lambda server: server.add(REPO, {"Preprocessed/../../../../x/MIMIC-CXR-JPG.csv": CSV}),
        says=_NO_LISTING,
    ),
    HubCase(
        name="a listing with an absolute path",
        make=lambda server: server.add(REPO, {"/tmp/Preprocessed/MIMIC-CXR-JPG.csv": CSV}),
        says=_NO_LISTING,
    ),
)
