"""``cxu demo``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cxu.cli._model import load_model, plain
from cxu.cli._options import JsonOption
from cxu.cli._output import Output

if TYPE_CHECKING:
    from cxu.demo.serve import Running

EXAMPLE = "cxu demo --port 8000 --max-mb 100"

KEPT = "What was uploaded is deleted."

_LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")


def command(
    host: Annotated[str, typer.Option("--host", help="Address to serve on; only this machine reaches the default.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Port; 0 takes any free one.", show_default="free, from 7860 on"),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Ask gradio's service for a public address; films then pass through it.")
    ] = False,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="bundled[:VARIANT]|PATH|HUB_ID",
            help="The network, as for cxu predict.",
        ),
    ] = "bundled",
    device: Annotated[
        str, typer.Option("--device", metavar="auto|cpu|cuda[:N]|mps", help="Where the network runs.")
    ] = "auto",
    max_mb: Annotated[float, typer.Option("--max-mb", help="Largest film that is accepted, MB.")] = 50.0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page in a browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Try the network in a browser: films, noise, occlusions, limits.

    Serves a page on this machine until Ctrl-C. Films are forgotten when their page is closed, and nothing is sent
    anywhere. Research and education only; not a medical device.
    """
    from cxu.demo.serve import ServeOptions, ending_on_signals, serving, wait
    from cxu.model.card import terms_of
    from cxu.model.device import find_device

    output = Output(as_json=as_json)
    options, chosen = ServeOptions(host, port, share, max_mb), find_device(device)
    loaded = load_model(output, weights)
    output.say(plain(terms_of(loaded)))
    with ending_on_signals(), serving(loaded, chosen, options) as running:
        _announce(output, running, options.host, share=share)
        if not no_browser:
            _open_browser(running.url)
        wait()


def _announce(output: Output, running: Running, host: str, *, share: bool) -> None:
    output.result({"url": running.url, "share_url": running.share_url}, running.url)
    sys.stdout.flush()
    if share and running.share_url is None:
        output.warn("gradio's service gave no public address: see to the network, or do without --share")
    elif running.share_url is not None:
        output.say(f"public, for everyone who knows it: {running.share_url}")
    if host not in _LOCAL:
        output.warn(f"whoever reaches {host} can use the demo: it has no password")
    output.say("Ctrl-C ends it")


def _open_browser(url: str) -> None:
    """Open the page where there is a screen: a browser for terminals would take this one."""
    import webbrowser

    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(url)
