"""Rows of prediction tables as arrays of scores, and which of them are for fitting, choosing and reporting."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu import table
from cxu.errors import DuplicateIdError, UsageError
from cxu.stats import Interval, bootstrap
from cxu.store import StoredTable

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
TextArray = npt.NDArray[np.object_]
Split = Literal["train", "validation", "test"]

SPLITS: Final = get_args(Split)
_READ: Final = ("source", "image_id", "patient_id", "mean_sigma_model_px", "latent_sigma", "rca_max", "model_id")
_IN_SHARES: Final = (0.6, 0.8)  # of IN: train below the first, validation below the second
_OUT_SHARE: Final = 0.5  # of OUT: validation below
_MANY_ROWS: Final = 20_000
_N_BOOT: Final = 1000
_N_BOOT_MANY: Final = 200


@dataclass(frozen=True, eq=False)
class OodRows:
    """Rows with uncertainty, by source and id; n rows.

    Attributes
    ----------
    name
        Of the table.
    source, image_id
        [n] text.
    group
        [n] text: the patient where the table knows it, else the image. What belongs together is never split.
    score_px
        [n] image scores: mean node uncertainty, px of the 1024 model frame.
    latent_sigma
        [n, 64]; NaN for rows without.
    rca_max
        [n]; NaN for rows without.
    model_ids
        The models that made the rows.
    without_sigma
        Rows that were left out, since they have no uncertainty.
    """

    name: str
    source: TextArray
    image_id: TextArray
    group: TextArray
    score_px: FloatArray
    latent_sigma: FloatArray
    rca_max: FloatArray
    model_ids: tuple[str, ...]
    without_sigma: int = 0

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.score_px)

    @property
    def has_latent(self) -> BoolArray:
        """Bool [n]: whether the row has latent sigmas."""
        known: BoolArray = np.isfinite(self.latent_sigma)
        return np.all(known, axis=1)

    def part(self, which: BoolArray | IntArray) -> OodRows:
        """Return some of the rows."""
        names = ("source", "image_id", "group", "score_px", "latent_sigma", "rca_max")
        return replace(self, **{name: getattr(self, name)[which] for name in names})


def read_rows(stored: StoredTable) -> OodRows:
    """Return the rows of a table that have uncertainty, in order of source and id whatever their order there.

    Raises
    ------
    DuplicateIdError
        If an image stands there twice.
    """
    rows = stored.read(_READ)
    score = table.scalar_column(rows, "mean_sigma_model_px")
    known = np.isfinite(score)
    models = tuple(sorted(set(rows["model_id"].filter(pa.array(known)).to_pylist())))
    source, image_id, patient = (
        np.array(rows[name].to_pylist(), object) for name in ("source", "image_id", "patient_id")
    )
    _refuse_twice(stored.name, source, image_id)
    whose = np.array(["image" if one is None else "patient" for one in patient], object)
    person = np.where(patient == None, image_id, patient)  # noqa: E711 - elementwise
    found = OodRows(
        stored.name,
        source,
        image_id,
        source + "\0" + whose + "\0" + person,
        score,
        table.list_column(rows, "latent_sigma"),
        table.scalar_column(rows, "rca_max"),
        models,
    )
    order = np.array(sorted(np.flatnonzero(known), key=lambda row: (source[row], image_id[row])), np.int64)
    return replace(found.part(order), without_sigma=int(np.count_nonzero(~known)))


def _refuse_twice(name: str, source: TextArray, image_id: TextArray) -> None:
    seen: set[tuple[str, str]] = set()
    for pair in zip(source, image_id, strict=True):
        if pair in seen:
            raise DuplicateIdError(
                f"{name}: image {pair[1]!r} of {pair[0]} stands there twice; expected one row an image"
            )
        seen.add(pair)


def check_models(tables: Sequence[OodRows], *, mix_models: bool) -> None:
    """Check that rows of tables compare.

    Raises
    ------
    UsageError
        If several models made them and that is not wanted.
    """
    models = sorted({model for rows in tables for model in rows.model_ids})
    if len(models) > 1 and not mix_models:
        names = " and ".join(dict.fromkeys(rows.name for rows in tables))
        raise UsageError(
            f"{names}: rows of {len(models)} models ({', '.join(model[:12] for model in models)}), whose standard "
            "deviations do not compare. Predict both with one, or --mix-models"
        )


def share_of(text: str, seed: int) -> float:
    """Return a number in [0, 1) that is the same for the same text and seed, and evenly spread over texts.

    Examples
    --------
    >>> share_of("a", 0) == share_of("a", 0), 0 <= share_of("b", 1) < 1
    (True, True)
    """
    digest = hashlib.sha256(f"{seed}\0{text}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def split_in(groups: TextArray, seed: int) -> TextArray:
    """Return for what each row of the distribution itself is: train (60 %), validation (20 %) or test, by its group."""
    return np.array(
        [SPLITS[int(np.searchsorted(_IN_SHARES, share_of(group, seed), "right"))] for group in groups], object
    )


def split_out(groups: TextArray, seed: int, groups_in: Collection[str]) -> TextArray:
    """Return for what each row from outside is: validation or test, half each.

    A group that also has rows inside stays with them; where these are for training, rows from outside are train too,
    and not used.
    """
    known = set(groups_in)
    inside = split_in(groups, seed)
    halves = ("validation" if share_of(group, seed) < _OUT_SHARE else "test" for group in groups)
    return np.array(
        [own if group in known else half for group, own, half in zip(groups, inside, halves, strict=True)], object
    )


def bootstrap_groups(measure: Callable[[IntArray], float], groups: TextArray, seed: int) -> Interval:
    """Return what ``measure`` gives for the rows [n], with the interval of resampled groups.

    ``measure`` takes indices of rows. A thousand resamples; 200 above 20,000 rows, where they hardly differ.
    """
    _, of_group, counts = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
    order, starts = np.argsort(of_group, kind="stable"), np.cumsum(counts) - counts

    def on_groups(drawn: IntArray) -> float:
        lengths = counts[drawn]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return measure(order[np.repeat(starts[drawn], lengths) + within])

    n_boot = _N_BOOT if len(groups) <= _MANY_ROWS else _N_BOOT_MANY
    return bootstrap(on_groups, len(counts), n_boot=n_boot, seed=seed)
