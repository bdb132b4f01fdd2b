"""Contact sheets: many pictures under one title, with a legend and a scale of the uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
from PIL import Image, ImageDraw

from cxu.anatomy import ORGANS
from cxu.canvas import (
    BLANK,
    DEFAULT_VMAX_PX,
    HALO,
    INK,
    PAPER,
    SOFT_INK,
    SUPERSAMPLE,
    Colour,
    add_caption,
    as_colour,
    disc_box,
    hatch_mask,
    load_font,
    shorten_text,
    sigma_colours,
)
from cxu.errors import UsageError

LegendKey = Literal["right_lung", "left_lung", "heart", "ignore", "confident", "dropped", "unusable", "band"]

LEGEND_TEXT: Final[dict[LegendKey, str]] = {
    "right_lung": "right lung",
    "left_lung": "left lung",
    "heart": "heart",
    "ignore": "ignored (255)",
    "confident": "confident node",
    "dropped": "dropped node",
    "unusable": "unusable organ",
    "band": "± 1 standard deviation",
}
# what is explained where nothing is said: bands are drawn on request
LEGEND_KEYS: Final = tuple(key for key in LEGEND_TEXT if key != "band")
BAR_TITLE: Final = "standard deviation, px in the 1024 frame"
_ORGAN_COLOURS: Final[dict[LegendKey, Colour]] = {organ.name: organ.colour_rgb for organ in ORGANS}
_MIN_WIDTH: Final = 560
_MAX_TICKS: Final = 5
_LINE_HEIGHT: Final = 1.4  # of the type


def contact_sheet(
    tiles: Sequence[Image.Image],
    *,
    columns: int = 6,
    title: str = "",
    subtitle: str = "",
    footer: str = "",
    legend: Sequence[LegendKey] = LEGEND_KEYS,
    legend_text: Mapping[LegendKey, str] = LEGEND_TEXT,
    vmax_px: float | None = DEFAULT_VMAX_PX,
    limit_px: float | Sequence[float] | None = None,
    bar_title: str = BAR_TITLE,
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
    legend_text
        The words for it.
    vmax_px
        End of the colour bar, as given to :func:`cxu.overlay.draw_overlay`; None for no bar.
    limit_px
        Threshold marked on the bar, or several.
    bar_title
        What the bar shows, and its unit.

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
    keys = [_legend_entry(key, legend_text[key], base) for key in legend]
    if vmax_px is not None:
        limits = [] if limit_px is None else [limit_px] if isinstance(limit_px, (int, float)) else limit_px
        keys.append(_colour_bar(bar_title, vmax_px, sorted(set(limits)), base))
    blocks = [
        _text_block(title, round(1.8 * base), INK, width),
        _text_block(subtitle, base, SOFT_INK, width),
        _flow(keys, width, round(1.4 * base)),
        grid,
        _text_block(footer, base, SOFT_INK, width),
    ]
    return _stack([block for block in blocks if block is not None], width, base)


def message_tile(message: str, size: int, *, title: str) -> Image.Image:
    """Return a tile of ``size`` px that says why there is no picture."""
    tile = Image.new("RGB", (size, size), BLANK)
    text = _text_block(message, max(11, size // 24), SOFT_INK, round(0.86 * size), BLANK)
    if text is not None:
        tile.paste(text, (round(0.07 * size), size // 10))
    return add_caption(tile, title, " ")


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


def _text_block(text: str, size: int, colour: Colour, width: int, background: Colour = PAPER) -> Image.Image | None:
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
    block = Image.new("RGB", (width, line_height * len(lines)), background)
    for index, line in enumerate(lines):
        middle = round((index + 0.5) * line_height)
        ImageDraw.Draw(block).text((0, middle), shorten_text(line, font, width), colour, font, anchor="lm")
    return block


def _flow(items: Sequence[Image.Image], width: int, gap: int) -> Image.Image | None:
    """Return the items from left to right, broken into rows, their upper edges in line."""
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
            block.paste(item, (left, top))
            left += item.width + gap
        top += height + gap // 2
    return block


def _legend_entry(key: LegendKey, text: str, base: int) -> Image.Image:
    """Return a small picture of what ``key`` stands for, and its name."""
    font, swatch = load_font(base), _swatch(key, round(_LINE_HEIGHT * base))
    left = swatch.width + base // 2
    entry = Image.new("RGB", (left + math.ceil(font.getlength(text)), swatch.height), PAPER)
    entry.paste(swatch, (0, 0))
    ImageDraw.Draw(entry).text((left, swatch.height / 2), text, INK, font, anchor="lm")
    return entry


def _swatch(key: LegendKey, height: int) -> Image.Image:
    """Return a picture ``height`` px high: an organ's colour, hatching, a band, or a node on its line."""
    tall, wide = height * SUPERSAMPLE, round(1.6 * height * SUPERSAMPLE)
    picture = Image.new("RGB", (wide, tall), PAPER)
    if key in _ORGAN_COLOURS:
        box = (0, 0.15 * tall, wide - 1, 0.85 * tall)
        ImageDraw.Draw(picture).rounded_rectangle(box, tall // 6, fill=_ORGAN_COLOURS[key])
    elif key in ("ignore", "unusable"):
        _draw_hatched(picture, dashed=key == "unusable")
    elif key == "band":
        _draw_band(picture)
    else:
        _draw_node(picture, confident=key == "confident")
    return picture.reduce(SUPERSAMPLE)


def _draw_hatched(picture: Image.Image, *, dashed: bool) -> None:
    wide, tall = picture.size
    top, bottom = round(0.15 * tall), round(0.85 * tall)
    picture.paste((90, 92, 97), (0, top, wide, bottom))
    lines = hatch_mask(wide, tall // 4).crop((0, 0, wide, bottom - top))
    picture.paste(INK, (0, top), lines.point(lambda value: value * 4 // 5))
    for left in np.linspace(0, wide * 3 / 4, 3) if dashed else ():
        ImageDraw.Draw(picture).line(((left, top), (left + wide / 4, top)), fill=INK, width=tall // 5)


def _draw_band(picture: Image.Image) -> None:
    """Draw a line that grows less certain to the right, and the band around it."""
    wide, tall = picture.size
    draw, middle = ImageDraw.Draw(picture), tall / 2
    colours = sigma_colours(np.linspace(0.2, 0.9, wide), vmax_px=1.0)
    for x, colour in enumerate(colours):
        half_width = tall * (0.12 + 0.3 * x / wide)
        faded = np.rint(colour + 0.53 * (np.array(PAPER) - colour)).astype(np.uint8)
        draw.line(((x, middle - half_width), (x, middle + half_width)), fill=as_colour(faded))
        draw.line(((x, middle - tall / 18), (x, middle + tall / 18)), fill=as_colour(colour))


def _draw_node(picture: Image.Image, *, confident: bool) -> None:
    wide, tall = picture.size
    draw, middle, line = ImageDraw.Draw(picture), tall / 2, tall // 9
    colour = as_colour(sigma_colours(np.array(0.2 if confident else 0.7), vmax_px=1.0))
    draw.line(((0, middle), (wide, middle)), fill=colour, width=2 * line if confident else max(line // 2, 1))
    draw.ellipse(disc_box(wide / 2, middle, 0.3 * tall), fill=colour)
    if not confident:
        draw.ellipse(disc_box(wide / 2, middle, 0.3 * tall - line), fill=HALO)


def _colour_bar(title: str, vmax_px: float, limits_px: Sequence[float], base: int) -> Image.Image:
    """Return the scale of the uncertainty: its title, the colours, and ticks in px."""
    font, small = load_font(base), load_font(max(11, round(0.85 * base)))
    if limits_px:
        named = ", ".join(f"{limit:g}" for limit in limits_px)
        title = f"{title} (mark{'s' if len(limits_px) > 1 else ''}: limit {named})"
    left, width, thick = math.ceil(font.getlength(title)) + base, 16 * base, base
    picture = Image.new("RGB", (left + width + 2 * base, thick + round(1.9 * base)), PAPER)
    # its middle in line with that of the other entries
    draw, top = ImageDraw.Draw(picture), round((_LINE_HEIGHT * base - thick) / 2)
    draw.text((0, top + thick / 2), title, INK, font, anchor="lm")
    colours = sigma_colours(np.linspace(0, vmax_px, width), vmax_px=vmax_px)
    picture.paste(Image.fromarray(np.repeat(colours[None], thick, axis=0)), (left, top))
    for value in _ticks(vmax_px):
        x = left + round((width - 1) * value / vmax_px)
        draw.line(((x, top + thick), (x, top + thick + base // 3)), fill=SOFT_INK)
        label = f"{value:g}+" if value == vmax_px else f"{value:g}"
        draw.text((x, top + thick + base // 2), label, SOFT_INK, small, anchor="mt")
    for limit in limits_px:
        if limit <= vmax_px:
            x = left + round((width - 1) * limit / vmax_px)
            draw.line(((x, 0), (x, top + thick + base // 3)), fill=INK, width=max(2, base // 6))
    return picture


def _ticks(vmax_px: float) -> list[float]:
    """Return round values from 0 to ``vmax_px``, both included, at most six and none crowding the last."""
    magnitude = 10.0 ** math.floor(math.log10(vmax_px))
    steps = (factor * magnitude for factor in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0))
    step = next(step for step in steps if vmax_px / step <= _MAX_TICKS)
    ticks = [index * step for index in range(math.ceil(vmax_px / step)) if vmax_px - index * step > 0.4 * step]
    return [*ticks, vmax_px]
