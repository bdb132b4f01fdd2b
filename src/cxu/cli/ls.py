"""``cxu ls``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from cxu.cli._errors import SOME_FAILED
from cxu.cli._options import HomeOption, JsonOption
from cxu.cli._output import Output, age, size
from cxu.cli._tables import describe_thresholds, titled
from cxu.errors import CxuError

if TYPE_CHECKING:
    from cxu.store import Home, SourceListing, StoredTable

EXAMPLE = "cxu ls --json"


def command(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the sources, selections and predictions of a home."""
    from cxu.store import Home

    output, store = Output(as_json=as_json), Home(home)
    output.say(f"home {store.root}")
    damaged: list[str] = []
    content: dict[str, Any] = {
        "home": str(store.root),
        "sources": _described(lambda listing: _source(store, listing), _listings(store, damaged), damaged),
        "selections": _described(lambda name: _selection(name, store.open(name)), store.selections(), damaged),
        "predictions": _described(_predictions, store.predictions(), damaged),
        "damaged": damaged,
    }
    parts = _tables(content)
    output.result(content, *(parts or ["nothing here yet: start with cxu quickstart, cxu fetch or cxu import"]))
    output.list_items("these cannot be read:", damaged)
    if damaged:
        raise typer.Exit(SOME_FAILED)


def _listings(store: Home, damaged: list[str]) -> list[SourceListing]:
    """Return the sources that hold rows, and add what is wrong with the listings of others."""
    listings = _described(lambda place: store.listing(*place), store.places(), damaged)
    return [listing for listing in listings if listing.files]


def _described(describe: Callable[[Any], Any], entries: Sequence[Any], damaged: list[str]) -> list[Any]:
    """Return the descriptions of the entries that can be read, and add what is wrong with the others."""
    described = []
    for entry in entries:
        try:
            described.append(describe(entry))
        except CxuError as error:
            damaged.append(str(error))
    return described


def _source(store: Home, listing: SourceListing) -> dict[str, Any]:
    return {
        "source": listing.source,
        "frame": listing.frame,
        "rows": listing.rows,
        "files": [file.name for file in listing.files],
        "partial": listing.partial,
        "bytes": sum(path.stat().st_size for path in store.open_source(listing.source, listing.frame).paths),
    }


def _selection(name: str, stored: StoredTable) -> dict[str, Any]:
    return {
        "name": name,
        "rows": stored.rows,
        "thresholds": describe_thresholds(stored),
        "age_s": round(time.time() - stored.paths[0].stat().st_mtime),
        "partial": bool(stored.facts.get("partial")),
    }


def _predictions(path: Any) -> dict[str, Any]:
    from cxu.store import open_table

    return {"name": path.name, "rows": open_table(path).rows}


def _tables(content: dict[str, Any]) -> list[Any]:
    parts: list[Any] = []
    if content["sources"]:
        rows = [
            [
                entry["source"],
                entry["frame"],
                f"{entry['rows']:,}{' (partial)' if entry['partial'] else ''}",
                size(entry["bytes"]),
                ", ".join(entry["files"]),
            ]
            for entry in content["sources"]
        ]
        parts += titled("Sources", ["source", "frame", "rows", "size", "files"], rows, gap=False)
    if content["selections"]:
        rows = [
            [
                entry["name"],
                f"{entry['rows']:,}{' (partial)' if entry['partial'] else ''}",
                f"{age(entry['age_s'])} ago",
                entry["thresholds"],
            ]
            for entry in content["selections"]
        ]
        parts += titled("Selections", ["name", "rows", "made", "thresholds"], rows, gap=bool(parts))
    if content["predictions"]:
        parts += titled(
            "Predictions",
            ["name", "rows"],
            [[entry["name"], entry["rows"]] for entry in content["predictions"]],
            gap=bool(parts),
        )
    return parts
