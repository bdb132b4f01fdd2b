"""The demo's server: bound to one address, nothing sent elsewhere, nothing left on disk."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import torch

from cxu.demo.desk import Desk
from cxu.demo.folder import private_folder, remove_old
from cxu.demo.guard import MB, Guard, Rules
from cxu.errors import CxuError, MissingExtraError, UsageError
from cxu.model.weights import Weights

if TYPE_CHECKING:
    import gradio as gr
    import uvicorn

logger = logging.getLogger(__name__)

DEFAULT_HOST: Final = "127.0.0.1"
FIRST_PORT: Final = 7860
_PORTS_TRIED: Final = 100
_TIDY_SECONDS: Final = 15.0
_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 5.0
_PAGES_KEPT: Final = 64  # of which gradio remembers the last values
# Read by gradio and huggingface_hub while they are imported, or when a page is built.
_ENVIRONMENT: Final = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "100",
    "MPLBACKEND": "agg",  # gradio asks matplotlib, where it is installed, which else writes a cache of fonts
}
_NOT_OURS: Final = ("GRADIO_ALLOWED_PATHS", "GRADIO_ROOT_PATH", "GRADIO_WATCH_DIRS", "GRADIO_VIBE_MODE")


@dataclass(frozen=True)
class ServeOptions:
    """Where and how the demo is served.

    Attributes
    ----------
    host
        Address to bind; only this machine reaches the default.
    port
        None: the first free one from 7860 on. 0: any free one.
    share
        Ask gradio's service for a public address, through which anyone who knows it can use the demo.
    max_mb
        Largest film, in MB of 1024² bytes.
    """

    host: str = DEFAULT_HOST
    port: int | None = None
    share: bool = False
    max_mb: float = 50.0

    def __post_init__(self) -> None:
        if self.port is not None and not 0 <= self.port <= 65_535:
            raise UsageError(f"--port {self.port}: expected 0 to 65535")
        if not 0 < self.max_mb <= 10_000:
            raise UsageError(f"--max-mb {self.max_mb:g}: expected more than 0 and at most 10000")


@dataclass(frozen=True)
class Running:
    """A server that runs: its address, the public one where it was shared, and the folder of uploads."""

    url: str
    share_url: str | None
    folder: Path
    desk: Desk


@contextlib.contextmanager
def serving(weights: Weights, device: torch.device, options: ServeOptions) -> Iterator[Running]:
    """Serve the demo while the block runs.

    Raises
    ------
    MissingExtraError
        Without gradio.
    UsageError
        If the address is none of this machine, or the port is taken.
    """
    with contextlib.ExitStack() as held:
        bound = held.enter_context(_bound(options))
        folder = held.enter_context(private_folder())
        held.enter_context(_environment(folder))
        desk = Desk(weights, device, folder)
        rules = Rules.of(options.host, round(options.max_mb * MB), folder)
        page = _page(desk)
        held.enter_context(_running(_server(_application(page, rules)), bound))
        held.enter_context(_tidying(desk, page))
        port = bound.getsockname()[1]
        share_url = held.enter_context(_shared(options.host, port, rules, folder)) if options.share else None
        yield Running(_address(options.host, port), share_url, folder, desk)


def wait() -> None:
    """Wait until a signal ends the process."""
    while True:
        time.sleep(1)


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let a request to end, or a terminal that is closed, unwind the block as Ctrl-C does; only in the main thread."""

    def end(number: int, frame: Any) -> None:
        del frame
        raise SystemExit(128 + number)

    wanted = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _bound(options: ServeOptions) -> Iterator[socket.socket]:
    """Give a listening socket: bound here, so that the port cannot be lost between a test and its use."""
    host = options.host.strip("[]")
    ports = range(FIRST_PORT, FIRST_PORT + _PORTS_TRIED) if options.port is None else [options.port]
    try:
        family, *_, place = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {options.host}: {error}; expected an address of this machine") from None
    made = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.closing(made):
        if os.name == "posix":  # elsewhere it would let two servers share a port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        problem: OSError | None = None
        for port in ports:
            try:
                made.bind((place[0], port, *place[2:]))
                made.listen()
            except OSError as error:
                problem = error
                continue
            yield made
            return
    tried = f"--port {options.port}" if options.port is not None else f"ports {ports[0]} to {ports[-1]}"
    raise UsageError(f"{options.host}, {tried}: {problem}; choose another --port or --host")


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Set what keeps gradio from the network and its files in the folder; put all back afterwards."""
    wanted = {**_ENVIRONMENT, "GRADIO_TEMP_DIR": str(folder)}
    before = {name: os.environ.get(name) for name in (*wanted, *_NOT_OURS)}
    for name in _NOT_OURS:
        os.environ.pop(name, None)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _page(desk: Desk) -> gr.Blocks:
    try:
        import gradio  # noqa: F401, PLC0415 - after the environment is set
    except ImportError:
        raise MissingExtraError("cxu demo needs gradio: pip install 'cxu[demo]'") from None
    from cxu.demo.page import build_page  # noqa: PLC0415 - imports gradio

    return build_page(desk)


def _application(page: gr.Blocks, rules: Rules) -> Guard:
    """Return the page as an ASGI application behind its guard."""
    import gradio as gr  # noqa: PLC0415
    from fastapi import FastAPI  # noqa: PLC0415 - gradio brings it

    from cxu.demo.page import style, theme  # noqa: PLC0415

    mounted = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        footer_links=[],
        max_file_size=rules.max_bytes,
        show_error=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=style(),
    )
    page.state_session_capacity = page.state_holder.capacity = _PAGES_KEPT
    # as launch() sets them: before, gradio takes files from anywhere, and keeps no connection alive
    page.has_launched = page.is_running = True
    return Guard(mounted, rules)


def _server(application: Guard) -> uvicorn.Server:
    import uvicorn  # noqa: PLC0415 - gradio brings it

    config = uvicorn.Config(
        application,
        log_level="warning",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=1,  # pages keep a connection open
    )
    return uvicorn.Server(config)


@contextlib.contextmanager
def _running(server: uvicorn.Server, bound: socket.socket) -> Iterator[None]:
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="cxu-demo", daemon=True)
    thread.start()
    until = time.monotonic() + _START_SECONDS
    try:
        while not server.started:
            if not thread.is_alive() or time.monotonic() > until:
                raise CxuError(
                    f"the server of the demo did not start within {_START_SECONDS:.0f} s; try another --port"
                )
            time.sleep(0.02)
        yield
    finally:
        # pages that are still open are cut off: uvicorn calls that an error
        log = logging.getLogger("uvicorn.error")
        level = log.level
        log.setLevel(logging.CRITICAL)
        server.should_exit = True
        thread.join(_END_SECONDS)
        log.setLevel(level)


@contextlib.contextmanager
def _tidying(desk: Desk, page: gr.Blocks) -> Iterator[None]:
    """Remove old uploads and forget idle pages, now and then."""
    ended = threading.Event()

    def tidy() -> None:
        while not ended.wait(_TIDY_SECONDS):
            remove_old(desk.folder)
            desk.sessions.expire()
            for names in page.temp_file_sets:  # of files that gradio would remove at its end
                names.clear()

    thread = threading.Thread(target=tidy, name="cxu-demo-tidy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_END_SECONDS)


@contextlib.contextmanager
def _shared(host: str, port: int, rules: Rules, folder: Path) -> Iterator[str | None]:
    """Give a public address of gradio's service, None where there is none to be had."""
    from gradio import networking, tunneling  # noqa: PLC0415

    # else the service's certificate would be left in the working folder
    networking.CERTIFICATE_PATH = str(folder / "certificate.pem")  # type: ignore[attr-defined]
    try:
        url = networking.setup_tunnel(_reachable(host), port, secrets.token_urlsafe(32), None, None)
    except Exception:
        logger.warning("gradio's service gave no public address", exc_info=os.environ.get("CXU_DEBUG") == "1")
        yield None
        return
    rules.names.add(str(urlsplit(url).hostname))
    try:
        yield url
    finally:
        for tunnel in tunneling.CURRENT_TUNNELS:
            tunnel.kill()  # type: ignore[no-untyped-call]


def _reachable(host: str) -> str:
    """Return a host at which this machine reaches a server that is bound to ``host``."""
    bare = host.strip("[]")
    return {"0.0.0.0": DEFAULT_HOST, "::": "::1"}.get(bare, bare)  # noqa: S104 - nothing is bound here


def _address(host: str, port: int) -> str:
    """Return what to open in a browser.

    Examples
    --------
    >>> _address("0.0.0.0", 80), _address("::1", 80)
    ('http://127.0.0.1:80/', 'http://[::1]:80/')
    """
    shown = _reachable(host)
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"
