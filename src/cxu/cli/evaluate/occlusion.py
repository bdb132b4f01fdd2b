"""``cxu evaluate occlusion``."""

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

EXAMPLE = "cxu evaluate occlusion films/ --limit 50 --figure occlusion.png"


def command(
    images: ImagesArgument,
    squares: Annotated[
        str | None,
        typer.Option(
            "--squares",
            metavar="LIST",
            help="Numbers of black squares, each on a landmark drawn at random.",
            show_default="1,2,4",
            rich_help_panel="What is measured",
        ),
    ] = None,
    half_size: Annotated[
        float,
        typer.Option(
            "--half-size",
            metavar="PX",
            help="Half a side of a square, px of the 1024 model frame.",
            rich_help_panel="What is measured",
        ),
    ] = 100.0,
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
    """Cover landmarks with black squares, and see whether the uncertainty rises there.

    Squares stand on landmarks of the undamaged prediction, or with --truth on annotated ones.
    """
    from cxu.evaluation.corruption import DamageOptions

    options = DamageOptions("occlusion", numbers_of(squares, "--squares") if squares else None, half_size)
    request = DamageRequest(
        images, truth, pool or [], limit, samples, seed, weights, source, out, figure, device, batch_size, home, as_json
    )
    run_damage(request, options)
