"""How numbers, organs, limits and reasons are written in a report. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final, get_args

from cxu.anatomy import ORGAN_NAMES, ORGANS, OrganName
from cxu.catalog import SOURCES, FrameName
from cxu.errors import UsageError
from cxu.frame import MODEL_SIZE
from cxu.labels import parse_condition
from cxu.model.reference import reference_of
from cxu.table import PUBLISHED_MODEL

LAST_STEPS: Final = ("max_std", "max_radius90", "max_std or max_radius90", "organ")
# the gate and the scale are asked of everyone: told where they left something out
UNASKED: Final = ("impossible", "scale_unknown", "radius_scale_unknown", "quality", "nothing asked")
UNCERTAINTY: Final = ("max_std", "max_mean_std", "max_radius90")
_WHERE: Final = "where "
_COMPARED: Final = {"=": "", "<": "below ", "<=": "at most ", ">": "above ", ">=": "at least "}
_HASH: Final = 12  # hexadecimal digits of a hash that people compare


def number(count: int) -> str:
    """Return a count with separators."""
    return f"{count:,}"


def radiographs(count: int) -> str:
    """Return a number of radiographs."""
    return f"{number(count)} radiograph{'s' * (count != 1)}"


def percent(part: float, whole: float = 1.0) -> str:
    """Return a share as a percentage; a dash where there is nothing to take it of."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def listed(items: Iterable[str], last: str = "and") -> str:
    """Return items as people list them.

    Examples
    --------
    >>> listed(["a", "b", "c"]), listed(["a"])
    ('a, b and c', 'a')
    """
    *most, end = [*items] or [""]
    return f"{', '.join(most)} {last} {end}" if most else end


def ordinal(value: str) -> str:
    """Return a number as an ordinal.

    Examples
    --------
    >>> [ordinal(value) for value in ("80", "81", "92", "11", "99.5")]
    ['80th', '81st', '92nd', '11th', '99.5th']
    """
    is_plain = value.isdigit() and value[-2:] not in ("11", "12", "13")
    return value + ({"1": "st", "2": "nd", "3": "rd"}.get(value[-1], "th") if is_plain else "th")


def short_hash(digest: str) -> str:
    """Return the beginning of a hash; what is shorter stays as it is."""
    return digest[:_HASH]


def title_of(source: str) -> str:
    """Return the name of a source as its owners write it; of one's own as it is."""
    return SOURCES[source].title if source in SOURCES else source


def model_title(model_id: str) -> str:
    """Return what a model is called."""
    if model_id == PUBLISHED_MODEL:
        return "the published model"
    shipped = " that ship with cxu" if reference_of(model_id) else ""
    return f"weights{shipped} (SHA-256 {short_hash(model_id)})"


def source_and_frame(name: str) -> tuple[str, FrameName] | None:
    """Return source and frame where a table's name is a source's, such as ``mimic/model``."""
    source, _, frame = name.rpartition("/")
    return next(((source, known) for known in get_args(FrameName) if source and known == frame), None)


def table_words(name: str) -> str:
    """Return the name of a table: of a source with its frame, of a file without its folder.

    Examples
    --------
    >>> table_words("mimic/model"), table_words("strict"), table_words("runs/a.parquet")
    ('MIMIC-CXR-JPG (model frame)', 'strict', 'a.parquet')
    """
    found = source_and_frame(name)
    return f"{title_of(found[0])} ({found[1]} frame)" if found else PurePath(name).name or name


def organ_words(names: Sequence[str], last: str = "and") -> str:
    """Return organs in words.

    Examples
    --------
    >>> organ_words(["right_lung", "left_lung", "heart"]), organ_words(["left_lung", "heart"], "or")
    ('lungs and heart', 'left lung or heart')
    """
    known = [organ.title for organ in ORGANS if organ.name in names]
    if known[:2] == ["right lung", "left lung"] and last == "and":
        known[:2] = ["lungs"]
    return listed(known, last)


def frame_words(frame: str | None) -> str:
    """Return whose px a threshold or a position is in."""
    return "the image" if frame == "image" else f"the {MODEL_SIZE} px model frame"


def limit_words(limits: Mapping[str, str]) -> str:
    """Return limits by organ, one or more, as they were asked; organs without one are named.

    Examples
    --------
    >>> limit_words(dict.fromkeys(("right_lung", "left_lung", "heart"), "p80"))
    'p80'
    >>> limit_words({"right_lung": "5 px", "left_lung": "5 px"})
    '5 px (lungs; heart without a limit)'
    """
    by_limit: dict[str, list[str]] = {}
    for name in ORGAN_NAMES:
        if name in limits:
            by_limit.setdefault(limits[name], []).append(name)
    free = [name for name in ORGAN_NAMES if name not in limits]
    if len(by_limit) == 1 and not free:
        return next(iter(by_limit))
    whose = [organ_words(names) for names in by_limit.values()]
    if free:
        whose[-1] += f"; {organ_words(free)} without a limit"
    return listed(f"{limit} ({of})" for limit, of in zip(by_limit, whose, strict=True))


def node_limits(facts: Mapping[str, Any]) -> str:
    """Return every limit of nodes as it was asked, percentiles with the px that they came to; empty without one."""
    asked, parts = facts.get("thresholds") or {}, []
    if asked.get("max_std"):
        limits = {organ: _with_px(organ, limit, facts) for organ, limit in asked["max_std"].items()}
        parts.append(f"node uncertainty {limit_words(limits)}")
    if asked.get("max_radius90"):
        parts.append(f"calibrated radius {limit_words(radius_limits(asked))}")
    return "; ".join(parts)


def radius_limits(asked: Mapping[str, Any]) -> dict[str, str]:
    """Return the limits of the calibrated radius, by organ."""
    return {organ: f"{limit:g} px" for organ, limit in (asked.get("max_radius90") or {}).items()}


def _with_px(organ: str, limit: str, facts: Mapping[str, Any]) -> str:
    found = [record["px"][organ] for record in facts.get("limits_px") or ()] if is_percentile(limit) else []
    ends = " to ".join(dict.fromkeys(f"{value:.2f}" for value in (min(found), max(found)))) if found else ""
    return f"{limit} = {ends} px" if ends else limit


def is_percentile(limit: str) -> bool:
    """Tell whether a limit was asked as a percentile, such as ``p80``."""
    return limit.startswith("p")


def percentile_organs(asked: Mapping[str, Any]) -> list[OrganName]:
    """Return the organs whose limit of uncertainty was asked as a percentile."""
    limits = asked.get("max_std") or {}
    return [name for name in ORGAN_NAMES if name in limits and is_percentile(limits[name])]


def condition_words(text: str) -> tuple[str, str]:
    """Return a condition on a column as what holds of the rows that stay, and of those that do not.

    Examples
    --------
    >>> condition_words("ViewPosition=PA,AP")
    ('ViewPosition was PA or AP', 'ViewPosition not PA or AP, or unknown')
    >>> condition_words("Age>=18")
    ('Age was at least 18', 'Age not at least 18, or unknown')
    """
    try:
        condition = parse_condition(text)
    except UsageError:
        return f"{text} held", f"not {text}, or unknown"
    values = listed(condition.values, "or")
    if condition.operator == "!=":
        return f"{condition.column} was not {values}", f"{condition.column} {values}, or unknown"
    told = f"{_COMPARED[condition.operator]}{values}"
    return f"{condition.column} was {told}", f"{condition.column} not {told}, or unknown"


def usable_words(organs: Sequence[str]) -> str:
    """Return which organs decide, as what has to be usable."""
    if tuple(organs) == ORGAN_NAMES:
        return "organ"
    return organ_words(organs, "or")


def exclusion_words(reason: str, facts: Mapping[str, Any], *, brief: bool = False) -> str:
    """Return why rows were left out at a step, in words, from the step's name and the facts of the selection.

    ``brief`` leaves out the limits of nodes.
    """
    thresholds = facts.get("thresholds") or {}
    unit = frame_words(thresholds.get("unit"))
    if reason in LAST_STEPS:
        words = f"no usable {usable_words(thresholds.get('organs') or ORGAN_NAMES)}"
        limits = "" if brief else node_limits(facts)
        return f"{words} (limit: {limits})" if limits else words
    if reason.startswith(_WHERE):
        return condition_words(reason.removeprefix(_WHERE))[1]
    texts = {
        "source": f"source other than {listed(map(title_of, facts.get('sources') or ()), 'or')}",
        "frame": f"landmarks not in the {facts.get('frame')} frame",
        "ids": "not on the list of ids",
        "quality": f"{'not judged ok' if thresholds.get('quality') == 'ok' else 'rejected'} by the quality gate",
        "min_rca": f"mean RCA below {_plain(thresholds.get('min_rca'))}, or unknown",
        "min_rca_max": f"maximal RCA below {_plain(thresholds.get('min_rca_max'))}, or unknown",
        "max_mean_std": f"mean node uncertainty above {_plain(thresholds.get('max_mean_std'))} px, or unknown",
        "impossible": "landmarks or uncertainties that are no possible numbers",
        "scale_unknown": f"node uncertainty unknown in px of {unit}",
        "radius_scale_unknown": f"calibrated radius unknown in px of {unit}",
    }
    return texts.get(reason, reason)


def _plain(value: float | None) -> str:
    return "an unknown limit" if value is None else f"{value:g}"
