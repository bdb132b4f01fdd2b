"""A training run, from a folder of images to a weight file; continued by the same call after any interruption."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from cxu.errors import CxuError, UsageError
from cxu.frame import MODEL_SIZE
from cxu.model.device import freed_memory_kept
from cxu.model.hybridgnet import HybridGNet
from cxu.model.sampling import DEFAULT_SAMPLES
from cxu.training import interrupts, record
from cxu.training.checkpoint import State, read_checkpoint, write_checkpoint
from cxu.training.data import TrainingFolder, load_images, read_folder
from cxu.training.errors import measured_error_factor
from cxu.training.losses import Losses
from cxu.training.metrics import Landmarks, Scores, predict, score_datasets
from cxu.training.options import TrainOptions
from cxu.training.schedule import image_chances, kl_weight, learning_rate
from cxu.training.start import first_model
from cxu.training.trainer import Trainer, TrainingData

_NOT_FINITE: Final = (
    "step {step}: loss or weights are no finite numbers; begin anew in another folder with a lower learning rate, or "
    "in float32. {out} keeps what was measured until then"
)
_CUDA_HINT: Final = "no CUDA device is there; leave out the device, or say cpu"


@dataclass(frozen=True)
class Progress:
    """What a run reports: ``line`` is the newest line of the table, where a validation has just been made."""

    step: int
    fraction: float
    seconds: float
    images_per_second: float
    line: dict[str, float | int | None] | None = None


@dataclass(frozen=True)
class TrainReport:
    """What a run ended with."""

    out: Path
    weights: Path
    steps: int
    seconds: float
    resumed_at: int
    validation: dict[str, Scores]
    test: dict[str, Scores] | None


@dataclass
class _Clock:
    """The time of the loop, over all resumes."""

    before: float
    start: float

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.start


def train(
    data: str | Path,
    out: str | Path,
    options: TrainOptions,
    *,
    reading: Callable[[int], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrainReport:
    """Train a network and write ``weights.safetensors``, a table of metrics and the record of the run into ``out``.

    The same call continues a run that was interrupted, and returns at once where it is finished. With a number of steps
    on the CPU and the same threads, a continued run ends with the same weights bit for bit.

    Parameters
    ----------
    data
        Folder with ``landmarks.npz``, ``index.csv`` and ``images/``.
    out
        Folder of the run.
    options
        The recipe.
    reading
        Called before images are read, with their number.
    progress
        Called after every step.

    Raises
    ------
    UsageError
        If the options cannot be met by the data, or ``out`` holds another run.
    MissingInputError, FormatError, ImageError
        If the data is not there or not as documented.
    CxuError
        If the loss is no longer a finite number.
    """
    out, folder = Path(out), read_folder(Path(data))
    device = pick_device(options)
    training = folder.part("train")
    if not training.rows:
        raise UsageError(f"{data} has no row of the split 'train'")
    if reading:
        reading(len(training.rows))
    images = _load(training, options)
    identity = {**options.recipe(), "data": record.landmarks_digest(folder), "images": record.images_digest(images)}
    state = read_checkpoint(out, identity)
    chances = image_chances([row.dataset for row in training.rows], training.has_heart.tolist(), options.shares)
    targets = torch.from_numpy(training.landmarks_xy / MODEL_SIZE)
    trainer = Trainer(
        first_model(options).to(device), TrainingData(images.to(device), targets.to(device), chances), options
    )
    validation = _Validation(folder.part("val"), options)
    record.begin(out, folder, options)
    run = _Run(trainer, validation, out, identity, state)
    run.go(progress)
    return _finish(run, folder, options, resumed_at=state.step if state else 0)


def pick_device(options: TrainOptions) -> torch.device:
    """Return the device to train on: with ``auto`` a CUDA device where there is one."""
    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        raise UsageError(_CUDA_HINT)
    return torch.device("cuda" if there and options.device != "cpu" else "cpu")


def _load(part: TrainingFolder, options: TrainOptions) -> Tensor:
    return load_images(part.root, [row.name for row in part.rows], options.size)


class _Validation:
    """A held-out part, its images read when first needed."""

    def __init__(self, part: TrainingFolder, options: TrainOptions) -> None:
        self._part, self._options = part, options
        self._images: Tensor | None = None

    def measure(self, model: HybridGNet, n_samples: int) -> dict[str, Scores]:
        """Return the scores of all images and of each data set; nothing without images."""
        if not self._part.rows:
            return {}
        mean_xy, std_xy = self._predict(model, n_samples)
        names = [row.dataset for row in self._part.rows]
        return score_datasets(mean_xy, std_xy.mean(axis=-1), self._part.landmarks_xy, names)

    def errors(self, model: HybridGNet) -> Tensor:
        """Return errors in standard deviations [n, 120, 2], NaN where not annotated."""
        mean_xy, std_xy = self._predict(model, DEFAULT_SAMPLES)
        return torch.from_numpy((mean_xy - self._part.landmarks_xy) / std_xy)

    def _predict(self, model: HybridGNet, n_samples: int) -> tuple[Landmarks, Landmarks]:
        if self._images is None:
            self._images = _load(self._part, self._options)
        return predict(model, self._images, n_samples=n_samples)


class _Run:
    """The loop and what it keeps between steps."""

    def __init__(
        self, trainer: Trainer, validation: _Validation, out: Path, identity: dict[str, Any], state: State | None
    ) -> None:
        self.trainer, self.validation, self.out, self.identity = trainer, validation, out, identity
        self.options = trainer.options
        self.lines: list[dict[str, float | int | None]] = []
        self.sums, self.since = torch.zeros(len(Losses._fields), device=trainer.device), 0
        self.clock = _Clock(0.0, time.monotonic())
        self.saved_at = 0.0
        self.new_steps, self.stepping = 0, 0.0  # of this process, with the seconds they took
        if state:
            trainer.restore(state)
            self.lines, self.since = state.lines, state.since
            self.sums.copy_(state.sums)
            self.clock.before = self.saved_at = state.seconds

    @property
    def fraction(self) -> float:
        """How much of the run is done, 0 to 1."""
        if self.options.steps is not None:
            return min(self.trainer.step / self.options.steps, 1.0)
        assert self.options.budget_minutes is not None
        return min(self.clock.seconds / (60 * self.options.budget_minutes), 1.0)

    def go(self, progress: Callable[[Progress], None] | None) -> None:
        """Train to the end, or until interrupted: then the state is saved and KeyboardInterrupt raised."""
        self.clock.start = time.monotonic()
        kept = freed_memory_kept() if self.trainer.device.type == "cpu" else contextlib.nullcontext()
        with interrupts.deferred() as interrupted, kept:
            while (fraction := self.fraction) < 1:
                self._advance(fraction)
                line = self._validate(fraction) if self._is_due(fraction) else None
                if progress:
                    progress(self._report(line))
                if interrupted():
                    self.save()
                    raise KeyboardInterrupt
                if self.clock.seconds - self.saved_at >= 60 * self.options.checkpoint_minutes:
                    self.save()
        self.save()

    def _advance(self, fraction: float) -> None:
        start = time.monotonic()
        self.sums += self.trainer.advance(fraction)
        self.since += 1
        self.new_steps += 1
        self.stepping += time.monotonic() - start

    def _is_due(self, before: float) -> bool:
        count = self.options.validations
        return math.floor(self.fraction * count + 1e-9) > math.floor(before * count + 1e-9)

    def _validate(self, fraction: float) -> dict[str, float | int | None]:
        means = (self.sums / self.since).tolist()
        if not all(map(math.isfinite, means)):
            raise CxuError(_NOT_FINITE.format(step=self.trainer.step, out=self.out))
        line = {
            "step": self.trainer.step,
            "seconds": round(self.clock.seconds, 1),
            "lr": learning_rate(self.options, fraction),
            "kl_weight": kl_weight(self.options, fraction),
            **dict(zip((f"loss_{name}" for name in Losses._fields), means, strict=True)),
            **record.flat_scores(self.validation.measure(self.trainer.finished_model(), self.options.samples)),
        }
        self.lines.append(line)
        self.sums.zero_()
        self.since = 0
        record.write_table(self.out, self.lines)
        return line

    def _report(self, line: dict[str, float | int | None] | None) -> Progress:
        rate = self.new_steps * self.options.batch_size / max(self.stepping, 1e-9)
        return Progress(self.trainer.step, self.fraction, self.clock.seconds, rate, line)

    def save(self) -> None:
        """Write the state, whole or not at all."""
        self.saved_at = self.clock.seconds
        state = self.trainer.state(self.saved_at, self.sums, self.since, self.lines)
        write_checkpoint(self.out, state, self.identity)


def _finish(run: _Run, folder: TrainingFolder, options: TrainOptions, *, resumed_at: int) -> TrainReport:
    """Measure the finished network and write it with its record."""
    model = run.trainer.finished_model()
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise CxuError(_NOT_FINITE.format(step=run.trainer.step, out=run.out))
    if model.config.spread and folder.part("val").rows:
        errors = run.validation.errors(model)
        model.spread.error_factor.copy_(measured_error_factor(errors, model.spread.error_factor.cpu()))
    validation = run.validation.measure(model, DEFAULT_SAMPLES)
    test = _Validation(folder.part("test"), options).measure(model, DEFAULT_SAMPLES) if options.report_test else None
    scores = {"validation": validation, **({"test": test} if test is not None else {})}
    facts = record.facts(folder, options, run.trainer.step, run.clock.seconds, scores)
    weights = record.end(run.out, model, facts, run.lines)
    return TrainReport(run.out, weights, run.trainer.step, run.clock.seconds, resumed_at, validation, test)
