"""``cxu train``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxu.cli._options import JsonOption
from cxu.cli._output import Output, make_table
from cxu.training.options import CorruptTeaches, DeviceName, MseOn, Precision, Schedule, TrainOptions, Variant

if TYPE_CHECKING:
    from cxu.training.loop import Progress, TrainReport

EXAMPLE = "cxu train /data/train --out run/ --size 256 --budget 40"

_DEFAULTS = TrainOptions(steps=1)


def command(
    data: Annotated[Path, typer.Argument(help="Folder with landmarks.npz, index.csv and images/.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run: weights, metrics, checkpoint.")],
    variant: Annotated[
        Variant, typer.Option("--variant", help="With image-to-graph skip connections (igsc), or without.")
    ] = _DEFAULTS.variant,
    size: Annotated[int, typer.Option("--size", help="Side of the network's input, px: a multiple of 32.")] = (
        _DEFAULTS.size
    ),
    latents: Annotated[int, typer.Option("--latents", help="Size of the latent code.")] = _DEFAULTS.latents,
    refine: Annotated[
        bool, typer.Option("--refine", help="Refine positions by two further skip connections (igsc).")
    ] = False,
    budget: Annotated[float | None, typer.Option("--budget", help="Minutes to train, over all resumes.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps to train, instead of --budget.")] = None,
    start: Annotated[
        Path | None, typer.Option("--start", help="Weights to begin with, of any input size.", show_default="new ones")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images a step.")] = _DEFAULTS.batch_size,
    share: Annotated[
        list[str] | None,
        typer.Option(
            "--share",
            metavar="DATASET=SHARE",
            help="Share of a data set in every batch; may be repeated.",
            show_default="half with a heart, half without",
        ),
    ] = None,
    lr: Annotated[float, typer.Option("--lr", help="Highest learning rate.")] = _DEFAULTS.lr,
    schedule: Annotated[Schedule, typer.Option("--schedule", help="How the learning rate falls.")] = _DEFAULTS.schedule,
    warmup: Annotated[float, typer.Option("--warmup", help="Share of the run in which it rises.")] = _DEFAULTS.warmup,
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Of AdamW.")] = _DEFAULTS.weight_decay,
    kl: Annotated[float, typer.Option("--kl", help="Weight of the KL term at the end.")] = _DEFAULTS.kl,
    kl_start: Annotated[float, typer.Option("--kl-start", help="Weight of the KL term at first.")] = (
        _DEFAULTS.kl_start
    ),
    kl_ramp: Annotated[float, typer.Option("--kl-ramp", help="Share of the run it takes to the end's weight.")] = (
        _DEFAULTS.kl_ramp
    ),
    energy: Annotated[
        float, typer.Option("--energy", help="Weight of the energy score: rewards a spread that matches the error.")
    ] = _DEFAULTS.energy,
    train_samples: Annotated[
        int, typer.Option("--train-samples", help="Latent samples decoded for each image in training.")
    ] = _DEFAULTS.train_samples,
    mse_on: Annotated[
        MseOn, typer.Option("--mse-on", help="Squared errors of every training sample, or of their mean.")
    ] = _DEFAULTS.mse_on,
    across: Annotated[
        float, typer.Option("--across", help="Weight of squared errors across the contour.")
    ] = _DEFAULTS.across,
    spread: Annotated[
        bool, typer.Option("--spread", help="Learn for each node how far from the truth it is to be expected.")
    ] = False,
    corrupt_teaches: Annotated[
        CorruptTeaches,
        typer.Option("--corrupt-teaches", help="What badly damaged images teach: all, or the uncertainty alone."),
    ] = _DEFAULTS.corrupt_teaches,
    ema: Annotated[float, typer.Option("--ema", help="Decay of the weights' moving average; 0: none.")] = _DEFAULTS.ema,
    augmentation: Annotated[
        list[str] | None,
        typer.Option(
            "--augmentation",
            metavar="NAME=VALUE",
            help="Change a strength of the augmentation, or 'off'; may be repeated.",
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option("--precision", help="Of the encoder.")] = _DEFAULTS.precision,
    device: Annotated[DeviceName, typer.Option("--device", help="Where to train.")] = _DEFAULTS.device,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = _DEFAULTS.seed,
    validations: Annotated[
        int, typer.Option("--validations", help="How often the validation part is measured in the run.")
    ] = _DEFAULTS.validations,
    samples: Annotated[int, typer.Option("--samples", help="Decodes of an image in validation.")] = _DEFAULTS.samples,
    checkpoint_minutes: Annotated[
        float, typer.Option("--checkpoint-minutes", help="How often the state is saved.")
    ] = _DEFAULTS.checkpoint_minutes,
    report_test: Annotated[
        bool, typer.Option("--report-test", help="At the end, measure the finished network on the test part too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a network on annotated radiographs.

    The same command continues a run that was interrupted. Rows of the split 'test' are never used, and only read with
    --report-test.
    """
    from cxu.training.options import parse_augmentation, parse_shares

    options = TrainOptions(
        variant=variant,
        size=size,
        latents=latents,
        refine=refine,
        steps=steps,
        budget_minutes=budget,
        batch_size=batch_size,
        shares=parse_shares(share or ()),
        lr=lr,
        warmup=warmup,
        schedule=schedule,
        weight_decay=weight_decay,
        kl_start=kl_start,
        kl=kl,
        kl_ramp=kl_ramp,
        train_samples=train_samples,
        energy=energy,
        mse_on=mse_on,
        across=across,
        spread=spread,
        corrupt_teaches=corrupt_teaches,
        ema=ema,
        precision=precision,
        validations=validations,
        samples=samples,
        start=str(start) if start else None,
        seed=seed,
        augment=parse_augmentation(augmentation or ()),
        device=device,
        checkpoint_minutes=checkpoint_minutes,
        report_test=report_test,
    )
    output = Output(as_json=as_json)
    report = _run(output, data, out, options)
    if report.resumed_at:
        output.say(f"continued at step {report.resumed_at:,}")
    output.result(_as_json(report), *_summary(report))


def _run(output: Output, data: Path, out: Path, options: TrainOptions) -> TrainReport:
    from cxu.training import train

    unit, total = ("steps", options.steps) if options.steps else ("seconds", int(60 * (options.budget_minutes or 0)))
    done = 0
    with output.progress("training", total, unit) as advance:

        def tell(now: Progress) -> None:
            nonlocal done
            reached = int(now.step if options.steps else now.seconds)
            advance(reached - done)
            done = reached
            if now.line:
                output.say(_line(now))

        return train(data, out, options, reading=lambda count: output.say(f"reading {count:,} images"), progress=tell)


def _line(now: Progress) -> str:
    line = now.line or {}
    names = {"val_mse_px2": "MSE {:.0f} px²", "val_dice_lungs": "lungs {:.3f}", "val_dice_heart": "heart {:.3f}",
             "val_pearson": "Pearson {:.2f}", "val_sigma_px": "sigma {:.1f} px"}  # fmt: skip
    scores = [text.format(line[name]) for name, text in names.items() if line.get(name) is not None]
    return f"step {now.step:,} · {now.fraction:.0%} · {now.images_per_second:.0f} images/s · " + ", ".join(
        [f"loss {line['loss_points']:.2g}", *scores]
    )


def _summary(report: TrainReport) -> list[Any]:
    columns = ["part", "data set", "images", "MSE px²", "error px", "Dice lungs", "Dice heart", "Pearson", "sigma px"]
    parts = {"validation": report.validation, **({"test": report.test} if report.test else {})}
    rows = [
        [part, dataset, one.images]
        + [_cell(value, digits) for value, digits in zip(_values(one), (1, 2, 4, 4, 3, 2), strict=True)]
        for part, scores in parts.items()
        for dataset, one in scores.items()
    ]
    sentence = f"{report.steps:,} steps in {report.seconds / 60:.1f} minutes; {report.weights}"
    return [make_table("", columns, rows), f"\n{sentence}"] if rows else [sentence]


def _values(one: Any) -> tuple[float, ...]:
    return one.mse_px2, one.error_px, one.dice_lungs, one.dice_heart, one.pearson, one.sigma_px


def _cell(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _as_json(report: TrainReport) -> dict[str, Any]:
    from dataclasses import asdict

    def plain(scores: dict[str, Any] | None) -> dict[str, Any] | None:
        if scores is None:
            return None
        return {
            dataset: {name: None if math.isnan(value) else value for name, value in asdict(one).items()}
            for dataset, one in scores.items()
        }

    return {
        "out": str(report.out),
        "weights": str(report.weights),
        "steps": report.steps,
        "seconds": report.seconds,
        "resumed_at": report.resumed_at,
        "validation": plain(report.validation),
        "test": plain(report.test),
    }
