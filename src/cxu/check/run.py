"""Carries a plan out: opens the images, asks a network what it sees in them, and compares."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from cxu import films, images, masks, table
from cxu.catalog import source_or_custom
from cxu.check.findings import Finding, SourceFindings, find_in_sources
from cxu.check.plan import CheckPlan, SampledRow
from cxu.check.rows import LIMITS, Comparison, RowCheck, Seen, Sizes, compare, compare_sizes
from cxu.check.verdict import judge
from cxu.errors import FormatError, ImageError
from cxu.frame import MODEL_SIZE
from cxu.masks import Placement
from cxu.placing import KEY_COLUMNS, RowKey, place_in_image
from cxu.quality import contour_contrast

if TYPE_CHECKING:
    from cxu.films import FilmFrame
    from cxu.model.weights import Weights
    from cxu.predict import Prediction, Predictor

FloatArray = npt.NDArray[np.floating]

_COLUMNS: Final = (*KEY_COLUMNS, "landmarks_xy")


@dataclass(frozen=True)
class CheckReport:
    """What was found.

    Attributes
    ----------
    rows
        The rows looked at, in the order of the plan.
    sources
        What they come to, by source.
    with_network
        Whether a network looked at the images.
    """

    rows: tuple[RowCheck, ...]
    sources: tuple[SourceFindings, ...]
    with_network: bool

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What is wrong, of all sources."""
        return tuple(finding for source in self.sources for finding in source.findings if finding.is_fault)

    @property
    def fits(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def check_images(
    plan: CheckPlan, weights: Weights | None = None, *, progress: Callable[[int], None] = lambda _: None
) -> CheckReport:
    """Look at the images of a plan.

    Parameters
    ----------
    plan
        From :func:`cxu.check.plan.plan_check`.
    weights
        The network that looks at them; its gate says where it is not to be asked. None compares sizes alone.
    progress
        Called with how many rows more are done.

    Raises
    ------
    DeviceMemoryError
        If there is not enough memory for one image.
    """
    found = []
    for one in _compared(_read_rows(plan.rows), weights):
        found.append(one)
        progress(1)
    return CheckReport(tuple(found), find_in_sources(found, plan.counts), weights is not None)


@dataclass(frozen=True, eq=False)
class _Row:
    """A row with its landmarks [120, 2] px of its frame, where they lie in its image, and what is wrong with that."""

    sampled: SampledRow
    key: RowKey
    landmarks_xy: FloatArray
    sizes: Sizes = field(default_factory=Sizes)
    placement: Placement | None = None
    problem: str = ""
    unreadable: str = ""

    @property
    def points_xy(self) -> FloatArray | None:
        """The landmarks in px of the image."""
        return None if self.placement is None else self.placement.points(self.landmarks_xy)


def _read_rows(sampled: Sequence[SampledRow]) -> Iterator[_Row]:
    """Read the rows, each shard once, and the headers of their images."""
    by_shard: dict[object, list[int]] = {}
    for index, one in enumerate(sampled):
        by_shard.setdefault(one.shard, []).append(index)
    found: dict[int, tuple[RowKey, FloatArray]] = {}
    for indices in by_shard.values():
        rows = sampled[indices[0]].shard.read(_COLUMNS).take([sampled[index].row for index in indices])
        found |= dict(zip(indices, zip(RowKey.all_of(rows), table.landmarks_of(rows), strict=True), strict=True))
    for index, one in enumerate(sampled):
        yield _placed(_Row(one, *found[index]))


def _placed(row: _Row) -> _Row:
    """Return a row with its place in its image, or the nearest guess of it where cxu would not draw it there."""
    image, key, source = row.sampled.image, row.key, source_or_custom(row.sampled.source)
    try:
        image_hw = images.image_size(image)
    except ImageError as error:
        return replace(row, unreadable=str(error))
    says_size = key.frame == "image" or source.framing == "native"
    sizes = compare_sizes(key.shape_hw if says_size else None, image_hw)
    try:
        return replace(row, sizes=sizes, placement=place_in_image(image, source, key))
    except (ImageError, FormatError) as error:
        return replace(row, sizes=sizes, placement=_guessed(key, sizes, image_hw), problem=str(error))


def _guessed(key: RowKey, sizes: Sizes, image_hw: tuple[int, int]) -> Placement | None:
    """Return where a row would lie in an image that does not fit it, for a network to say how far off that is."""
    if key.frame == "model" or key.shape_hw is None:
        return Placement(image_hw) if key.frame == "image" else None
    if sizes.kind == "other":  # a cropped copy has the pixels of the whole one
        return Placement(image_hw)
    row_hw = key.shape_hw[::-1] if sizes.kind == "exchanged" else key.shape_hw
    return masks.resized(row_hw, image_hw)


def _compared(rows: Iterable[_Row], weights: Weights | None) -> Iterator[RowCheck]:
    """Yield what is found of each row, in order; images are opened while the network looks at those before them."""
    if weights is None:
        yield from (_finished(row, Comparison()) for row in rows)
        return
    waiting = deque[_Row]()

    def readable() -> Iterator[SampledRow]:
        for row in rows:
            waiting.append(row)
            if not row.unreadable:
                yield row.sampled

    for look in _looks(readable(), weights):
        while waiting[0].unreadable:
            yield _finished(waiting.popleft(), Comparison())
        yield _looked_at(waiting.popleft(), look)
    yield from (_finished(row, Comparison()) for row in waiting)


def _looked_at(row: _Row, look: _Look | str) -> RowCheck:
    if isinstance(look, str):
        return _finished(replace(row, unreadable=look), Comparison())
    seen = look.seen
    if row.sizes.kind == "other":
        row = _explained(row, look)
    if row.points_xy is None:
        compared = Comparison(
            side_odds=seen.side_odds, is_mirrored=seen.is_mirrored, quality=seen.quality, reason=seen.reason
        )
    else:
        compared = compare(look.frame.to_model(row.points_xy), seen)
    return _finished(row, compared, look.landmarks_xy)


def _explained(row: _Row, look: _Look) -> _Row:
    """Return a row whose image has another aspect where its outlines fit best: stretched, else pixel for pixel."""
    recorded_hw, image_hw = row.sizes.recorded_hw, row.sizes.image_hw
    assert recorded_hw is not None
    assert image_hw is not None
    for likely, placement in (("stretched", masks.resized(recorded_hw, image_hw)), ("cut", Placement(image_hw))):
        fit = compare(look.frame.to_model(placement.points(row.landmarks_xy)), look.seen).fit
        is_alike = fit.residual_px <= LIMITS.residual_px and max(abs(one - 1) for one in fit.scale_xy) <= LIMITS.scale
        if likely == "cut" and is_alike:
            return replace(row, sizes=replace(row.sizes, likely="cut"), placement=placement)
        if is_alike and max(map(abs, fit.shift_xy)) <= LIMITS.shift_px:
            return replace(row, sizes=replace(row.sizes, likely="stretched"), placement=placement)
    return row


@dataclass(frozen=True, eq=False)
class _Look:
    """What was seen in an image, and the same landmarks [120, 2] in px of the image as it is stored."""

    seen: Seen
    frame: FilmFrame
    landmarks_xy: FloatArray


def _looks(sampled: Iterable[SampledRow], weights: Weights) -> Iterator[_Look | str]:
    """Yield what the network sees in each image, in order; of one that cannot be read, why."""
    # torch takes a second to load, and sizes are compared without it
    from cxu.model.device import find_device  # noqa: PLC0415
    from cxu.predict import PredictOptions, Predictor, Rejected, predict_films  # noqa: PLC0415
    from cxu.predict_plan import PlannedImage  # noqa: PLC0415

    predictor = Predictor(weights, PredictOptions(), find_device("auto"))
    planned = (PlannedImage(source_or_custom(one.source), one.image_id, one.image) for one in sampled)
    for result in predict_films(planned, predictor):
        if isinstance(result, Rejected):
            yield result.reason
            continue
        is_mirrored = result.side_odds < LIMITS.odds
        shown = _in_the_mirror(result, predictor) if is_mirrored else result
        landmarks_xy = shown.mean * MODEL_SIZE
        quality, reason = _judged(shown, predictor)
        yield _Look(
            Seen(landmarks_xy, result.side_odds, is_mirrored, quality, reason),
            result.frame,
            result.frame.to_image(_reflected(landmarks_xy, predictor.size) if is_mirrored else landmarks_xy),
        )


def _in_the_mirror(found: Prediction, predictor: Predictor) -> Prediction:
    """Return what the network sees in the mirror image of a film."""
    from cxu.model.sampling import image_seed  # noqa: PLC0415 - see above

    film = films.read_film(found.image.file, even_flat=True)
    pixels = np.ascontiguousarray(films.model_input(film, found.frame, predictor.size)[:, ::-1])
    (samples,) = predictor.run([pixels], [image_seed(predictor.options.seed, pixels)])
    mean, std, mu, latent_sigma, features = (
        values[0].cpu().numpy()
        for values in (samples.mean, samples.std, samples.mu, samples.latent_sigma, samples.features)
    )
    contrast = contour_contrast(pixels, mean)
    return replace(
        found, mean=mean, std=std, mu=mu, latent_sigma=latent_sigma, features=features, contrast=contrast,
        side_odds=-found.side_odds,
    )  # fmt: skip


def _reflected(landmarks_xy: FloatArray, size: int) -> FloatArray:
    """Return points of the mirror image of a network's input as they lie in it, px of the 1024 model frame."""
    return landmarks_xy * (-1.0, 1.0) + (MODEL_SIZE * (1 - 1 / size), 0.0)


def _judged(found: Prediction, predictor: Predictor) -> tuple[str | None, str | None]:
    from cxu.model.reference import reference_of  # noqa: PLC0415 - see above
    from cxu.predict import prediction_rows  # noqa: PLC0415

    weights = predictor.weights
    rows = prediction_rows([found], weights, predictor.options, reference_of(weights.model_id))
    return rows["quality"][0].as_py(), rows["quality_reason"][0].as_py()


def _finished(row: _Row, compared: Comparison, seen_xy: FloatArray | None = None) -> RowCheck:
    sampled = row.sampled
    verdict, reason = judge(row.sizes, compared, problem=row.problem, unreadable=row.unreadable)
    return RowCheck(
        sampled.source,
        sampled.image_id,
        sampled.image.name,
        verdict,
        reason,
        row.sizes,
        compared,
        row.points_xy,
        seen_xy,
    )
