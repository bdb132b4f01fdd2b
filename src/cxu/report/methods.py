"""The methods paragraph: what was taken from where, what it was asked, what was kept. Pure; plain past tense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cxu import __version__
from cxu.anatomy import ORGAN_NAMES, ORGANS
from cxu.flow import UNEQUAL, FilterReport, LevelCount
from cxu.report.bibliography import CXU
from cxu.report.exclusions import Stage, limits_nodes, selections_of
from cxu.report.provenance import origin_sentences
from cxu.report.tally import Tally
from cxu.report.words import (
    UNCERTAINTY,
    condition_words,
    frame_words,
    limit_words,
    listed,
    model_title,
    number,
    ordinal,
    organ_words,
    percent,
    percentile_organs,
    radiographs,
    radius_limits,
    short_hash,
    table_words,
    title_of,
)
from cxu.thresholds import MAX_GAP, MIN_CONFIDENT

_MOST_COLUMNS: Final = 8  # of labels whose levels were left out unequally, widest first


def methods_paragraph(stage: Stage, tally: Tally) -> str:
    """Return the paragraph for a table and how it was made; sources and methods are cited as ``[key]``."""
    sentences = [*origin_sentences(tally), *_filter_sentences(stage, tally), *_kept_sentences(stage, tally)]
    return " ".join([*sentences, *_caveat_sentences(stage)])


# --- what they were asked -------------------------------------------------------------------------------------------


def _filter_sentences(stage: Stage, tally: Tally) -> list[str]:
    filters = list(selections_of(stage))
    if not filters:
        return [f"Nothing was left out: the table is no selection (cxu {__version__} [{CXU}])."]
    gated = any(not origin.is_published for origin in tally.origins)
    sentences = [f"Radiographs were selected with cxu {__version__} [{CXU}]."]
    for one in filters:
        named = f"For the selection {table_words(one.name)}, " if len(filters) > 1 else ""
        sentences += _stage_sentences(one, named, gated=gated)
    return sentences


def _stage_sentences(stage: Stage, named: str, *, gated: bool) -> list[str]:
    required = _requirements(stage, gated=gated)
    inputs = f"of {listed(table_words(one.name) for one in stage.inputs)} " if named and stage.inputs else ""
    if required:
        first = f"{named}radiographs {inputs}were kept if {listed(required)}."
    else:
        first = f"{named}all radiographs {inputs}were kept: nothing was asked of them."
    return [_upper(first), *_definitions(stage), *_flow_sentences(stage)]


def _requirements(stage: Stage, *, gated: bool) -> list[str]:
    facts, asked = stage.facts, stage.thresholds
    required = []
    if facts.get("sources"):
        required.append(f"their source was {listed(map(title_of, facts['sources']), 'or')}")
    if facts.get("frame"):
        required.append(f"their landmarks were in the {facts['frame']} frame")
    if facts.get("ids"):
        required.append(f"they were on a list of ids (hash {short_hash(facts['ids'])})")
    required += [condition_words(condition)[0] for condition in facts.get("where") or ()]
    if asked.get("quality") == "ok":
        required.append("the quality gate of cxu judged them ok")
    elif asked.get("quality", "any") != "any" and (gated or _has_step(stage, "quality")):
        required.append("the quality gate of cxu did not reject them")
    if asked.get("min_rca") is not None:
        required.append(
            f"their mean reverse classification accuracy (RCA, an estimate of Dice) was at least {asked['min_rca']:g}"
        )
    if asked.get("min_rca_max") is not None:
        required.append(
            f"their maximal reverse classification accuracy (RCA, an estimate of Dice) was at least "
            f"{asked['min_rca_max']:g}"
        )
    if asked.get("max_mean_std") is not None:
        required.append(
            f"the mean uncertainty of their nodes was at most {asked['max_mean_std']:g} px in {frame_words('model')}"
        )
    organs = asked.get("organs") or ORGAN_NAMES
    if asked.get("max_std") or asked.get("max_radius90") or tuple(organs) != ORGAN_NAMES:
        required.append(f"{_usable(organs)} was usable")
    return required


def _usable(organs: Sequence[str]) -> str:
    if tuple(organs) == ORGAN_NAMES:
        return "at least one organ"
    return f"their {organ_words(organs, 'or')}"


def _has_step(stage: Stage, reason: str) -> bool:
    return any(step.reason == reason for step in stage.steps or ())


def _definitions(stage: Stage) -> list[str]:
    """Return what confident and usable meant, where nodes were limited."""
    asked = stage.thresholds
    rules = []
    if asked.get("max_std"):
        rules.append(
            f"its uncertainty, the mean of its standard deviations along x and y, was at most {_limits(stage)}"
        )
    if asked.get("max_radius90"):
        radii = limit_words(radius_limits(asked))
        rules.append(f"its calibrated radius was at most {radii} in {frame_words(asked.get('unit'))}")
    if not rules:
        return []
    least = f"{100 * asked.get('min_confident', MIN_CONFIDENT):g} %"
    gap = asked.get("max_gap", MAX_GAP)
    sentences = [
        f"A node was confident if {listed(rules)}.",
        f"An organ was usable if at least {least} of its nodes were, and no run of more than {gap} neighbours was not.",
    ]
    models = {record["model_id"] for record in stage.facts.get("limits_px") or ()}
    if asked.get("mix_models") and len(models) > 1:
        sentences.append(
            "One limit in px was held against standard deviations of several models, which do not compare."
        )
    return sentences


def _limits(stage: Stage) -> str:
    """Return the limits of node uncertainty as they were asked and, of percentiles, the px that they came to."""
    asked: Mapping[str, str] = stage.thresholds["max_std"]
    told = f"{limit_words(asked)} in {frame_words(stage.thresholds.get('unit'))}"
    organs = percentile_organs(stage.thresholds)
    if not organs:
        return told
    percentiles = sorted({asked[organ] for organ in organs})
    names = f"the {listed(ordinal(name[1:]) for name in percentiles)} percentile{'s' * (len(percentiles) > 1)}"
    verb = "were" if len(percentiles) > 1 else "was"
    records = stage.facts.get("limits_px") or ()
    several = len({record["model_id"] for record in records}) > 1
    resolved = listed(_resolved(record, organs, with_model=several) for record in records) or "not recorded"
    return f"{told}; {listed(percentiles)}, {names} by source and model, {verb} {resolved}"


def _resolved(record: Mapping[str, Any], organs: Sequence[str], *, with_model: bool) -> str:
    by_value: dict[str, list[str]] = {}
    for organ in organs:
        by_value.setdefault(f"{record['px'][organ]:.2f} px", []).append(organ)
    told = (
        next(iter(by_value))
        if len(by_value) == 1
        else listed(f"{px} ({organ_words(of)})" for px, of in by_value.items())
    )
    model = f", {model_title(record['model_id'])}" if with_model else ""
    return f"{told} for {title_of(record['source'])}{model}"


# --- what was kept --------------------------------------------------------------------------------------------------


def _flow_sentences(stage: Stage) -> list[str]:
    if stage.total_in is None or stage.total_out is None:
        return ["How many radiographs were left out is not known."]
    share = percent(stage.total_out, stage.total_in)
    sources = stage.rows_in or {}
    apart = listed(f"{title_of(name)} {number(count)}" for name, count in sorted(sources.items()))
    read = f"{radiographs(stage.total_in)}{f' ({apart})' if len(sources) > 1 else ''}"
    kept = f"Of {read}, {number(stage.total_out)} ({share}) were kept"
    if stage.steps is None:
        return [f"{kept}; why the others were left out is not recorded."]
    out = [(sum(step.excluded.values()), step.brief) for step in stage.steps]
    told = listed(f"{number(count)} ({brief})" for count, brief in out if count)
    sentences = [f"{kept}; left out were {told}." if told else f"{kept}."]
    if stage.patients:
        of = listed(map(title_of, stage.patients))
        sentences.append(
            f"In {of}, whose ids name patients, {number(stage.patients_at(-1) or 0)} of "
            f"{number(stage.patients_at(0) or 0)} patients were kept."
        )
    return sentences


def _kept_sentences(stage: Stage, tally: Tally) -> list[str]:
    if not tally.total:
        return ["No radiograph was kept."] if stage.is_filter else ["The table has no rows."]
    if not any(limits_nodes(one) for one in selections_of(stage)):
        return []
    nodes = listed(
        f"{percent(tally.nodes[organ.name], tally.total * organ.n_nodes)} ({organ.title})" for organ in ORGANS
    )
    usable = listed(f"{percent(tally.organs[organ.name], tally.total)} ({organ.title})" for organ in ORGANS)
    return [f"Of the radiographs kept, {nodes} of the nodes were confident, and {usable} of the organs usable."]


def _caveat_sentences(stage: Stage) -> list[str]:
    """Return whom filtering leaves out: what is known in general, and what the labels of these rows say."""
    filters = list(selections_of(stage))
    sentences = []
    if any(one.thresholds.get(name) for one in filters for name in UNCERTAINTY):
        sentences.append(
            "Filtering by uncertainty leaves out sick patients and films taken AP more often than others, so the "
            "radiographs kept may not stand for all."
        )
    levels = [told for one in filters for told in unequal_levels(one.facts)]
    sentences += [_level_sentence(of_column) for of_column in levels[:_MOST_COLUMNS]]
    if any(one.facts.get("levels") for one in filters) and not levels:
        sentences.append(
            f"Between the levels of the labels that were joined, the shares left out differed by less than "
            f"{100 * UNEQUAL:g} points."
        )
    elif sentences and not levels:
        sentences.append("No labels with levels to compare were joined, so whom the limits left out here is not known.")
    return sentences


def unequal_levels(facts: Mapping[str, Any]) -> list[list[LevelCount]]:
    """Return the levels of the label columns that were left out unequally, widest first."""
    levels = [
        LevelCount(str(one["column"]), str(one["level"]), int(one["rows_in"]), int(one["rows_out"]))
        for one in facts.get("levels") or ()
    ]
    return FilterReport([], levels=levels).unequal_levels


def _level_sentence(levels: Sequence[LevelCount]) -> str:
    told = listed(f"{percent(level.excluded)} of {level.level} ({number(level.rows_in)})" for level in levels)
    return f"By {levels[0].column}, the thresholds left out {told}."


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
