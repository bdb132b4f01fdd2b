"""``cxu evaluate noise``."""

from __future__ import annotations

from typing import Annotated

import typer

from cxu.cli._options import HomeOption, JsonOption
from cxu.cli.evaluate._corruption import (
    BatchOption,
    DamageRequest,
    DeviceOption,
    FigureOption,
    ImagesArgument,
    LimitOption,
    PoolOption,
    SamplesOption,
    SeedOption,
    SourceOption,
    TableOutOption,
    TruthOption,
    WeightsOption,
    numbers_of,
    run_damage,
)

EXAMPLE = "cxu evaluate noise films/ --limit 50 --figure noise.png"


def command(
    images: ImagesArgument,
    sigmas: Annotated[
        str | None,
        typer.Option(
            "--sigmas",
            metavar="LIST",
            help="Standard deviations of the noise, 8-bit grey levels.",
            show_default="0,10,20,30,40,50,60,80,100,130,160,190",
            rich_help_panel="What is measured",
        ),
    ] = None,
    truth: TruthOption = None,
    pool: PoolOption = None,
    limit: LimitOption = None,
    samples: SamplesOption = 50,
    seed: SeedOption = 0,
    weights: WeightsOption = "bundled",
    source: SourceOption = None,
    out: TableOutOption = None,
    figure: FigureOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add noise to radiographs, and see whether the uncertainty rises with it (and, with --truth, with the error)."""
    from cxu.evaluation.corruption import DamageOptions

    options = DamageOptions("noise", numbers_of(sigmas, "--sigmas") if sigmas else None)
    request = DamageRequest(
        images, truth, pool or [], limit, samples, seed, weights, source, out, figure, device, batch_size, home, as_json
    )
    run_damage(request, options)
