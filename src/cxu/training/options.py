"""What a training run may be told: the recipe. Plain data, checked when made; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, Literal, get_args

from cxu.errors import UsageError

Variant = Literal["igsc", "no-skip"]
Schedule = Literal["cosine", "step"]
Precision = Literal["float32", "bf16"]
DeviceName = Literal["auto", "cpu", "cuda"]
MseOn = Literal["samples", "mean"]
CorruptTeaches = Literal["all", "uncertainty"]

_NO_PART_OF_THE_RESULT: Final = ("device", "checkpoint_minutes", "report_test")


@dataclass(frozen=True)
class AugmentOptions:
    """How strongly images are changed in training; 0 switches a change off.

    Every number is drawn anew for each image, uniformly up to its strength. Lengths are shares of the image's side,
    greys are shares of the range from black to white.

    Attributes
    ----------
    rotation
        Degrees to either side.
    scale, aspect
        Size by e^±scale; width against height by e^±aspect.
    shift
        To either side, along both axes.
    fill
        Share of images that are surrounded by a random grey instead of black where they were moved.
    gamma, contrast
        grey^(e^±gamma); distance from the mean grey times e^±contrast.
    brightness, shading
        Added everywhere; added as a smooth random field.
    noise
        Standard deviation, up to.
    blur
        Standard deviation of a Gaussian, up to, in half of the images.
    inversion, borders, squares
        Share of images that are inverted; get black borders; get one square of one grey.
    border_width, square_size
        Widest border; largest half side of a square.
    corrupt
        Share of images that are damaged badly on top of all this, so that the model learns to be uncertain there.
    corrupt_noise, corrupt_squares, corrupt_size
        Of those: noise up to; up to so many squares, black in half of the cases; largest half side of these.
    """

    rotation: float = 8.0
    scale: float = 0.22
    aspect: float = 0.08
    shift: float = 0.12
    fill: float = 0.1
    gamma: float = 0.6
    contrast: float = 0.3
    brightness: float = 0.15
    shading: float = 0.1
    noise: float = 0.06
    blur: float = 0.006
    inversion: float = 0.05
    borders: float = 0.15
    border_width: float = 0.12
    squares: float = 0.3
    square_size: float = 0.12
    corrupt: float = 0.0
    corrupt_noise: float = 0.4
    corrupt_squares: int = 4
    corrupt_size: float = 0.12

    def __post_init__(self) -> None:
        for one in fields(self):
            if not getattr(self, one.name) >= 0:
                raise UsageError(f"augmentation {one.name} = {getattr(self, one.name)}; expected 0 or more")
        for name in ("fill", "inversion", "borders", "squares", "corrupt"):
            if getattr(self, name) > 1:
                raise UsageError(f"augmentation {name} = {getattr(self, name)}; expected a share of images, 0 to 1")


@dataclass(frozen=True)
class TrainOptions:
    """The recipe of a training run.

    Attributes
    ----------
    variant
        ``igsc``: with image-to-graph skip connections; ``no-skip``: without.
    size, latents, refine
        Side of the network's input, px; size of its latent code; whether two further skip connections, to finer maps,
        refine the positions (igsc only).
    steps, budget_minutes
        How long: one of the two. A budget counts the time of the loop, over all resumes.
    batch_size, shares
        Images a step; data set → its share of every batch. Data sets not named share the rest by their numbers of
        images. Without any, images with and without an annotated heart get half each.
    lr, warmup, schedule, weight_decay, clip
        AdamW: highest learning rate, share of the run to reach it, then along a cosine to 0 or by 0.9 every 20th of the
        run; weight decay; largest norm of the gradient.
    kl_start, kl, kl_ramp
        Weight of the KL term: from, to, reached log-linearly after this share of the run.
    train_samples, energy, mse_on
        Latent samples decoded for each image in training; weight of their energy score; whether squared errors are
        those of every sample or of the samples' mean.
    across
        Weight of squared errors across the annotated contour, beside those along x and y: what a mask shows of them.
    spread
        Whether the network learns to state, for each node, the standard deviation of its error along x and y, by the
        likelihood of its errors. This only looks on: positions are the same with it and without.
    corrupt_teaches
        What images that the augmentation damaged badly are for: ``all``, or the ``uncertainty`` alone, so that the
        network does not learn to draw organs that it cannot see.
    ema
        Decay of the moving average of the weights, per step; 0 keeps none. What is saved is the average.
    precision
        ``bf16`` runs the encoder in bfloat16; the decoder and the losses are float32 always.
    validations, samples
        How many times the validation part is measured in the run, and with how many decodes of an image; the finished
        network is measured with as many as a prediction has.
    start
        Weight file to begin with, of any input size.
    seed
        Of the first weights, the batches, the augmentation and the latent noise.
    device, checkpoint_minutes, report_test
        These don't change the result: where to run; how often the state is saved; whether the finished network is
        measured on the test part.
    """

    variant: Variant = "igsc"
    size: int = 256
    latents: int = 64
    refine: bool = False
    steps: int | None = None
    budget_minutes: float | None = None
    batch_size: int = 8
    shares: Mapping[str, float] = field(default_factory=dict)
    lr: float = 1e-3
    warmup: float = 0.02
    schedule: Schedule = "cosine"
    weight_decay: float = 1e-5
    clip: float = 1.0
    kl_start: float = 1e-5
    kl: float = 1e-3
    kl_ramp: float = 0.7
    train_samples: int = 1
    energy: float = 0.0
    mse_on: MseOn = "mean"
    across: float = 0.0
    spread: bool = False
    corrupt_teaches: CorruptTeaches = "all"
    ema: float = 0.998
    precision: Precision = "bf16"
    validations: int = 20
    samples: int = 20
    start: str | None = None
    seed: int = 0
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    device: DeviceName = "auto"
    checkpoint_minutes: float = 3.0
    report_test: bool = False

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.budget_minutes is None):
            raise UsageError("how long to train: give either a number of steps or a budget of minutes")
        _require(self, "above 0", lambda value: value > 0, "steps", "budget_minutes", "lr", "clip", "kl_start", "kl")
        _require(self, "1 or more", lambda value: value >= 1, "batch_size", "train_samples", "validations", "latents")
        _require(self, "2 or more", lambda value: value >= 2, "samples")
        _require(self, "0 or more", lambda value: value >= 0, "weight_decay", "energy", "across", "seed")
        _require(self, "0 or more", lambda value: value >= 0, "checkpoint_minutes")
        for name in ("refine", "spread", "report_test"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"training option {name} = {getattr(self, name)!r}; expected True or False")
        if self.corrupt_teaches not in get_args(CorruptTeaches):
            names = " or ".join(get_args(CorruptTeaches))
            raise UsageError(f"training option corrupt_teaches = {self.corrupt_teaches!r}; expected {names}")
        if self.corrupt_teaches == "uncertainty" and not (self.spread and self.augment.corrupt):
            raise UsageError(
                "badly damaged images can teach the uncertainty alone only where there are some (--augmentation "
                "corrupt=0.2) and a spread to learn (--spread)"
            )
        if self.refine and self.variant != "igsc":
            raise UsageError("refinement takes features of the image along: it needs the variant igsc")
        _require(self, "0 or more and below 1", lambda value: 0 <= value < 1, "ema", "warmup")
        _require(self, "0 to 1", lambda value: 0 <= value <= 1, "kl_ramp")
        if self.energy and self.train_samples < 2:
            raise UsageError("the energy score compares samples with each other: it needs at least 2 training samples")
        if self.size < 64 or self.size % 32:
            raise UsageError(f"input size {self.size}; expected a multiple of 32, at least 64")
        if any(share < 0 for share in self.shares.values()) or sum(self.shares.values()) > 1 + 1e-9:
            raise UsageError(f"shares {dict(self.shares)}; expected numbers from 0 that add up to 1 at most")

    def recipe(self) -> dict[str, Any]:
        """Return what decides the result, as JSON-able values: what a resumed run must agree on."""
        content = asdict(replace(self, shares=dict(self.shares)))
        return {name: value for name, value in content.items() if name not in _NO_PART_OF_THE_RESULT}


def _require(options: TrainOptions, expected: str, holds: Any, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and not holds(value):
            raise UsageError(f"training option {name} = {value}; expected {expected}")


def parse_augmentation(settings: Iterable[str]) -> AugmentOptions:
    """Return augmentation with ``name=value`` settings changed from their defaults; ``off`` makes all of them 0.

    Examples
    --------
    >>> parse_augmentation(["noise=0.1"]).noise
    0.1
    >>> parse_augmentation(["off", "rotation=3"]).rotation, parse_augmentation(["off", "rotation=3"]).scale
    (3.0, 0.0)
    """
    kinds: dict[str, type[float] | type[int]] = {name: type(value) for name, value in asdict(AugmentOptions()).items()}
    values: dict[str, Any] = {}
    for setting in settings:
        if setting == "off":
            values = {name: kind(0) for name, kind in kinds.items()}
            continue
        name, number = _split_setting(setting, "augmentation")
        if name not in kinds:
            raise UsageError(f"augmentation {name!r} is unknown; expected one of: {', '.join(kinds)}")
        values[name] = kinds[name](number)
    return AugmentOptions(**values)


def parse_shares(settings: Iterable[str]) -> dict[str, float]:
    """Return ``dataset=share`` settings as a mapping.

    Examples
    --------
    >>> parse_shares(["JSRT=0.5"])
    {'JSRT': 0.5}
    """
    return dict(_split_setting(setting, "share") for setting in settings)


def _split_setting(setting: str, what: str) -> tuple[str, float]:
    name, equals, number = setting.partition("=")
    try:
        if equals:
            return name, float(number)
    except ValueError:
        pass
    raise UsageError(f"{what} {setting!r}; expected NAME=NUMBER, such as {'JSRT' if what == 'share' else 'noise'}=0.5")
