"""The gate: whether an image is one that the network can be asked about. ok, review or reject, and why.

Sigma alone is no gate: a network can be certain of nonsense. So several signals are measured on every image, each
compared with its own values on films that the network was not trained on, and the worst one decides. A signal is 0 at
the median of those films, 1 where review begins and 2 where reject begins, linear between; the score is the largest.

The distances from what training looked like are Mahalanobis distances (Lee et al., NeurIPS 2018); the orientation is
told by a linear classifier on the encoder's maps, trained on turned and mirrored copies (Hendrycks et al., NeurIPS
2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cxu.anatomy import LEFT_LUNG, N_NODES, RIGHT_LUNG
from cxu.contour import outward_normals
from cxu.frame import MODEL_SIZE

FloatArray = npt.NDArray[np.floating]
Quality = Literal["ok", "review", "reject"]

REVIEW: Final = 1.0
REJECT: Final = 2.0
# Modality in DICOM (PS3.3, C.7.3.1.1.1): devices that make no projection of a chest.
OTHER_MODALITIES: Final = (
    *("BI", "CT", "ECG", "EPS", "ES", "GM", "IVUS", "MG", "MR", "NM", "OCT", "OP", "OPT", "PT", "PX", "RTDOSE"),
    *("RTIMAGE", "SEG", "SM", "TG", "US", "XC"),
)
# Of ViewPosition (PS3.3, C.8.11.7 and C.8.1.2): the side views.
LATERAL_VIEWS: Final = ("LATERAL", "LAT", "LL", "RL", "LLD", "RLD", "ML", "LM")

# name of a signal → what it says of an image when it is the worst
REASONS: Final = {
    "image_score": "landmarks are uncertain",
    "latent_sigma": "latent code is uncertain",
    "latent_distance": "latent code is unlike that of training films",
    "appearance": "looks unlike training films",
    "orientation": "seems turned or mirrored",
    "shape": "contours are implausible",
    "contrast": "contours do not follow edges of the image",
    "sides": "sides seem exchanged",
}
ORIENTATIONS: Final = (
    "upright",
    "turned by 90° to the left",
    "upside down",
    "turned by 90° to the right",
    "mirrored",
    "mirrored and turned by 90° to the left",
    "mirrored and upside down",
    "mirrored and turned by 90° to the right",
)
_CONTRAST_STEPS_PX: Final = (10.0, 18.0, 26.0)  # from the contour, of the 1024 frame


class Evidence(NamedTuple):
    """What is looked at in n images.

    ``mean_xy`` [n, 120, 2] landmarks in 0 … 1; ``sigma_px`` [n, 120] node uncertainty, px of the 1024 frame, NaN where
    there is none; ``mu`` and ``latent_sigma`` [n, Z]; ``features`` [n, F] means of the encoder's last map over a
    coarse grid; ``contrast`` [n] of :func:`contour_contrast`; ``side_odds`` [n] of
    :func:`cxu.model.sides.side_odds`.
    """

    mean_xy: FloatArray
    sigma_px: FloatArray
    mu: FloatArray
    latent_sigma: FloatArray
    features: FloatArray
    contrast: FloatArray
    side_odds: FloatArray


class Verdict(NamedTuple):
    """What the gate says of an image: its quality, the score behind it, and why it is not ok (None where it is)."""

    quality: Quality
    score: float
    reason: str | None


@dataclass(frozen=True, eq=False)
class Space:
    """Where training films lie in a space of features.

    Attributes
    ----------
    centre
        [F].
    directions
        [k, F], orthogonal, each divided by the standard deviation of films along it.
    beside
        How far films lie from all of them, root mean square.
    """

    centre: FloatArray
    directions: FloatArray
    beside: float

    def distance(self, values: FloatArray) -> FloatArray:
        """Return the distance [n] of values [n, F] from the centre, in standard deviations; about 1 for training."""
        offset = values - self.centre
        along = offset @ self.directions.T
        spread = np.linalg.norm(self.directions, axis=1, keepdims=True)
        units = self.directions / spread
        rest = np.linalg.norm(offset - (along / spread.T) @ units, axis=1) / self.beside
        return np.sqrt((np.square(along).sum(axis=1) + np.square(rest)) / (len(self.directions) + 1))


def fit_space(values: FloatArray, n_directions: int) -> Space:
    """Return the space of training values [n, F]: their mean, first principal directions, and what is left over."""
    centre = values.mean(axis=0)
    _, scale, units = np.linalg.svd(values - centre, full_matrices=False)
    k = min(n_directions, int((scale > 1e-9 * scale[0]).sum()))
    sd = scale[:k] / np.sqrt(len(values))
    directions = units[:k] / sd[:, None]
    rest = (values - centre) - ((values - centre) @ units[:k].T) @ units[:k]
    beside = float(np.sqrt(np.square(rest).sum(axis=1).mean()))
    return Space(centre, directions, max(beside, 1e-6 * float(scale[0])))


@dataclass(frozen=True, eq=False)
class Gate:
    """What was fitted to one network.

    Attributes
    ----------
    latents, appearance, shapes
        Where its training films lie: latent means, features, and landmarks brought to one place and size.
    orientation
        Weights [8, F] and offsets [8] of the classes of :data:`ORIENTATIONS`, for features brought to mean 0 and
        standard deviation 1 by ``feature_mean`` and ``feature_sd`` [F].
    limits
        Signal → its median on films that were not trained on, where review begins, where reject begins.
    """

    latents: Space
    appearance: Space
    shapes: Space
    orientation_weights: FloatArray
    orientation_offsets: FloatArray
    feature_mean: FloatArray
    feature_sd: FloatArray
    limits: Mapping[str, tuple[float, float, float]]

    def signals(self, evidence: Evidence) -> dict[str, FloatArray]:
        """Return every signal [n]; larger is worse, NaN where it cannot be told."""
        return {
            "image_score": evidence.sigma_px.mean(axis=1),
            "latent_sigma": evidence.latent_sigma.mean(axis=1),
            "latent_distance": self.latents.distance(evidence.mu),
            "appearance": self.appearance.distance(evidence.features),
            "orientation": -np.log(np.maximum(self.orientations(evidence.features)[:, 0], 1e-12)),
            "shape": self.shapes.distance(place_shapes(evidence.mean_xy)),
            "contrast": -evidence.contrast,
            "sides": -evidence.side_odds,
        }

    def orientations(self, features: FloatArray) -> FloatArray:
        """Return the probability [n, 8] of each of :data:`ORIENTATIONS`."""
        scaled = (features - self.feature_mean) / self.feature_sd
        logits = scaled @ self.orientation_weights.T + self.orientation_offsets
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def judge(self, evidence: Evidence, said: Sequence[str | None]) -> list[Verdict]:
        """Return the verdict on each of n images; ``said`` has what :func:`reason_of_film` returned for each."""
        signals = self.signals(evidence)
        scores = {name: grade(signals[name], self.limits[name]) for name in REASONS}
        likeliest = self.orientations(evidence.features).argmax(axis=1)
        return [
            _verdict(
                {name: float(values[row]) for name, values in scores.items()}, ORIENTATIONS[likeliest[row]], reason
            )
            for row, reason in enumerate(said)
        ]


def _verdict(scores: Mapping[str, float], orientation: str, said: str | None) -> Verdict:
    worst = _worst(scores)
    if said is not None:
        return Verdict("reject", max(REJECT, worst), said)
    if worst < REVIEW:
        return Verdict("ok", worst, None)
    reasons = [
        _reason(name, orientation)
        for name in sorted(REASONS, key=lambda name: -np.nan_to_num(scores[name], nan=0.0))
        if scores[name] >= REVIEW
    ]
    return Verdict("reject" if worst >= REJECT else "review", worst, "; ".join(reasons))


def _worst(scores: Mapping[str, float]) -> float:
    known = [score for score in scores.values() if np.isfinite(score)]
    return max(known, default=0.0)


def _reason(name: str, orientation: str) -> str:
    if name == "orientation" and orientation != ORIENTATIONS[0]:
        return f"seems {orientation}"
    return REASONS[name]


def reason_of_film(view: str | None, modality: str | None, *, is_flat: bool = False) -> str | None:
    """Return why an image is rejected whatever the network finds in it, or None.

    Parameters
    ----------
    view, modality
        ViewPosition and Modality of DICOM, None where the file does not say.
    is_flat
        Whether every pixel has the same value.

    Examples
    --------
    >>> reason_of_film("ll", "DX")
    'the file says ll: not a frontal view'
    >>> reason_of_film("PA", "CT")
    'the file says CT: not a radiograph'
    >>> reason_of_film(None, None, is_flat=True)
    'every pixel has the same value: there is nothing to be seen'
    >>> reason_of_film("PA", "DX"), reason_of_film(None, None)
    (None, None)
    """
    if is_flat:
        return "every pixel has the same value: there is nothing to be seen"
    if view is not None and view.strip().upper() in LATERAL_VIEWS:
        return f"the file says {view.strip()}: not a frontal view"
    if modality is not None and modality.strip().upper() in OTHER_MODALITIES:
        return f"the file says {modality.strip()}: not a radiograph"
    return None


def grade(values: FloatArray, limits: tuple[float, float, float]) -> FloatArray:
    """Return how bad values [n] of a signal are: 0 at the median and below, 1 and 2 where review and reject begin.

    Examples
    --------
    >>> grade(np.array([5.0, 15.0, 20.0, 40.0]), (10.0, 20.0, 30.0))
    array([0. , 0.5, 1. , 3. ])
    """
    median, review, reject = limits
    below = (values - median) / (review - median)
    above = 1 + (values - review) / (reject - review)
    return np.maximum(np.where(values < review, below, above), 0.0)


def place_shapes(mean_xy: FloatArray) -> FloatArray:
    """Return landmarks [n, 120, 2] brought to one place and size, flattened to [n, 240].

    The nodes of the lungs have their centre at 0 and a mean square distance of 1 from it. They are not turned, since a
    turned chest is no plausible one.
    """
    lungs = mean_xy[:, RIGHT_LUNG.nodes.start : LEFT_LUNG.nodes.stop]
    centre = lungs.mean(axis=1, keepdims=True)
    size = np.sqrt(np.square(lungs - centre).sum(axis=-1).mean(axis=1))
    placed = (mean_xy - centre) / np.maximum(size, 1e-6)[:, None, None]
    return placed.reshape(-1, 2 * N_NODES)


def contour_contrast(pixels: FloatArray, mean_xy: FloatArray) -> float:
    """Return how much brighter an image is just outside the lungs than just inside them, −1 to 1; a film has about 0.2.

    Parameters
    ----------
    pixels
        [S, S] in 0 … 1, as the network takes it.
    mean_xy
        Landmarks [120, 2] in 0 … 1; pixel = point · S.
    """
    side = len(pixels)
    steps = np.array(_CONTRAST_STEPS_PX) / MODEL_SIZE
    differences = []
    for organ in (RIGHT_LUNG, LEFT_LUNG):
        ring = np.asarray(mean_xy[organ.nodes], np.float64)
        away = outward_normals(ring)[:, None] * steps[:, None]  # [N, 3, 2]
        outside, inside = (_grey_at(pixels, (ring[:, None] + sign * away) * side) for sign in (1, -1))
        differences.append((outside - inside).ravel())
    return float(np.concatenate(differences).mean())


def _grey_at(pixels: FloatArray, points_xy: FloatArray) -> FloatArray:
    last = len(pixels) - 1
    column, row = (np.clip(np.rint(points_xy[..., axis]), 0, last).astype(np.int64) for axis in (0, 1))
    return pixels[row, column]
