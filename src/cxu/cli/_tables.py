"""What several commands say of a table before they read it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from cxu.cli._output import Output, age, make_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cxu.store import Home, StoredTable


def announce(output: Output, home: Home, stored: StoredTable) -> None:
    """Say which home and which table a command reads: its age, thresholds and rows."""
    parts = [f"{stored.rows:,} rows"]
    if stored.paths:
        changed = max(path.stat().st_mtime for path in stored.paths)
        parts.append(f"made {age(time.time() - changed)} ago")
    thresholds = describe_thresholds(stored)
    if thresholds:
        parts.append(thresholds)
    if stored.facts.get("partial"):
        parts.append("partial: of a source fetched with --limit-rows")
    output.say(f"home {home.root} · {stored.kind} {stored.name}: {', '.join(parts)}")


def has_limits(stored: StoredTable) -> bool:
    """Tell whether a table was filtered by a limit of uncertainty: else every node counts as confident."""
    return "max_std" in describe_thresholds(stored)


def warn_of_no_limit(output: Output, policy: str) -> None:
    """Say that a policy which asks for confident nodes takes all."""
    output.warn(
        f"no limit of uncertainty was set, so every node counts as confident and --policy {policy} draws what full "
        "does: choose one with cxu filter --max-std"
    )


def warn_of_assumed(output: Output, rows: int) -> None:
    """Say of how many rows the position in their image is assumed; nothing where it is of none."""
    if rows:
        output.warn(
            f"{rows:,} rows are of a source that does not say how its images became the model frame: "
            "taken as padded to a centred square, not cropped"
        )


def describe_thresholds(stored: StoredTable, *, conditions: bool = True) -> str:
    """Return the thresholds of a selection and those it builds on, percentiles with the px that they came to.

    With ``conditions`` also what ``--where`` asked.
    """
    if not stored.facts.get("thresholds"):
        return ""
    return ", ".join(dict.fromkeys(_threshold_parts(stored.facts, conditions))) or "no thresholds"


def _threshold_parts(made: Mapping[str, Any], conditions: bool) -> list[str]:
    facts, parts = made.get("thresholds") or {}, []
    if facts.get("max_std"):
        pixels = " of the image" if facts.get("unit") == "image" else ""
        parts.append(f"max_std {describe_limits(facts['max_std'])}{_resolved(made)}{pixels}")
    if facts.get("max_radius90"):
        limits = {organ: f"{limit:g} px" for organ, limit in facts["max_radius90"].items()}
        parts.append(f"max_radius90 {describe_limits(limits)}")
    if facts.get("quality", "review") != "review":
        parts.append(f"quality {facts['quality']}")
    names = ("min_rca", "min_rca_max", "max_mean_std")
    parts += [f"{name} {facts[name]:g}" for name in names if facts.get(name) is not None]
    parts += made.get("where", []) if conditions else []
    earlier = [part for one in made.get("inputs", []) for part in _threshold_parts(one, conditions)]
    return [*parts, *earlier]


def describe_limits(limits: Mapping[str, str]) -> str:
    """Return the limits by organ in the way that ``--max-std`` is written.

    Examples
    --------
    >>> describe_limits({"right_lung": "5 px", "left_lung": "5 px", "heart": "p80"})
    'lungs=5 px,heart=p80'
    """
    texts = dict(limits)
    if "right_lung" in texts and texts.get("left_lung") == texts["right_lung"]:
        texts = {"lungs": texts.pop("right_lung"), **{name: text for name, text in texts.items() if name == "heart"}}
    if len(texts) == 2 and texts.get("lungs") == texts.get("heart"):
        return texts["heart"]
    return ",".join(f"{name}={text}" for name, text in texts.items())


def _resolved(facts: Mapping[str, Any]) -> str:
    """Return the px that percentiles came to; nothing where there is none."""
    wanted = [organ for organ, text in facts["thresholds"]["max_std"].items() if text.startswith("p")]
    limits = (group["px"].get(organ) for group in facts.get("limits_px", []) for organ in wanted)
    found = sorted({f"{limit:.2f}" for limit in limits if limit is not None}, key=float)
    return f" ({' to '.join(dict.fromkeys((found[0], found[-1])))} px)" if found else ""


def titled(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, gap: bool = True
) -> list[RenderableType]:
    """Return a table under its title, which may be wider than the table, with an empty line before it."""
    return [Text(f"\n{title}" if gap else title, style="bold"), make_table("", columns, rows)]
