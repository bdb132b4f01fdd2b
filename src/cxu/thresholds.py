"""Thresholds: what is asked of nodes, organs and rows, and the rules that decide. Pure functions over arrays.

A node is confident when its uncertainty is at most its organ's limit. An organ is usable when enough of its nodes are
confident and no long run of neighbours is not: bridging a long gap would cut anatomy away. A row without a usable organ
is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from cxu.anatomy import N_NODES, ORGAN_GROUPS, ORGAN_NAMES, ORGANS, Organ, OrganName
from cxu.errors import UsageError

Unit = Literal["model", "image"]
WorstQuality = Literal["ok", "review", "any"]
FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]
BitArray = npt.NDArray[np.uint64]
Percentile = tuple[float, tuple[OrganName, ...]]  # 0 to 100, and the organs whose nodes it is of

MIN_CONFIDENT: Final = 0.5
MAX_GAP: Final = 4
_WORD: Final = 64  # bits


@dataclass(frozen=True)
class Limit:
    """An upper limit of node uncertainty: ``value`` px, or, with ``percentile``, that percentile of the nodes.

    ``pool`` names the organs whose nodes a percentile is taken over: those that were limited together.
    """

    value: float
    percentile: bool = False
    pool: tuple[OrganName, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        short = f"{self.value:g}"
        number = short if float(short) == self.value else repr(self.value)
        return f"p{number}" if self.percentile else f"{number} px"


@dataclass(frozen=True)
class Thresholds:
    """What a row must satisfy; None and empty ask nothing.

    Attributes
    ----------
    max_std
        Limit of node uncertainty by organ; an organ that is not named has none.
    unit
        Pixels of ``max_std`` and ``max_radius90``: the 1024 model frame, or the image's own.
    min_confident
        Share of an organ's nodes that must be confident.
    max_gap
        Longest run of neighbouring nodes that may be unconfident.
    min_rca, min_rca_max
        Least ``rca_mean`` and ``rca_max``; a row without one fails.
    max_mean_std
        Most mean node uncertainty of a row, px of the model frame.
    max_radius90
        Limit of a node's calibrated radius by organ, px in the same unit as ``max_std``.
    quality
        The worst verdict of the gate that stays. Rows without a verdict stay unless ``ok`` is asked.
    organs
        The organs that decide whether a row stays.
    mix_models
        Allow one limit in px for rows of different models.
    """

    max_std: Mapping[OrganName, Limit] | None = None
    unit: Unit = "model"
    min_confident: float = MIN_CONFIDENT
    max_gap: int = MAX_GAP
    min_rca: float | None = None
    min_rca_max: float | None = None
    max_mean_std: float | None = None
    max_radius90: Mapping[OrganName, float] | None = None
    quality: WorstQuality = "review"
    organs: tuple[OrganName, ...] = ORGAN_NAMES
    mix_models: bool = False

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise UsageError(f"unit is {self.unit!r}; expected {' or '.join(get_args(Unit))}")
        for name in ("min_confident", "min_rca", "min_rca_max"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is {value:g}; expected a share from 0 to 1")
        for name in ("max_gap", "max_mean_std"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UsageError(f"{name} is {value:g}; expected 0 or more")
        if self.quality not in get_args(WorstQuality):
            raise UsageError(f"quality is {self.quality!r}; expected one of {', '.join(get_args(WorstQuality))}")
        if not self.organs:
            raise UsageError(f"no organ decides; expected one or more of {', '.join(ORGAN_GROUPS)}")

    @property
    def compares_models(self) -> bool:
        """Whether one number in px is held against the sigmas of every row."""
        limits = (self.max_std or {}).values()
        return self.max_mean_std is not None or any(not limit.percentile for limit in limits)

    @property
    def limits_nodes(self) -> bool:
        """Whether anything is asked of nodes."""
        return bool(self.max_std or self.max_radius90)

    def radius_limits(self) -> FloatArray:
        """Return the limit of every node's radius, float64 [120]; infinity where there is none."""
        return _by_node(self.max_radius90 or {})

    def as_json(self) -> dict[str, Any]:
        """Return the thresholds as plain JSON values."""
        limits = {organ: str(limit) for organ, limit in (self.max_std or {}).items()}
        radii = dict(self.max_radius90 or {})
        return {**asdict(self), "max_std": limits, "max_radius90": radii, "organs": list(self.organs)}


@dataclass(frozen=True)
class OrganLimits:
    """Limits of node uncertainty in px for the rows of one source and model; None is no limit."""

    source: str
    model_id: str
    px: Mapping[OrganName, float | None]

    def by_node(self) -> FloatArray:
        """Return the limit of every node, float64 [120]; infinity where there is none."""
        return _by_node(self.px)


def _by_node(px: Mapping[OrganName, float | None] | Mapping[OrganName, float]) -> FloatArray:
    limits = np.full(N_NODES, np.inf)
    for organ in ORGANS:
        value = px.get(organ.name)
        limits[organ.nodes] = np.inf if value is None else value
    return limits


def parse_organs(text: str, *, also_all: bool = False) -> tuple[OrganName, ...]:
    """Return the organs of a comma list of names and groups, in the order of ORGANS; on demand ``all`` is a group.

    Raises
    ------
    UsageError
        If a name is unknown or missing.

    Examples
    --------
    >>> parse_organs("lungs")
    ('right_lung', 'left_lung')
    """
    named: set[str] = set()
    groups = {**ORGAN_GROUPS, "all": ORGAN_NAMES} if also_all else ORGAN_GROUPS
    for key in (part.strip() for part in text.split(",")):
        if key not in groups:
            raise UsageError(f"unknown organ {key!r}; expected one of {', '.join(groups)}")
        named |= set(groups[key])
    return tuple(name for name in ORGAN_NAMES if name in named)


def parse_max_std(text: str) -> dict[OrganName, Limit]:
    """Return the limits of a ``--max-std`` value: ``5``, ``p80``, or by organ ``heart=8,lungs=p90``.

    Raises
    ------
    UsageError
        If a limit is no number of px above or equal 0 and no percentile, or an organ is unknown or named twice.

    Examples
    --------
    >>> parse_max_std("heart=8,lungs=5")["left_lung"]
    Limit(value=5.0, percentile=False)
    """
    limits: dict[OrganName, Limit] = {}
    for item in text.split(","):
        key, separator, value = item.rpartition("=")
        organs = parse_organs(key) if separator else ORGAN_NAMES
        limit = _parse_limit(value.strip(), text)
        for organ in organs:
            if organ in limits:
                raise UsageError(f"--max-std {text}: {organ} is limited twice")
            limits[organ] = replace(limit, pool=organs) if limit.percentile else limit
    return limits


def parse_max_radius90(text: str) -> dict[OrganName, float]:
    """Return the limits of a ``--max-radius90`` value in px: ``20``, or by organ ``heart=25,lungs=15``.

    Raises
    ------
    UsageError
        If a limit is no number of px above or equal 0, or an organ is unknown or named twice.

    Examples
    --------
    >>> parse_max_radius90("heart=25")
    {'heart': 25.0}
    """
    try:
        limits = parse_max_std(text)
    except UsageError as error:
        raise UsageError(str(error).replace("--max-std", "--max-radius90")) from None
    if any(limit.percentile for limit in limits.values()):
        raise UsageError(f"--max-radius90 {text}: a radius has no percentiles; expected px such as 20")
    return {organ: limit.value for organ, limit in limits.items()}


def _parse_limit(value: str, whole: str) -> Limit:
    match = re.fullmatch(r"(p?)((?:\d+(?:\.\d*)?|\.\d+)(?:e-\d{1,2})?)", value)
    if not match or (match[1] and float(match[2]) > 100):
        raise UsageError(
            f"--max-std {whole}: {value!r} is no limit; expected px such as 5, or a percentile such as p80"
        )
    return Limit(float(match[2]), bool(match[1]))


def percentiles_asked(thresholds: Thresholds) -> list[Percentile]:
    """Return the percentiles that the limits of node uncertainty ask for, and the organs whose nodes each is of."""
    limits = (thresholds.max_std or {}).items()
    asked = [_asked(organ, limit, thresholds.organs) for organ, limit in limits if limit.percentile]
    return list(dict.fromkeys(asked))


def resolve_limits(
    thresholds: Thresholds, found: Mapping[tuple[str, str], Mapping[Percentile, float]]
) -> tuple[OrganLimits, ...]:
    """Turn limits into px for every source and model.

    A percentile is taken over the nodes, of the organs that were limited together and decide, of the rows that reached
    this step, by linear interpolation. An organ that does not decide takes the px of its own nodes.

    Parameters
    ----------
    thresholds
        Limits in px or percentiles.
    found
        (source, model_id) → what :func:`percentiles_asked` come to for its rows, in the unit of the thresholds.
    """
    resolved = []
    for (source, model_id), of_group in found.items():
        px: dict[OrganName, float | None] = dict.fromkeys(ORGAN_NAMES)
        for organ, limit in (thresholds.max_std or {}).items():
            px[organ] = of_group[_asked(organ, limit, thresholds.organs)] if limit.percentile else limit.value
        resolved.append(OrganLimits(source, model_id, px))
    return tuple(resolved)


def _asked(organ: OrganName, limit: Limit, deciding: tuple[OrganName, ...]) -> Percentile:
    return limit.value, _pool_of(organ, limit, deciding)


def _pool_of(organ: OrganName, limit: Limit, deciding: tuple[OrganName, ...]) -> tuple[OrganName, ...]:
    if organ not in deciding:
        return (organ,)
    return tuple(name for name in limit.pool or (organ,) if name in deciding)


def limits_for(limits: Iterable[OrganLimits], source: str, model_id: str, *, mix_models: bool = False) -> OrganLimits:
    """Return the limits that apply to a source and model; limits of another source of the same model where they agree.

    With ``mix_models``, those of other models too.

    Raises
    ------
    UsageError
        If there are none, or several that differ.
    """
    known = list(limits)
    same_model = [limit for limit in known if limit.model_id == model_id]
    candidates = (
        [limit for limit in same_model if limit.source == source] or same_model or (known if mix_models else [])
    )
    if candidates and all(dict(limit.px) == dict(candidates[0].px) for limit in candidates):
        return replace(candidates[0], source=source, model_id=model_id)
    names = ", ".join(sorted({f"{limit.source} ({limit.model_id[:12]})" for limit in known})) or "no rows"
    raise UsageError(
        f"the thresholds were resolved for {names}; there is no single one for {source} ({model_id[:12]}): "
        "filter these rows with their own --max-std"
    )


def confident_nodes(sigma_px: FloatArray, limits_px: FloatArray) -> BoolArray:
    """Return which nodes are confident: uncertainty at most the limit. NaN is not confident where there is a limit.

    Parameters
    ----------
    sigma_px
        [n, 120] node uncertainty.
    limits_px
        [120] limits in the same px; infinity where there is none.

    Returns
    -------
    bool [n, 120].
    """
    confident = sigma_px <= limits_px.astype(np.float32)
    confident[:, np.isposinf(limits_px)] = True
    return confident


def usable_organs(confident: BoolArray, *, min_confident: float = MIN_CONFIDENT, max_gap: int = MAX_GAP) -> BoolArray:
    """Return which organs are usable, bool [n, 3] in the order of ORGANS.

    Parameters
    ----------
    confident
        bool [n, 120].
    min_confident
        Least share of an organ's nodes that must be confident.
    max_gap
        Longest run of neighbouring nodes, along the closed ring, that may be unconfident.

    Examples
    --------
    >>> nodes = np.ones((1, 120), bool); nodes[0, [94, 95, 117, 118, 119]] = False
    >>> usable_organs(nodes).tolist()
    [[True, True, False]]
    """
    usable, words = np.empty((len(confident), len(ORGANS)), np.bool_), _node_bits(confident)
    for index, organ in enumerate(ORGANS):
        bits = _organ_bits(words, organ)
        enough = _count_bits(bits) / organ.n_nodes >= min_confident
        usable[:, index] = enough & ~_has_gap(bits, organ.n_nodes, max_gap + 1)
    return usable


def _node_bits(confident: BoolArray) -> BitArray:
    """Return the nodes [n, 120] as bits of two numbers a row, node 0 the lowest of the first: uint64 [n, 2]."""
    words = np.zeros((len(confident), 16), np.uint8)
    words[:, : N_NODES // 8] = np.packbits(confident, bitorder="little").reshape(-1, N_NODES // 8)
    return words.view("<u8")


def _organ_bits(words: BitArray, organ: Organ) -> BitArray:
    """Return the nodes of an organ, at most 64, as bits of one number a row: uint64 [n]."""
    whole, first = np.uint64((1 << organ.n_nodes) - 1), organ.first
    if first >= _WORD:
        return (words[:, 1] >> np.uint64(first - _WORD)) & whole
    if organ.stop <= _WORD:
        return (words[:, 0] >> np.uint64(first)) & whole
    return ((words[:, 0] >> np.uint64(first)) | (words[:, 1] << np.uint64(_WORD - first))) & whole


def _count_bits(bits: BitArray) -> BitArray:
    """Return how many bits are set: sums over pairs, over fours, over bytes, then of all bytes by multiplication."""
    pairs = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    fours = (pairs & np.uint64(0x3333333333333333)) + ((pairs >> np.uint64(2)) & np.uint64(0x3333333333333333))
    in_bytes = (fours + (fours >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (in_bytes * np.uint64(0x0101010101010101)) >> np.uint64(56)


def _has_gap(bits: BitArray, n_nodes: int, length: int) -> BoolArray:
    """Tell where a ring of nodes has a run of ``length`` zeros or more: :func:`cxu.contour.longest_gap`, in bits."""
    if length > n_nodes:
        return np.zeros(len(bits), np.bool_)
    whole = np.uint64((1 << n_nodes) - 1)
    runs, reached = ~bits & whole, 1  # bits that begin a run of zeros of the length reached
    while reached < length:
        step = min(reached, length - reached)
        runs &= (runs >> np.uint64(step)) | ((runs << np.uint64(n_nodes - step)) & whole)
        reached += step
    return runs != 0


def has_usable(usable: BoolArray, organs: tuple[OrganName, ...] = ORGAN_NAMES) -> BoolArray:
    """Return which rows [n] have at least one usable organ among those that decide."""
    deciding = [name in organs for name in ORGAN_NAMES]
    return np.any(usable[:, deciding], axis=1)
