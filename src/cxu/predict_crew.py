"""Who predicts: this process, processes of this machine each with a network of its own, or the workers of a cluster.

All of them write parts into the folder of predictions, and tell what became of the images; nothing else comes back.
"""

from __future__ import annotations

import functools
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch

from cxu import files
from cxu.engine import run_shards, this_worker
from cxu.errors import FormatError
from cxu.model.device import find_device
from cxu.model.reference import reference_of
from cxu.model.weight_source import load
from cxu.model.weights import BUNDLED, Weights
from cxu.predict import READERS, Prediction, PredictOptions, Predictor, Rejected, predict_films, prediction_rows
from cxu.predict_folder import PredictFolder
from cxu.predict_plan import PlannedImage
from cxu.sharing import check_arrived, check_shared

Advance = Callable[[int], None]

_PART_SECONDS: Final = 15.0  # what an interruption may cost
_PART_ROWS: Final = 1024
_PART_ROWS_SAMPLES: Final = 64
_CHUNK_IMAGES: Final = 512
_CHUNKS_EACH: Final = 8  # or more, so that no worker has much to do when the others are done
_CLUSTER_WORKERS: Final = 8  # as chunks are cut: they may come and go

_one_at_a_time = threading.Lock()  # a network takes all threads of its process


@dataclass
class Outcome:
    """What became of images, by their positions in the plan.

    Attributes
    ----------
    predicted
        Those that have a row now.
    rejected
        Those that have none, and why.
    turned
        Names of the files that hold a negative.
    batch_size
        Images at a time, at the end; None where there were none.
    parts
        The files that were written.
    seconds
        How long it took.
    """

    predicted: list[int] = field(default_factory=list)
    rejected: dict[int, Rejected] = field(default_factory=dict)
    turned: list[str] = field(default_factory=list)
    batch_size: int | None = None
    parts: list[Path] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Outcome) -> None:
        """Take in what became of more images."""
        self.predicted += other.predicted
        self.rejected |= other.rejected
        self.turned += other.turned
        sizes = [size for size in (self.batch_size, other.batch_size) if size is not None]
        self.batch_size = min(sizes, default=None)
        self.parts += other.parts


@dataclass(frozen=True)
class Crew:
    """Who predicts, and with what.

    Attributes
    ----------
    weights
        The network. Other processes load it themselves, from its file.
    options
        What is asked of every image.
    devices
        From :func:`cxu.model.device.find_devices`: the k-th process takes the k-th, and so on round. In a cluster each
        worker finds the device of that name on its own machine.
    batch_size
        Images at a time; None chooses.
    workers, scheduler
        Processes to use, or a Dask cluster: see :func:`cxu.engine.open_pool`.
    """

    weights: Weights
    options: PredictOptions
    devices: tuple[str, ...] = ("cpu",)
    batch_size: int | None = None
    workers: int = 1
    scheduler: str | None = None

    def __str__(self) -> str:
        if self.scheduler is not None:
            return f"the cluster at {self.scheduler}"
        several = f"{self.workers} processes on " if self.workers > 1 else ""
        return several + ", ".join(self.devices)

    def predict(self, images: Mapping[int, PlannedImage], folder: PredictFolder, advance: Advance) -> Outcome:
        """Predict images, given by their positions in the plan, into parts of a folder.

        ``advance`` is called with how many images more are done.
        """
        if not images:
            return Outcome()
        if self.workers == 1 and self.scheduler is None:
            predictor = Predictor(self.weights, self.options, find_device(self.devices[0]), self.batch_size)
            return predict_parts(images, folder, predictor, advance=advance)
        outcome, chunks = Outcome(), list(self._chunks(images, folder))
        with closing(run_shards(_predict_chunk, chunks, workers=self.workers, scheduler=self.scheduler)) as results:
            for chunk, done in zip(chunks, results, strict=True):
                for part in done.parts:
                    check_arrived(part)
                outcome.add(done)
                advance(len(chunk.images))
        return outcome

    def _chunks(self, images: Mapping[int, PlannedImage], folder: PredictFolder) -> Iterator[_Chunk]:
        workers = self.workers if self.scheduler is None else _CLUSTER_WORKERS
        size = min(_CHUNK_IMAGES, -(-len(images) // (workers * _CHUNKS_EACH)))
        network, places = _Network.of(self.weights), list(images.items())
        for start in range(0, len(places), size):
            some = dict(places[start : start + size])
            yield _Chunk(
                folder.out.absolute(), some, network, self.options, self.devices, self.batch_size, bool(self.scheduler)
            )


def predict_parts(
    images: Mapping[int, PlannedImage],
    folder: PredictFolder,
    predictor: Predictor,
    *,
    group: str = "",
    readers: int = READERS,
    advance: Advance = lambda _: None,
) -> Outcome:
    """Predict images, given by their positions in the plan, into parts of a folder, here.

    Parameters
    ----------
    images, folder, predictor
        What, where and how.
    group
        See :meth:`cxu.predict_folder.PredictFolder.add`.
    readers
        Threads that read files.
    advance
        Called with how many images more are done.
    """
    outcome = Outcome()
    waiting: dict[int, Prediction] = {}
    reference = reference_of(predictor.weights.model_id)
    most = _PART_ROWS_SAMPLES if predictor.options.keep_samples else _PART_ROWS
    written = time.monotonic()

    def write_part() -> None:
        if waiting:
            found = list(waiting.values())
            rows = prediction_rows(found, predictor.weights, predictor.options, reference)
            outcome.parts.append(folder.add(rows, [one.stamp for one in found], list(waiting), group))
            waiting.clear()

    try:
        results = predict_films(images.values(), predictor, readers=readers)
        for position, result in zip(images, results, strict=True):
            if isinstance(result, Rejected):
                outcome.rejected[position] = result
            else:
                waiting[position] = result
                outcome.predicted.append(position)
                outcome.turned += [result.image.file.name] if result.film.turned else []
            if len(waiting) >= most or time.monotonic() - written > _PART_SECONDS:
                write_part()
                written = time.monotonic()
            advance(1)
    finally:
        write_part()
    outcome.batch_size = predictor.batch_size
    return outcome


@dataclass(frozen=True)
class _Network:
    """Where a worker finds the weights: ``spec`` means the same on every machine."""

    spec: str
    origin: str
    model_id: str
    repo: str | None
    revision: str | None

    @classmethod
    def of(cls, weights: Weights) -> _Network:
        is_bundled = weights.repo is None and weights.origin.partition(":")[0] == BUNDLED
        spec = weights.origin if is_bundled else str(weights.path.absolute())
        return cls(spec, weights.origin, weights.model_id, weights.repo, weights.revision)

    def load(self) -> Weights:
        """Load the weights, and make sure that they are those of the process that asked."""
        found = load(self.spec)
        if found.model_id != self.model_id:
            raise FormatError(
                f"weights {self.spec}: on {platform.node()} another file than where the command was given "
                f"({found.model_id[:12]}, not {self.model_id[:12]})"
            )
        return replace(found, origin=self.origin, repo=self.repo, revision=self.revision)


@dataclass(frozen=True)
class _Chunk:
    """Images that one worker predicts before it tells of them."""

    out: Path
    images: Mapping[int, PlannedImage]
    network: _Network
    options: PredictOptions
    devices: tuple[str, ...]
    batch_size: int | None
    is_remote: bool

    @property
    def group(self) -> str:
        """Name of the chunk's parts: the same chunk, given to another worker, has the same."""
        return files.hash_of([[image.source.name, image.image_id] for image in self.images.values()])[:12]


def _predict_chunk(chunk: _Chunk) -> Outcome:
    """Predict a chunk in a worker, less what an earlier one that was lost has done of it."""
    if chunk.is_remote:
        _check_shared(chunk)
    with _one_at_a_time:
        worker = this_worker()
        device = chunk.devices[worker.number % len(chunk.devices)]
        predictor = _predictor(chunk.network, chunk.options, device, chunk.batch_size, worker.threads)
        folder = PredictFolder(chunk.out)
        there = folder.keys_of_group(chunk.group)
        done = [at for at, image in chunk.images.items() if (image.source.name, image.image_id) in there]
        left = {at: image for at, image in chunk.images.items() if at not in done}
        readers = min(READERS, worker.threads or READERS)
        outcome = predict_parts(left, folder, predictor, group=chunk.group, readers=readers)
    outcome.predicted = sorted([*done, *outcome.predicted])
    return outcome


def _check_shared(chunk: _Chunk) -> None:
    check_shared([chunk.out / files.RECORD], "the output folder")
    check_shared((image.file.path for image in chunk.images.values()), "the images")
    if chunk.network.spec.partition(":")[0] != BUNDLED:
        check_shared([Path(chunk.network.spec)], "the weights")


@functools.lru_cache(maxsize=1)
def _predictor(
    network: _Network, options: PredictOptions, device_name: str, batch_size: int | None, threads: int | None
) -> Predictor:
    """Return the predictor of a worker process, the same for all its chunks."""
    device = find_device(device_name)
    if device.type == "cpu" and threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # else memory of the first GPU is taken too
    return Predictor(network.load(), options, device, batch_size)
