"""A report as plain text, ready to paste: tables in columns, paragraphs in one line each. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from cxu.anatomy import ORGANS
from cxu.report.exclusions import Counts, Stage, limits_nodes, selections_of, stages_of
from cxu.report.ratios import LARGE, RatioSummary
from cxu.report.sensitivity import AS_SELECTED, UNFILTERED, Kept, Sensitivity
from cxu.report.tally import Tally
from cxu.report.words import listed, number, percent, table_words, title_of

_LABEL_WIDTH: Final = 46
_MOST_SOURCES: Final = 6  # columns; beyond, a table would be wider than a page
_GAP: Final = "  "
_NO_RATIO: Final = "(no ratio)"


def text_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows in columns: the first is wrapped and set left, the others right.

    Examples
    --------
    >>> print(text_table(["", "rows"], [["read", "1,234"], ["kept", "12"]]))
           rows
    read  1,234
    kept     12
    """
    wrapped = [[textwrap.wrap(row[0], _LABEL_WIDTH) or [""], *row[1:]] for row in [columns, *rows]]
    label_width = max(len(line) for label, *_ in wrapped for line in label)
    widths = [max(len(row[index]) for row in wrapped) for index in range(1, len(columns))]
    lines = []
    for (first, *more), *cells in wrapped:
        told = [str(cell).rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append(_GAP.join([first.ljust(label_width), *told]).rstrip())
        lines += [f"  {line}" for line in more]
    return "\n".join(lines)


def flow_text(stage: Stage) -> str:
    """Return the flow of exclusions of a table and of all that it was made from."""
    return "\n\n".join(_stage_text(one) for one in stages_of(stage))


def _stage_text(stage: Stage) -> str:
    title = f"{'Selection' if stage.is_filter else 'Table'} {table_words(stage.name)}"
    if stage.inputs:
        title += f", of {listed(f'{table_words(one.name)}: {number(one.rows)} rows' for one in stage.inputs)}"
    if stage.steps is None:
        rows = [
            ["read", _known(stage.total_in)],
            ["left out, unknown why", _left(stage)],
            ["kept", _known(stage.total_out)],
        ]
        return f"{title}\n{text_table(['', 'rows'], rows)}"
    sources = sorted(stage.rows_in or {})
    apart = sources if 1 < len(sources) <= _MOST_SOURCES else []
    columns = ["", "rows", *map(title_of, apart), *(["patients"] if stage.patients else [])]
    rows = [["read", *_cells(stage.rows_in or {}, apart), *_patients(stage, 0)]]
    for index, step in enumerate(stage.steps):
        lost = _patients(stage, index, index + 1)
        rows.append([f"left out: {step.said}", *_cells(step.excluded, apart), *lost])
    rows.append(["kept", *_cells(stage.rows_out or {}, apart), *_patients(stage, -1)])
    told = text_table(columns, rows)
    if stage.patients and len(stage.patients) < len(sources):
        told += f"\nPatients: of {listed(map(title_of, stage.patients))}; the ids of the others name none."
    return f"{title}\n{told}"


def kept_lines(stage: Stage, tally: Tally) -> list[tuple[str, str]]:
    """Return what is usable of the rows kept, where nodes were limited: what, and its share."""
    if not tally.total or not any(limits_nodes(one) for one in selections_of(stage)):
        return []
    return [(f"{organ.title} usable", percent(tally.organs[organ.name], tally.total)) for organ in ORGANS]


def _known(count: int | None) -> str:
    return "unknown" if count is None else number(count)


def _left(stage: Stage) -> str:
    return _known(None if stage.total_in is None or stage.total_out is None else stage.total_in - stage.total_out)


def _cells(counts: Counts, sources: Sequence[str]) -> list[str]:
    return [number(sum(counts.values())), *(number(counts.get(name, 0)) for name in sources)]


def _patients(stage: Stage, step: int, after: int | None = None) -> list[str]:
    """Return how many patients there are at a step, or how many are lost up to another."""
    count = stage.patients_at(step)
    if count is None:
        return []
    return [number(count if after is None else count - (stage.patients_at(after) or 0))]


def sensitivity_text(found: Sensitivity) -> str:
    """Return what other limits would keep, as a table and a sentence."""
    came = sum(found.came.values())
    columns = [
        "--max-std",
        "rows",
        "",
        "nodes",
        "organs",
        "with CTR",
        "blank",
        "CTR median",
        "quartiles",
        f"above {LARGE:g}",
    ]
    rows = [[_level_title(level), *_level_cells(level, came)] for level in found.levels]
    told = f"{number(came)} rows came to the limit of node uncertainty. What it and others keep, all else as asked:"
    parts = ["Sensitivity", f"{told}\n{text_table(columns, rows)}"]
    if len(found.came) > 1:
        sources = list(found.came)
        by_source = [[level.name, *(_by_source(level, source) for source in sources)] for level in found.levels]
        parts.append(
            f"By source: rows kept, CTR median\n{text_table(['--max-std', *map(title_of, sources)], by_source)}"
        )
    return "\n\n".join([*parts, sensitivity_sentence(found)])


def _level_title(level: Kept) -> str:
    if level.name in (AS_SELECTED, UNFILTERED):
        return level.name
    px = sorted({value for one in level.limits for value in one.px.values() if value is not None})
    ends = " to ".join(dict.fromkeys(f"{value:.2f}" for value in (px[0], px[-1]))) if px else ""
    return f"{level.name} ({ends} px)" if ends else level.name


def _level_cells(level: Kept, came: int) -> list[str]:
    ratio = level.ratio
    return [
        number(level.total),
        percent(level.total, came),
        number(sum(level.nodes.values())),
        number(sum(level.organs.values())),
        number(ratio.n),
        number(sum(ratio.blank.values())),
        *_quartile_texts(ratio),
        "-" if ratio.share_large is None else percent(ratio.share_large),
    ]


def _quartile_texts(ratio: RatioSummary) -> tuple[str, str]:
    if ratio.quartiles is None:
        return "-", "-"
    low, middle, high = ratio.quartiles
    return f"{middle:.3f}", f"{low:.3f} to {high:.3f}"


def _by_source(level: Kept, source: str) -> str:
    rows, ratio = level.rows.get(source, 0), level.ratio_by_source.get(source)
    return f"{number(rows)}, {'-' if ratio is None else _quartile_texts(ratio)[0]}"


def sensitivity_sentence(found: Sensitivity) -> str:
    """Return the table in a sentence for the methods or the results."""
    levels = [level for level in found.levels if level.name != AS_SELECTED]
    limits = ", ".join("none" if level.name == UNFILTERED else level.name for level in levels)
    kept = listed(number(level.total) for level in levels)
    ratios = [level.ratio for level in levels]
    medians = listed(_NO_RATIO if one.quartiles is None else _quartile_texts(one)[0] for one in ratios)
    large = listed(_NO_RATIO if one.share_large is None else percent(one.share_large) for one in ratios)
    return (
        f"With other limits of node uncertainty ({limits}) and all else as before, {kept} of "
        f"{number(sum(found.came.values()))} radiographs were kept; the median cardiothoracic ratio, where its nodes "
        f"were confident, was {medians}; it was above {LARGE:g} in {large}."
    )
