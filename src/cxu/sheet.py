"""Contact sheets: many pictures under one title, with a legend and a scale of the uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from PIL import Image, ImageDraw

from cxu.anatomy import ORGANS
from cxu.errors import UsageError
from cxu.overlay import (
    DEFAULT_VMAX_PX,
    GREY,
    HALO,
    INK,
    PAPER,
    SOFT_INK,
    SUPERSAMPLE,
    Colour,
    disc_box,
    hatch_mask,
    load_font,
    shorten_text,
    sigma_colours,
)

LegendKey = Literal["right_lung", "left_lung", "heart", "ignore", "confident", "dropped", "unusable"]

LEGEND_TEXT: Final[dict[LegendKey, str]] = {
    "right_lung": "right lung",
    "left_lung": "left lung",
    "heart": "heart",
    "ignore": "ignored (255)",
    "confident": "confident node",
    "dropped": "dropped node",
    "unusable": "unusable organ",
}
LEGEND_KEYS: Final = tuple(LEGEND_TEXT)
BAR_TITLE: Final = "standard deviation, px in the 1024 frame"
_ORGAN_COLOURS: Final[dict[LegendKey, Colour]] = {organ.name: organ.colour_rgb for organ in ORGANS}
_MIN_WIDTH: Final = 560
_MAX_TICKS: Final = 5


def contact_sheet(
    tiles: Sequence[Image.Image],
    *,
    columns: int = 6,
    title: str = "",
    subtitle: str = "",
    footer: str = "",
    legend: Sequence[LegendKey] = LEGEND_KEYS,
    vmax_px: float | None = DEFAULT_VMAX_PX,
    limit_px: float | None = None,
) -> Image.Image:
    """Arrange pictures in a grid under a title, with a legend and a colour bar of the uncertainty.

    Parameters
    ----------
    tiles
        At least one picture; rows fill from the left, each tile at the top left of its cell.
    columns
        Tiles a row at most.
    title, subtitle, footer
        Texts, broken into lines where too long.
    legend
        What the legend explains, in this order; empty for none.
    vmax_px
        End of the colour bar, as given to :func:`draw_overlay`; None for no bar.
    limit_px
        Threshold marked on the bar.

    Raises
    ------
    UsageError
        If there is no tile, or ``columns`` is below 1.
    """
    if not tiles or columns < 1:
        raise UsageError(f"{len(tiles)} tiles in {columns} columns; a contact sheet needs one of each at least")
    grid = _grid(tiles, min(columns, len(tiles)))
    width = max(grid.width, _MIN_WIDTH)
    base = min(max(width // 70, 13), 30)
    keys = [_legend_entry(key, base) for key in legend]
    if vmax_px is not None:
        keys.append(_colour_bar(vmax_px, limit_px, base))
    blocks = [
        _text_block(title, round(1.8 * base), INK, width),
        _text_block(subtitle, base, SOFT_INK, width),
        _flow(keys, width, round(1.4 * base)),
        grid,
        _text_block(footer, base, SOFT_INK, width),
    ]
    return _stack([block for block in blocks if block is not None], width, base)


def _stack(blocks: Sequence[Image.Image], width: int, base: int) -> Image.Image:
    """Return the blocks below each other on a sheet with margins."""
    margin, gap = 2 * base, base
    height = sum(block.height for block in blocks) + gap * (len(blocks) - 1)
    sheet = Image.new("RGB", (width + 2 * margin, height + 2 * margin), PAPER)
    top = margin
    for block in blocks:
        sheet.paste(block, (margin, top))
        top += block.height + gap
    return sheet


def _grid(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    gap = max(6, width // 20)
    rows = math.ceil(len(tiles) / columns)
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), PAPER)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        grid.paste(tile, (column * (width + gap), row * (height + gap)))
    return grid


def _text_block(text: str, size: int, colour: Colour, width: int) -> Image.Image | None:
    """Return ``text`` broken into lines of at most ``width`` px; None where it is empty."""
    if not text:
        return None
    font, lines = load_font(size), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    line_height = round(1.35 * size)
    block = Image.new("RGB", (width, line_height * len(lines)), PAPER)
    for index, line in enumerate(lines):
        middle = round((index + 0.5) * line_height)
        ImageDraw.Draw(block).text((0, middle), shorten_text(line, font, width), colour, font, anchor="lm")
    return block


def _flow(items: Sequence[Image.Image], width: int, gap: int) -> Image.Image | None:
    """Return the items from left to right, broken into rows, each item in the middle of its row's height."""
    if not items:
        return None
    rows: list[list[Image.Image]] = [[]]
    for item in items:
        if rows[-1] and sum(placed.width + gap for placed in rows[-1]) + item.width > width:
            rows.append([])
        rows[-1].append(item)
    heights = [max(item.height for item in row) for row in rows]
    block = Image.new("RGB", (width, sum(heights) + gap // 2 * (len(rows) - 1)), PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for item in row:
            block.paste(item, (left, top + (height - item.height) // 2))
            left += item.width + gap
        top += height + gap // 2
    return block


def _legend_entry(key: LegendKey, base: int) -> Image.Image:
    """Return a small picture of what ``key`` stands for, and its name."""
    font, text, swatch = load_font(base), LEGEND_TEXT[key], _swatch(key, round(1.4 * base))
    left = swatch.width + base // 2
    entry = Image.new("RGB", (left + math.ceil(font.getlength(text)), swatch.height), PAPER)
    entry.paste(swatch, (0, 0))
    ImageDraw.Draw(entry).text((left, swatch.height / 2), text, INK, font, anchor="lm")
    return entry


def _swatch(key: LegendKey, height: int) -> Image.Image:
    """Return a picture ``height`` px high of an organ's colour, the hatching, a node or a dashed outline."""
    tall = height * SUPERSAMPLE
    wide = tall if key in ("confident", "dropped") else round(1.6 * tall)
    picture = Image.new("RGB", (wide, tall), PAPER)
    draw, middle, line = ImageDraw.Draw(picture), tall / 2, tall // 9
    if key in _ORGAN_COLOURS:
        draw.rounded_rectangle((0, 0.15 * tall, wide - 1, 0.85 * tall), tall // 6, fill=_ORGAN_COLOURS[key])
    elif key == "ignore":
        picture.paste((90, 92, 97), (0, round(0.15 * tall), wide, round(0.85 * tall)))
        hatched = hatch_mask(wide, tall // 4).crop((0, 0, wide, round(0.7 * tall)))
        picture.paste(INK, (0, round(0.15 * tall)), hatched.point(lambda value: min(255, 2 * value)))
    elif key == "unusable":
        for left in np.linspace(0, wide * 3 / 4, 3):
            draw.line(((left, middle), (left + wide / 4, middle)), fill=GREY, width=line)
    else:
        sigma = np.array(0.2 if key == "confident" else 0.7)
        draw.ellipse(disc_box(middle, middle, 0.3 * tall), fill=tuple(sigma_colours(sigma, vmax_px=1.0).tolist()))
        if key == "dropped":
            draw.ellipse(disc_box(middle, middle, 0.3 * tall - line), fill=HALO)
    return picture.reduce(SUPERSAMPLE)


def _colour_bar(vmax_px: float, limit_px: float | None, base: int) -> Image.Image:
    """Return the scale of the uncertainty: its title, the colours, and ticks in px."""
    font, small = load_font(base), load_font(max(11, round(0.85 * base)))
    title = BAR_TITLE if limit_px is None else f"{BAR_TITLE} (mark: limit {limit_px:g})"
    left, width, thick = math.ceil(font.getlength(title)) + base, 16 * base, base
    picture = Image.new("RGB", (left + width + 2 * base, thick + round(1.9 * base)), PAPER)
    draw, top = ImageDraw.Draw(picture), base // 3
    draw.text((0, top + thick / 2), title, INK, font, anchor="lm")
    colours = sigma_colours(np.linspace(0, vmax_px, width), vmax_px=vmax_px)
    picture.paste(Image.fromarray(np.repeat(colours[None], thick, axis=0)), (left, top))
    for value in _ticks(vmax_px):
        x = left + round((width - 1) * value / vmax_px)
        draw.line(((x, top + thick), (x, top + thick + base // 3)), fill=SOFT_INK)
        label = f"{value:g}+" if value == vmax_px else f"{value:g}"
        draw.text((x, top + thick + base // 2), label, SOFT_INK, small, anchor="mt")
    if limit_px is not None and limit_px <= vmax_px:
        x = left + round((width - 1) * limit_px / vmax_px)
        draw.line(((x, 0), (x, top + thick + base // 3)), fill=INK, width=max(2, base // 6))
    return picture


def _ticks(vmax_px: float) -> list[float]:
    """Return round values from 0 to ``vmax_px``, both included, at most six and none crowding the last."""
    magnitude = 10.0 ** math.floor(math.log10(vmax_px))
    steps = (factor * magnitude for factor in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0))
    step = next(step for step in steps if vmax_px / step <= _MAX_TICKS)
    ticks = [index * step for index in range(math.ceil(vmax_px / step)) if vmax_px - index * step > 0.4 * step]
    return [*ticks, vmax_px]
