"""How far from the truth a node is to be expected, given sigma: fitted to films that the network was not trained on.

Two things are fitted, by organ. The *scale* is what sigma has to be multiplied with to be the standard deviation of
the errors. The *radius* holds the true node in a share of cases, 90 of 100, whatever the distribution of the errors is:
split-conformal prediction, with ``max(sigma, floor)`` as the measure of difficulty and images, not nodes, as what is
exchangeable.

Sources: Vovk et al., Algorithmic Learning in a Random World (2005); Lee, Barber and Willett, Distribution-free
inference with hierarchical data (2023), for groups of dependent observations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cxu.anatomy import N_NODES, N_ORGANS, ORGAN_NAMES, ORGANS
from cxu.errors import FormatError, UsageError

FloatArray = npt.NDArray[np.floating]

COVERAGE: Final = 0.9
# Published rows have no truth to fit to. The paper plots about 2.1 px of error per px of sigma, where sigma of the size
# of the errors would give 1.25: sigma is too small by 1.7.
PUBLISHED_SCALE: Final = 1.7
_FLOOR_QUANTILE: Final = 0.1


@dataclass(frozen=True)
class Calibration:
    """What was fitted to one network.

    Attributes
    ----------
    sigma_scale
        Organ → factor on sigma.
    radius_factor
        Organ → factor on ``max(sigma, floor)``, for the radius.
    floor_px
        Organ → least sigma that the radius counts with, px of the 1024 model frame.
    coverage
        Share of true nodes that the radius holds.
    n_images
        Organ → films with that organ annotated.
    data
        What it was fitted to, for people.
    """

    sigma_scale: Mapping[str, float]
    radius_factor: Mapping[str, float]
    floor_px: Mapping[str, float]
    coverage: float
    n_images: Mapping[str, int]
    data: str = ""

    def scales(self) -> FloatArray:
        """Return the factors on sigma, float64 [3] in the order of ORGANS."""
        return np.array([self.sigma_scale[name] for name in ORGAN_NAMES])

    def as_json(self) -> dict[str, Any]:
        """Return plain values; :func:`from_json` reads them."""
        return asdict(self)


def from_json(content: Any) -> Calibration:
    """Return the calibration that :meth:`Calibration.as_json` described.

    Raises
    ------
    FormatError
        If something is missing or no positive number.
    """
    try:
        scale, factor, floor, counts = (
            {str(organ): float(content[name][organ]) for organ in ORGAN_NAMES}
            for name in ("sigma_scale", "radius_factor", "floor_px", "n_images")
        )
        n_images = {organ: int(count) for organ, count in counts.items()}
        made = Calibration(scale, factor, floor, float(content["coverage"]), n_images, str(content["data"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"calibration: {type(error).__name__} {error}; expected scale, radius and floor by organ"
        ) from None
    numbers = [*made.sigma_scale.values(), *made.radius_factor.values(), *made.floor_px.values(), made.coverage]
    if not all(np.isfinite(number) and number > 0 for number in numbers):
        raise FormatError(f"calibration: {numbers}; expected positive numbers")
    return made


def fit(difference_xy: FloatArray, sigma_xy: FloatArray, *, coverage: float = COVERAGE, data: str = "") -> Calibration:
    """Fit scale and radius to annotated images that the network has not seen.

    Parameters
    ----------
    difference_xy
        Landmark less truth [n, 120, 2], px of the 1024 model frame; NaN where not annotated.
    sigma_xy
        Standard deviations [n, 120, 2] as predicted, in the same px.
    coverage
        Share of true nodes that the radius is to hold.
    data
        What the images are, for people.

    Raises
    ------
    UsageError
        If an organ has too few annotated images for that coverage: a share of 0.9 needs nine.
    """
    parts = [
        _fit_organ(difference_xy[:, organ.nodes], sigma_xy[:, organ.nodes], coverage, organ.name) for organ in ORGANS
    ]
    by_name = dict(zip(ORGAN_NAMES, parts, strict=True))
    return Calibration(
        sigma_scale={name: part[0] for name, part in by_name.items()},
        radius_factor={name: part[1] for name, part in by_name.items()},
        floor_px={name: part[2] for name, part in by_name.items()},
        coverage=coverage,
        n_images={name: part[3] for name, part in by_name.items()},
        data=data,
    )


def _fit_organ(
    difference_xy: FloatArray, sigma_xy: FloatArray, coverage: float, name: str
) -> tuple[float, float, float, int]:
    known: npt.NDArray[np.bool_] = np.all(np.isfinite(difference_xy), axis=-1)
    annotated = np.any(known, axis=1)
    difference_xy, sigma_xy, known = difference_xy[annotated], sigma_xy[annotated], known[annotated]
    scale = float(np.sqrt(np.mean((difference_xy[known] / sigma_xy[known]) ** 2))) if known.any() else np.nan
    sigma = sigma_xy.mean(axis=-1)
    floor = float(np.quantile(sigma[known], _FLOOR_QUANTILE)) if known.any() else np.nan
    error = np.linalg.norm(difference_xy, axis=-1)
    scores = [row[of] / np.maximum(spread[of], floor) for row, spread, of in zip(error, sigma, known, strict=True)]
    return scale, conformal_quantile(scores, coverage, name), floor, len(scores)


def cross_fitted_coverage(
    difference_xy: FloatArray, sigma_xy: FloatArray, *, coverage: float = COVERAGE, n_folds: int = 7
) -> dict[str, float]:
    """Return the share of nodes of each organ within radii that were fitted without their image.

    Images are dealt into folds in turn; each fold's radii come from all others. So few images say what the radius is
    worth without a part being set aside for it.

    Parameters
    ----------
    difference_xy, sigma_xy, coverage
        As for :func:`fit`.
    n_folds
        How many parts.

    Raises
    ------
    UsageError
        If an organ has too few annotated images outside a fold.
    """
    shares = {}
    for organ in ORGANS:
        difference, sigma = difference_xy[:, organ.nodes], sigma_xy[:, organ.nodes]
        known: npt.NDArray[np.bool_] = np.all(np.isfinite(difference), axis=(-1, -2))
        annotated = np.flatnonzero(known)
        inside: list[FloatArray] = []
        for fold in range(n_folds):
            held = annotated[fold::n_folds]
            others = np.setdiff1d(annotated, held)
            _, factor, floor, _ = _fit_organ(difference[others], sigma[others], coverage, organ.name)
            error = np.linalg.norm(difference[held], axis=-1)
            radius = factor * np.maximum(sigma[held].mean(axis=-1), floor)
            inside.append((error <= radius)[np.isfinite(error)])
        shares[str(organ.name)] = float(np.concatenate(inside).mean())
    return shares


def conformal_quantile(scores: Sequence[FloatArray], coverage: float, name: str = "the data") -> float:
    """Return the least number that holds a score of a new image with at least that probability.

    Every image counts alike, however many scores it has, and a further, unknown image counts as infinite: with n images
    the quantile is taken at ``coverage · (n + 1) / n``.

    Parameters
    ----------
    scores
        For each image its scores [m_i], m_i ≥ 1.
    coverage
        The probability, below 1.
    name
        What the images show, for the error.

    Raises
    ------
    UsageError
        If there are fewer than ``coverage / (1 − coverage)`` images: no finite number will do.

    Examples
    --------
    >>> conformal_quantile([np.array([score]) for score in range(1, 10)], 0.9)
    9.0
    """
    n_images = len(scores)
    level = coverage * (n_images + 1) / max(n_images, 1)
    if not n_images or level > 1 + 1e-9:
        least = int(np.ceil(coverage / (1 - coverage) - 1e-9))
        raise UsageError(
            f"{n_images} annotated images of {name}: too few for a radius that holds {coverage:.0%}; at least {least}"
        )
    values = np.concatenate(scores).astype(np.float64)
    weights = np.concatenate([np.full(len(one), 1 / (n_images * len(one))) for one in scores])
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) >= level - 1e-9
    return float(values[order][int(np.argmax(reached))])


def radius_px(calibration: Calibration, sigma_px: FloatArray) -> FloatArray:
    """Return the radius [n, 120] around each node, in px of the 1024 model frame.

    Parameters
    ----------
    calibration
        Of the network that made the sigmas.
    sigma_px
        Node uncertainty [n, 120] in the same px; NaN stays NaN.
    """
    factor, floor = np.empty(N_NODES), np.empty(N_NODES)
    for organ in ORGANS:
        factor[organ.nodes] = calibration.radius_factor[organ.name]
        floor[organ.nodes] = calibration.floor_px[organ.name]
    return factor * np.maximum(sigma_px, floor)


def assumed_scales() -> FloatArray:
    """Return the factors on published sigmas, float64 [3]: assumed from a figure of the paper, not fitted."""
    return np.full(N_ORGANS, PUBLISHED_SCALE)
