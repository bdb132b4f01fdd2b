"""What the rows of a source come to: shares, medians with intervals, and what is likely wrong and what to do. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cxu.catalog import source_or_custom
from cxu.check.rows import RowCheck, Verdict
from cxu.check.verdict import MEANING, VERDICTS, told_scale, told_shift
from cxu.stats import Interval, bootstrap

BIAS_PX: Final = 5.0
BIAS_SCALE: Final = 0.03
# Shares of the rows of a good source that may be taken for wrong: several times what was measured on annotated films
# (docs/commands/check.md), since published tables are of other films and another network.
FALSE_ALARMS: Final[dict[Verdict, float]] = {
    "turned": 0.02,
    "mirrored": 0.02,
    "sides": 0.02,
    "unlike": 0.05,
    "shifted": 0.05,
    "scaled": 0.05,
}
_LEAST_ROWS: Final = 8
_CHANCE: Final = 0.01
_MEASURED: Final = ("ok", "shifted", "scaled", "unlike")
_AXES: Final = ("shift_x", "shift_y", "scale_x", "scale_y")


@dataclass(frozen=True)
class Finding:
    """Something that is so, in a sentence; ``is_fault`` where something has to be done about it."""

    kind: str
    sentence: str
    is_fault: bool = True


@dataclass(frozen=True)
class SourceFindings:
    """What was found of one source.

    Attributes
    ----------
    source
        Its name.
    rows, with_image, looked
        Rows of the tables, those that have an image, and those looked at.
    verdicts
        Verdict → rows looked at.
    sizes
        How sizes compare → rows looked at.
    measured
        Rows whose place was measured: on which the network is sure, and nothing is mirrored or exchanged.
    intervals
        ``shift_x``, ``shift_y`` in px of the 1024 model frame, ``scale_x``, ``scale_y``: median of those rows with its
        95 % interval.
    findings
        What is likely wrong, the worst first, and what is fine though it may surprise.
    """

    source: str
    rows: int
    with_image: int
    looked: int
    verdicts: Mapping[str, int]
    sizes: Mapping[str, int]
    measured: int
    intervals: Mapping[str, Interval]
    findings: tuple[Finding, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain values; what is not known is None."""
        return {
            "source": self.source,
            "rows": self.rows,
            "with_image": self.with_image,
            "looked_at": self.looked,
            "verdicts": dict(self.verdicts),
            "sizes": dict(self.sizes),
            "measured": self.measured,
            **{name: [_plain(value) for value in interval] for name, interval in self.intervals.items()},
            "findings": [vars(finding) for finding in self.findings],
        }


def _plain(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def find_in_sources(rows: Sequence[RowCheck], counts: Mapping[str, tuple[int, int]]) -> tuple[SourceFindings, ...]:
    """Return what the rows come to, by source; ``counts`` has each source's rows, and those that have an image."""
    by_source: dict[str, list[RowCheck]] = {source: [] for source in sorted(counts)}
    for row in rows:
        by_source[row.source].append(row)
    return tuple(_of_source(source, found, *counts[source]) for source, found in by_source.items())


def _of_source(source: str, rows: Sequence[RowCheck], n_rows: int, with_image: int) -> SourceFindings:
    counted = Counter(row.verdict for row in rows)
    measured = [row for row in rows if row.verdict in _MEASURED and math.isfinite(row.comparison.fit.residual_px)]
    values = np.array([[*row.comparison.fit.shift_xy, *row.comparison.fit.scale_xy] for row in measured]).reshape(-1, 4)
    intervals = {
        name: bootstrap(lambda chosen, axis=axis: float(np.median(values[chosen, axis])), len(values))  # type: ignore[misc]
        for axis, name in enumerate(_AXES)
    }
    of_place = _place_findings(source, len(measured), intervals)
    found = [
        *_size_findings(rows),
        *_failure_findings(rows),
        *of_place,
        *_seen_findings(rows, counted, is_told=bool(of_place)),
    ]
    return SourceFindings(
        source,
        n_rows,
        with_image,
        len(rows),
        {name: counted[name] for name in VERDICTS if counted[name]},
        dict(Counter(row.sizes.kind for row in rows if row.sizes.image_hw is not None)),
        len(measured),
        intervals,
        tuple(sorted(found, key=lambda finding: not finding.is_fault)),
    )


def _size_findings(rows: Sequence[RowCheck]) -> list[Finding]:
    found, known = [], [row for row in rows if row.sizes.recorded_hw is not None and row.sizes.image_hw is not None]
    resized = [row.sizes.factor for row in known if row.sizes.kind == "resized"]
    if resized:
        low, middle, high = np.quantile(resized, [0.0, 0.5, 1.0])
        size = f"{middle:.3g} times" if high - low < 0.01 * middle else f"{low:.3g} to {high:.3g} times"
        said = f"{_share(len(resized), len(known))} are {size} the recorded size: fine, cxu rescales"
        found.append(Finding("resized", said, is_fault=False))
    exchanged = [row for row in known if row.sizes.kind == "exchanged"]
    if exchanged:
        said = f"{_share(len(exchanged), len(known))} have height and width exchanged"
        found.append(
            Finding("exchanged", f"{said}: turned by 90°, or the table has the two the wrong way round; see the sheet")
        )
    for likely, explain in (("stretched", _stretched), ("cut", _cut), ("", _unexplained)):
        other = [row for row in known if row.sizes.kind == "other" and row.sizes.likely == likely]
        if other:
            said = f"{_share(len(other), len(known))} have another aspect than the table records"
            found.append(Finding(likely or "aspect", f"{said}: {explain(other)}"))
    return found


def _stretched(rows: Sequence[RowCheck]) -> str:
    shapes = {row.sizes.image_hw for row in rows}
    (height, width), *others = (shape for shape in shapes if shape is not None)
    size = "HxW" if others else f"{height}x{width}"
    return (
        "each axis was scaled by itself, and the outlines fit if they are too. Masks of these copies come from cxu "
        f"rasterize --size {size} without --images; or use the originals"
    )


def _cut(rows: Sequence[RowCheck]) -> str:
    x, y = np.median([row.comparison.fit.shift_xy for row in rows], axis=0).tolist()
    if max(abs(x), abs(y)) < BIAS_PX:
        return "cut or padded at the right or at the bottom. Use the originals"
    return (
        f"cut or padded; pixel for pixel the chest lies {told_shift((x, y))} than the table says (median, px of the "
        "1024 model frame). Use the originals"
    )


def _unexplained(_: Sequence[RowCheck]) -> str:
    return "cropped, padded, stretched, or others. Use the originals"


def _failure_findings(rows: Sequence[RowCheck]) -> list[Finding]:
    found = []
    unreadable = [row for row in rows if row.verdict == "unreadable"]
    if unreadable:
        first = unreadable[0].reason
        found.append(
            Finding("unreadable", f"{_share(len(unreadable), len(rows))} cannot be read, such as: {first.rstrip('.')}")
        )
    unplaced = [row for row in rows if row.verdict == "unplaced"]
    if unplaced:
        first = unplaced[0].reason
        found.append(Finding("unplaced", f"cxu draws nothing on {_share(len(unplaced), len(rows))}, such as: {first}"))
    return found


def _place_findings(source: str, n_rows: int, intervals: Mapping[str, Interval]) -> list[Finding]:
    """Say whether the chest lies elsewhere, or is larger, than the table says, over all rows."""
    if n_rows < _LEAST_ROWS:
        return []
    shift = [intervals["shift_x"], intervals["shift_y"]]
    scale = [intervals["scale_x"], intervals["scale_y"]]
    found = []
    if any(_is_beyond(one, 0.0, BIAS_PX) for one in shift):
        said = f"the chest lies {told_shift((shift[0].value, shift[1].value))} than the table says"
        found.append(
            Finding("shift", f"{said} (median of {_films(n_rows)}; px of the 1024 model frame): {_why_shift(source)}")
        )
    if any(_is_beyond(one, 1.0, BIAS_SCALE) for one in scale):
        said = f"the chest is {told_scale((scale[0].value, scale[1].value))} the table's outlines"
        found.append(Finding("scale", f"{said} (median of {_films(n_rows)}): {_why_scale(scale)}"))
    return found


def _is_beyond(interval: Interval, centre: float, bias: float) -> bool:
    """Tell whether an interval lies wholly further from the centre than networks differ among each other."""
    return interval.low > centre + bias or interval.high < centre - bias


def _why_shift(source: str) -> str:
    framing = source_or_custom(source).framing
    if framing == "crop_pad":
        return (
            "a black border was added or cut off, or the table is in the image frame, where the published positions "
            f"forget the border: use the original files, and cxu fetch {source} --frame model"
        )
    if framing == "unknown":
        return (
            f"cxu takes images of {source} as padded to a centred square; were they cropped before, or are these other "
            "copies? Import the table in the pixels of the images (--frame image), or use the originals"
        )
    return "the images are likely cropped or padded on one side: use the originals"


def _why_scale(scale: Sequence[Interval]) -> str:
    if abs(scale[0].value / scale[1].value - 1) > 2 * BIAS_SCALE:
        return "the images are likely stretched to another aspect: use the originals"
    if scale[0].value + scale[1].value > 2:
        return "their borders are likely cut off: use the originals"
    return "a border was likely added around them: use the originals"


def _seen_findings(rows: Sequence[RowCheck], counted: Mapping[Verdict, int], *, is_told: bool) -> list[Finding]:
    """Say what is wrong with single rows, where they are more than a network's mistakes.

    ``is_told``: a shift or scale of all rows together is told already.
    """
    unsure = counted["unsure"]
    judged = [row for row in rows if math.isfinite(row.comparison.side_odds) and row.verdict != "unsure"]
    counts = {verdict: counted[verdict] for verdict in FALSE_ALARMS}
    # outlines of another film may lie elsewhere as well
    if is_too_many(counts["unlike"], len(judged), FALSE_ALARMS["unlike"]):
        counts["unlike"] += counts.pop("shifted") + counts.pop("scaled")
    elif is_told:
        counts = {verdict: count for verdict, count in counts.items() if verdict not in ("shifted", "scaled")}
    found = [
        Finding(verdict, f"{_share(count, len(judged))}: {MEANING[verdict]}; {_ADVICE[verdict]}")
        for verdict, count in counts.items()
        if is_too_many(count, len(judged), FALSE_ALARMS[verdict])
    ]
    if unsure and unsure > len(judged):
        said = f"the network is not to be asked about {_share(unsure, unsure + len(judged))}"
        found.append(Finding("unsure", f"{said}: are these frontal radiographs? Look at the sheet"))
    return found


_ADVICE: Final[dict[Verdict, str]] = {
    "turned": "use the files as they were published",
    "mirrored": "use the files as they were published, and nothing that flips them",
    "sides": "masks would name each lung for the other; the reasons are in check.csv",
    "unlike": "other images may lie under these names; look at the sheet",
    "shifted": "each elsewhere; look at the sheet",
    "scaled": "each otherwise; look at the sheet",
}


def is_too_many(count: int, n: int, rate: float) -> bool:
    """Tell whether a count is more than false alarms at that rate give in one of 100 samples of n rows.

    Examples
    --------
    >>> is_too_many(3, 200, 0.01), is_too_many(8, 200, 0.01), is_too_many(1, 1, 0.005)
    (False, True, True)
    """
    if count == 0:
        return False
    return 1 - sum(_binomial(k, n, rate) for k in range(count)) < _CHANCE


def _binomial(k: int, n: int, rate: float) -> float:
    """Return the chance of k of n at a rate; by logarithms, for the coefficients of many rows are no floats."""
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(rate) + (n - k) * math.log1p(-rate))


def _share(count: int, n: int) -> str:
    if count == n:
        return "the one image" if n == 1 else f"all {n:,} images"
    return f"{count:,} of {n:,} images"


def _films(count: int) -> str:
    return f"{count:,} film{'' if count == 1 else 's'}"
