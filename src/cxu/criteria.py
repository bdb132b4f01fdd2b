"""What a row is asked, as named tests in filter order. Pure functions over tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cxu import files, store, table
from cxu.anatomy import ORGAN_NAMES
from cxu.catalog import FrameName
from cxu.errors import DuplicateIdError, UsageError
from cxu.frame import MODEL_SIZE
from cxu.labels import Condition, IdList, Labels, satisfies
from cxu.thresholds import Limit, OrganLimits, Thresholds, Unit, WorstQuality

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]

IMPOSSIBLE: Final = "impossible"
SCALE_UNKNOWN: Final = "scale_unknown"
RADIUS_UNKNOWN: Final = "radius_scale_unknown"


@dataclass(frozen=True)
class Criteria:
    """Everything a row is asked: thresholds, and what other files and conditions say of it."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    sources: tuple[str, ...] = ()
    frame: FrameName | None = None
    ids: IdList | None = None
    labels: tuple[Labels, ...] = ()
    where: tuple[Condition, ...] = ()
    resolved: tuple[OrganLimits, ...] | None = None


@dataclass(frozen=True)
class RowStep:
    """One test of rows: its name, which is also the reason of those that fail, and what it asks about."""

    name: str
    asks: Literal["choice", "gate", "rca", "sigma"]
    test: Callable[[pa.Table], BoolArray]


def row_steps(criteria: Criteria) -> list[RowStep]:
    """Return the tests in filter order that need no limit in px of nodes."""
    thresholds = criteria.thresholds
    steps: list[RowStep] = []
    if criteria.sources:
        steps.append(RowStep("source", "choice", lambda rows: _is_any(rows["source"], criteria.sources)))
    if criteria.frame:
        steps.append(RowStep("frame", "choice", lambda rows: _is_any(rows["frame"], (str(criteria.frame),))))
    if criteria.ids:
        steps.append(RowStep("ids", "choice", criteria.ids.among))
    steps += [RowStep(f"where {condition}", "choice", _where(condition)) for condition in criteria.where]
    if thresholds.quality != "any":
        worst = thresholds.quality
        steps.append(RowStep("quality", "gate", lambda rows: _is_good_enough(rows, worst)))
    for name, column in (("min_rca", "rca_mean"), ("min_rca_max", "rca_max")):
        least = getattr(thresholds, name)
        if least is not None:
            steps.append(RowStep(name, "rca", _at_least(column, least)))
    steps.append(RowStep(IMPOSSIBLE, "sigma", lambda rows: possible_sigmas(rows, "sigma_model_px")))
    if thresholds.max_mean_std is not None:
        most = thresholds.max_mean_std
        steps.append(RowStep("max_mean_std", "sigma", lambda rows: _mean_std_at_most(rows, most)))
    if thresholds.max_std:
        steps.append(RowStep(SCALE_UNKNOWN, "sigma", lambda rows: _knows_scale(rows, thresholds.unit)))
    if thresholds.max_radius90:
        steps.append(RowStep(RADIUS_UNKNOWN, "sigma", lambda rows: _knows_radius(rows, thresholds.unit)))
    return steps


def _is_good_enough(rows: pa.Table, worst: WorstQuality) -> BoolArray:
    """Tell which rows the gate lets pass; those it has not judged do unless ``ok`` is asked."""
    if worst == "ok":
        return pc.fill_null(pc.equal(rows["quality"], "ok"), False).to_numpy()
    return pc.fill_null(pc.not_equal(rows["quality"], "reject"), True).to_numpy()


def _knows_radius(rows: pa.Table, unit: Unit) -> BoolArray:
    missing = rows["radius90_px"].is_null().to_numpy()
    if missing.any():
        raise UsageError(
            f"rows of {_names(rows.filter(pa.array(missing)))} have no calibrated radii: only predictions of the "
            "weights that ship with cxu have some, since published rows have no truth to fit to. Filter by --max-std"
        )
    return np.all(np.isfinite(node_radius(rows, unit)), axis=1)


def _is_any(column: pa.ChunkedArray, values: tuple[str, ...]) -> BoolArray:
    return pc.is_in(column, value_set=pa.array(values)).to_numpy()


def _where(condition: Condition) -> Callable[[pa.Table], BoolArray]:
    return lambda rows: satisfies(rows, condition)


def _at_least(column: str, least: float) -> Callable[[pa.Table], BoolArray]:
    return lambda rows: table.scalar_column(rows, column).astype(np.float32) >= np.float32(least)


def _mean_std_at_most(rows: pa.Table, most: float) -> BoolArray:
    _require_sigmas(rows)
    return table.scalar_column(rows, "mean_sigma_model_px").astype(np.float32) <= np.float32(most)


def _knows_scale(rows: pa.Table, unit: Unit) -> BoolArray:
    _require_sigmas(rows)
    return has_sigma(node_sigma(rows, unit))


def possible_landmarks(rows: pa.Table) -> BoolArray:
    """Return which rows [n] have landmarks that are finite throughout; import and predict write no others."""
    landmarks = table.list_column(rows, "landmarks_xy", writable=False)
    if not len(rows) or np.isfinite([landmarks.min(), landmarks.max()]).all():
        return np.ones(len(rows), np.bool_)
    possible: BoolArray = np.all(np.isfinite(landmarks), axis=1)
    return possible


def possible_sigmas(rows: pa.Table, column: str) -> BoolArray:
    """Return which rows [n] of a column of uncertainties are unknown, or finite and not negative, throughout."""
    sigma = table.list_column(rows, column, writable=False)
    if not len(rows) or (sigma.min() >= 0 and sigma.max() < np.inf):  # with NaN neither holds
        return np.ones(len(rows), np.bool_)
    possible: BoolArray = np.all((sigma >= 0) & (sigma < np.inf), axis=1) | np.all(np.isnan(sigma), axis=1)
    return possible


def has_sigma(sigma: FloatArray) -> BoolArray:
    """Return which rows [n] of node uncertainties [n, 120] are known throughout."""
    known: BoolArray = np.all(np.isfinite(sigma), axis=1)
    return known


def first_failures(rows: pa.Table, steps: Sequence[RowStep]) -> npt.NDArray[np.int64]:
    """Return for each row [n] the index of the first step it fails, or the number of steps.

    Each test sees only the rows that passed those before it.
    """
    failed_at = np.full(len(rows), len(steps))
    alive, passed = np.arange(len(rows)), np.ones(len(rows), np.bool_)
    for index, step in enumerate(steps):
        if not passed.all():
            rows, alive = rows.filter(pa.array(passed)), alive[passed]
        passed = step.test(rows)
        failed_at[alive[~passed]] = index
    return failed_at


def node_sigma(rows: pa.Table, unit: Unit) -> FloatArray:
    """Return the node uncertainty float32 [n, 120] in px of the model frame or of the image; NaN where unknown.

    It may be the memory of the rows themselves, and is not for writing.

    Raises
    ------
    UsageError
        If the unit is image px and a row in the model frame does not know that frame's side.
    """
    sigma = table.list_column(rows, "sigma_model_px", writable=False)
    if unit == "model":
        return sigma
    in_image = pc.equal(rows["frame"], "image").to_numpy()
    side = table.scalar_column(rows, "frame_side")
    unknown = np.isnan(side) & ~in_image
    if unknown.any():
        raise UsageError(
            f"--unit image: rows of {_names(rows.filter(pa.array(unknown)))} do not know how many image pixels a "
            "model-frame pixel is; take --unit model, or rows in the image frame"
        )
    # what the file says of its own pixels is exact; there and back through the model frame would round it
    stated = table.node_uncertainty(table.sigmas_of(rows))
    scaled = sigma * (side[:, None] / MODEL_SIZE).astype(np.float32)
    return np.where(in_image[:, None], stated, scaled)


def node_radius(rows: pa.Table, unit: Unit) -> FloatArray:
    """Return the calibrated radius float32 [n, 120] in px of the model frame or of the image; NaN where unknown."""
    radius = table.list_column(rows, "radius90_px")
    in_image = pc.equal(rows["frame"], "image").to_numpy()
    side = table.scalar_column(rows, "frame_side")
    factor = (
        np.where(in_image, MODEL_SIZE / side, 1.0) if unit == "model" else np.where(in_image, 1.0, side / MODEL_SIZE)
    )
    return (radius * factor[:, None]).astype(np.float32)


def _require_sigmas(rows: pa.Table) -> None:
    """Refuse a limit of uncertainty for rows that have none."""
    # rows with samples but without sigma in model px have one in image px, and do not know their scale
    has_samples = pc.fill_null(pc.greater(rows["n_samples"], 1), False)
    missing = pc.and_not(rows["sigma_model_px"].is_null(), has_samples).to_numpy()
    if missing.any():
        raise UsageError(
            f"rows of {_names(rows.filter(pa.array(missing)))} have no standard deviations "
            "(the original CheXmask and predictions of one sample have none): a limit such as --max-std cannot be "
            "asked of them; filter them by --min-rca, or leave them out with --source"
        )


def _names(rows: pa.Table) -> str:
    return ", ".join(sorted(pc.unique(rows["source"]).to_pylist()))


def check_models(groups: Iterable[tuple[str, str]], thresholds: Thresholds) -> None:
    """Refuse one limit in px for the (source, model_id) groups of several models, unless they may be mixed."""
    models = sorted({model_id for _, model_id in groups})
    if thresholds.compares_models and len(models) > 1 and not thresholds.mix_models:
        raise UsageError(
            f"one limit in px over {len(models)} models ({', '.join(model[:12] for model in models)}): their standard "
            "deviations do not compare. Filter one at a time, take a percentile such as --max-std p80, or --mix-models"
        )


def check_keys(
    keys: pa.Table,
    criteria: Criteria,
    *,
    each: Callable[[Callable[[str], bool], Iterable[str]], Iterable[bool]] = map,
) -> None:
    """Check that no (source, image_id) stands twice among the rows that the criteria choose by source and frame.

    Parameters
    ----------
    keys
        Columns ``source``, ``image_id`` and ``frame``.
    criteria
        Its ``sources`` and ``frame``.
    each
        Calls a function for each source, as ``map`` does; threads may.

    Raises
    ------
    UsageError
        If an image is there in both frames.
    DuplicateIdError
        If an image stands twice in one frame.
    """
    if criteria.frame:
        keys = keys.filter(pc.equal(keys["frame"], criteria.frame))
    if criteria.sources:
        keys = keys.filter(pc.is_in(keys["source"], value_set=pa.array(criteria.sources)))
    suspects = each(
        lambda name: _repeated(keys.filter(pc.equal(keys["source"], name))), pc.unique(keys["source"]).to_pylist()
    )
    if not any(list(suspects)):
        return
    grouped = keys.group_by(["source", "image_id"]).aggregate([("frame", "count"), ("frame", "count_distinct")])
    twice = grouped.filter(pc.greater(grouped["frame_count"], 1)).sort_by(
        [("source", "ascending"), ("image_id", "ascending")]
    )
    first = f"{twice['source'][0].as_py()} {twice['image_id'][0].as_py()}"
    if pc.max(twice["frame_count_distinct"]).as_py() > 1:
        raise UsageError(f"{len(twice):,} images are there in both frames ({first} first): choose with --frame")
    raise DuplicateIdError(f"{len(twice):,} images stand more than once ({first} first): filter one table at a time")


def _repeated(keys: pa.Table) -> bool:
    """Tell whether an id stands twice among keys of one source, in a fraction of the memory that grouping takes."""
    return len(pc.unique(keys["image_id"])) < len(keys)


def group_rows(rows: pa.Table) -> Iterator[tuple[tuple[str, str], BoolArray]]:
    """Yield each (source, model_id) among the rows with the rows it has, bool [n]."""
    groups = rows.select(["source", "model_id"]).group_by(["source", "model_id"], use_threads=False).aggregate([])
    for source, model_id in zip(groups["source"].to_pylist(), groups["model_id"].to_pylist(), strict=True):
        both = pc.and_(pc.equal(rows["source"], source), pc.equal(rows["model_id"], model_id))
        yield (source, model_id), both.to_numpy()


def selection_facts(
    criteria: Criteria, limits: Iterable[OrganLimits], inputs: Sequence[store.StoredTable] = ()
) -> dict[str, Any]:
    """Return what a selection's file says of how it was made; no clock times: the same filter gives the same bytes.

    ``digest`` is of everything but the names of files: a file that was moved is the same file.
    """
    labels = [(one.path.name, one.source.name, files.sha256_of(one.path)) for one in criteria.labels]
    facts = {
        "kind": "selection",
        "thresholds": criteria.thresholds.as_json(),
        "limits_px": [asdict(one) for one in limits],
        "sources": list(criteria.sources),
        "frame": criteria.frame,
        "where": [str(condition) for condition in criteria.where],
        "ids": criteria.ids and files.hash_of(criteria.ids.ids),
        "partial": any(stored.facts.get("partial") for stored in inputs),
    }
    hashes = [[stored.digest for stored in inputs], [[source, sha256] for _, source, sha256 in labels]]
    return {
        **facts,
        "labels": [{"name": name, "source": source, "sha256": sha256} for name, source, sha256 in labels],
        "inputs": [_input_facts(stored) for stored in inputs],
        "digest": files.hash_of([facts, *hashes]),
    }


def _input_facts(stored: store.StoredTable) -> dict[str, Any]:
    name = Path(stored.name).name if stored.kind == "file" else stored.name
    facts = {"name": name, "rows": stored.rows, "digest": stored.digest}
    # the whole chain: what an earlier selection asked holds for this one too
    kept = ("thresholds", "limits_px", "where", "inputs")
    return {**facts, **{key: stored.facts[key] for key in kept if key in stored.facts and "thresholds" in stored.facts}}


def _asking_input(facts: Mapping[str, Any]) -> str | None:
    """Return the name of the first selection that these facts build on and that asked for something."""
    for one in facts.get("inputs", ()):
        asked = one.get("thresholds", {})
        names = ("max_std", "min_rca", "min_rca_max", "max_mean_std", "max_radius90")
        decides = tuple(asked.get("organs", ORGAN_NAMES)) != ORGAN_NAMES
        if decides or any(asked.get(name) not in (None, {}) for name in names):
            return str(one["name"])
        deeper = _asking_input(one)
        if deeper:
            return deeper
    return None


def criteria_like(facts: Mapping[str, Any], base: Criteria) -> Criteria:
    """Return ``base`` with the thresholds of a selection's facts, percentiles as they were resolved there.

    Raises
    ------
    UsageError
        If the facts are not a selection's, or it was made from a selection with thresholds of its own.
    """
    if facts.get("kind") != "selection":
        raise UsageError("--like names no selection; expected a name that cxu ls lists, or a selection's file")
    earlier = _asking_input(facts)
    if earlier:
        raise UsageError(
            f"--like names a selection made from {earlier}, which has thresholds of its own: give the thresholds "
            "themselves, or make the selection from sources in one step"
        )
    try:
        return _resolved_as(facts, base)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"--like names a selection whose facts are damaged ({error}): give the thresholds") from None


def _resolved_as(facts: Mapping[str, Any], base: Criteria) -> Criteria:
    content = dict(facts["thresholds"])
    limits = {organ: _limit_of(text) for organ, text in content.pop("max_std").items()}
    thresholds = Thresholds(
        **{
            **content,
            "max_std": limits,
            "max_radius90": content["max_radius90"] or None,
            "organs": tuple(content["organs"]),
            "mix_models": base.thresholds.mix_models or content["mix_models"],
        }
    )
    resolved = tuple(OrganLimits(**record) for record in facts["limits_px"])
    return replace(base, thresholds=thresholds, resolved=resolved)


def _limit_of(text: str) -> Limit:
    return Limit(float(text[1:]), True) if text.startswith("p") else Limit(float(text.removesuffix(" px")))
