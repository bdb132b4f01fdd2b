"""What is found, as HTML. Pure; every text that comes from outside is escaped.

Pictures and downloads are data addresses within the page: nothing of a film is written to disk to be served.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxu import overlay, table
from cxu.canvas import DEFAULT_VMAX_PX, sigma_colours
from cxu.demo.results import Measure, OrganResult, Result, download_stem
from cxu.demo.session import PICTURE_PX, LoadedFilm, Settings, Stroke, damaged_preview

_STROKE: Final = 0.4  # a large picture is looked at for where the contour lies
_JPEG_QUALITY: Final = 92
_BAR_STOPS: Final = 9
_BAR_TICKS: Final = 4
_FLAGS: Final = {"ok": ("✓", "ok"), "review": ("!", "review"), "reject": ("✕", "reject")}
_BLANKS: Final = {
    "not_finite": "landmarks are not finite",
    "unconfident": "outermost nodes are not confident",
    "unusable": "the organ is not usable",
    "no_spacing": "the file has no pixel spacing",
    "no_extent": "no extent",
}
_MM2_PER_CM2: Final = 100

EMPTY_PICTURE: Final = (
    '<div class="cxu-empty"><p>Drop a frontal chest radiograph on the left,<br>or take the synthetic example.</p></div>'
)
EMPTY_RESULT: Final = (
    '<div class="cxu-hint"><h2>What to try</h2><ol>'
    "<li><b>A film of your own</b>, or the synthetic example: outlines are blue where the network is certain, yellow "
    "where it is not.</li>"
    "<li><b>Noise</b> on what the network sees, in grey levels of 255.</li>"
    "<li><b>Black out</b> a part: drag over the film.</li>"
    "<li><b>Samples</b>: more of them, steadier numbers.</li>"
    "<li><b>max-std</b>: nodes with more uncertainty, in px of the 1024 frame, do not count; with too few of them an "
    "organ is not usable.</li></ol>"
    "<p>Numbers are those of <code>cxu predict</code>, <code>filter</code>, <code>measure</code> and "
    "<code>rasterize</code>. Films stay in the memory of this server and are forgotten with the page.</p></div>"
)


def picture_html(film: LoadedFilm, settings: Settings, strokes: Sequence[Stroke], row: pa.Table) -> str:
    """Return the film with its outlines coloured by uncertainty, the surface to paint on, and the scale."""
    drawn = overlay.draw_overlay(
        damaged_preview(film, settings, strokes),
        film.frame.to_model(table.landmarks_of(row)[0].astype(np.float64)),
        table.list_column(row, "sigma_model_px")[0],
        confident=table.confident_of(row)[0],
        usable=table.usable_of(row)[0],
        size=PICTURE_PX,
        stroke=_STROKE,
    )
    written = io.BytesIO()
    drawn.save(written, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    score = row["mean_sigma_model_px"][0].as_py()
    says = (
        f"{film.image.image_id} with the outlines of both lungs and the heart, coloured by their uncertainty, "
        f"{score:.1f} px on average"
    )
    return (
        '<div class="cxu-film">'
        f'<img alt="{html.escape(says)}" width="{PICTURE_PX}" height="{PICTURE_PX}" draggable="false" '
        f'src="{data_address(written.getvalue(), "image/jpeg")}">'
        '<canvas class="cxu-paint" tabindex="0" role="application" aria-label="Paint over the film in black: drag, or '
        'move with the arrow keys and press space"></canvas></div>'
        f"{scale_html(settings.max_std_px)}"
    )


def scale_html(max_std_px: float, vmax_px: float = DEFAULT_VMAX_PX) -> str:
    """Return the colour bar of the uncertainty, with a mark where nodes stop being confident."""
    stops = sigma_colours(np.linspace(0, vmax_px, _BAR_STOPS), vmax_px=vmax_px)
    ticks = np.linspace(0, vmax_px, _BAR_TICKS + 1)
    at = 100 * min(max_std_px / vmax_px, 1.0)
    beyond = " (beyond the scale)" if max_std_px > vmax_px else ""
    return (
        '<div class="cxu-scale" role="img" '
        f'aria-label="Colour scale of node uncertainty, 0 to {vmax_px:g} px of the 1024 frame">'
        f'<div class="cxu-bar" style="background:linear-gradient(to right,{_css_colours(stops)})">'
        f'<i style="left:{at:.1f}%"></i></div>'
        f'<div class="cxu-ticks">{"".join(f"<span>{tick:g}</span>" for tick in ticks)}</div>'
        f'<div class="cxu-caption">node uncertainty σ, px of the 1024 frame · <b>▲</b> max-std {max_std_px:g}{beyond}: '
        "nodes above it are hollow · drag over the film to black it out</div></div>"
    )


def _css_colours(rgb: npt.NDArray[np.uint8]) -> str:
    return ",".join(f"rgb({red},{green},{blue})" for red, green, blue in rgb.tolist())


def result_html(film: LoadedFilm, result: Result) -> str:
    """Return verdict, ratio, the table of organs, and what the file is."""
    ratio = result.cardiothoracic_ratio
    return (
        f"{flag_html(result)}"
        '<dl class="cxu-numbers">'
        f"<div><dt>Cardiothoracic ratio</dt><dd>{_ratio_html(ratio)}</dd></div>"
        f"<div><dt>Image score</dt><dd><b>{result.image_score_px:.1f}</b> px<small>mean σ of all nodes</small></dd>"
        "</div>"
        "</dl>"
        f"{organs_html(result.organs)}"
        f'<p class="cxu-facts">{html.escape(_facts(film))}</p>'
    )


def flag_html(result: Result) -> str:
    """Return the verdict of the gate as a coloured flag."""
    if result.quality is None:
        return '<p class="cxu-flag cxu-unknown" role="status"><b>Quality: not judged</b> these weights have no gate</p>'
    sign, name = _FLAGS[result.quality]
    reason = html.escape(result.quality_reason or "nothing speaks against it")
    return (
        f'<p class="cxu-flag cxu-{name}" role="status"><b>{sign} Quality: {name}</b> {reason} '
        f"<small>score {result.quality_score:.2f}; review from 1, reject from 2</small></p>"
    )


def _ratio_html(ratio: Measure) -> str:
    if ratio.value is None:
        return f"<b>–</b><small>{_BLANKS[ratio.blank or 'no_extent']}</small>"
    return f"<b>{ratio.value:.3f}</b>{_interval(ratio)}"


def _interval(ratio: Measure) -> str:
    if ratio.low is None or ratio.high is None:
        return ""
    return f"<small>90 %: {ratio.low:.3f} to {ratio.high:.3f}</small>"


def organs_html(organs: Sequence[OrganResult]) -> str:
    """Return the table of organs."""
    has_mm = any(organ.area_mm2.value is not None for organ in organs)
    unit = "cm²" if has_mm else "px²"
    columns = ("organ", "mean σ", "median σ", "confident", "usable", f"area, {unit}")
    titles = "".join(f'<th scope="col">{title}</th>' for title in columns)
    rows = "".join(
        f'<tr><th scope="row">{organ.organ}</th><td>{organ.mean_sigma_px:.1f}</td><td>{organ.median_sigma_px:.1f}</td>'
        f"<td>{organ.confident}/{organ.nodes}</td>{_usable_cell(organ)}<td>{_area_html(organ, has_mm=has_mm)}</td></tr>"
        for organ in organs
    )
    return (
        '<table class="cxu-organs"><caption>σ in px of the 1024 frame; confident nodes have at most max-std; areas '
        "with 90 % interval, in the film's own pixels or, where it has a spacing, cm²</caption>"
        f"<thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _usable_cell(organ: OrganResult) -> str:
    return "<td>yes</td>" if organ.usable else '<td class="cxu-no">no</td>'


def _area_html(organ: OrganResult, *, has_mm: bool) -> str:
    measure = organ.area_mm2 if has_mm else organ.area_px2
    if measure.value is None:
        return "–"
    unit, decimals = (_MM2_PER_CM2, 1) if has_mm else (1, 0)
    spread = "" if measure.high is None else f" <small>± {(measure.high - measure.value) / unit:,.{decimals}f}</small>"
    return f"{measure.value / unit:,.{decimals}f}{spread}"


def _facts(film: LoadedFilm) -> str:
    height, width = film.facts.shape_hw
    spacing = film.facts.spacing_mm_xy
    parts = [
        film.image.image_id,
        f"{width} × {height} px",
        f"view {film.facts.view}" if film.facts.view else "",
        f"{spacing[0]:g} × {spacing[1]:g} mm a pixel" if spacing else "",
        "a negative, turned" if film.facts.turned else "",
    ]
    return " · ".join(part for part in parts if part)


def downloads_html(film: LoadedFilm, csv: bytes, mask_png: bytes, json_text: bytes) -> str:
    """Return links that save the results: the content lies in the page."""
    stem = download_stem(film.image.image_id)
    files = (
        ("CSV", "published columns", f"{stem}.csv", csv, "text/csv"),
        ("Mask", "PNG of labels", f"{stem}.labels.png", mask_png, "image/png"),
        ("JSON", "all numbers", f"{stem}.json", json_text, "application/json"),
    )
    links = "".join(
        f'<a href="{data_address(content, kind)}" download="{html.escape(name)}" aria-label="Download {title}">'
        f"↓ {title}<small>{what}</small></a>"
        for title, what, name, content, kind in files
    )
    return f'<div class="cxu-downloads">{links}</div>'


def problem_html(sentence: str) -> str:
    """Return what went wrong, for people and screen readers."""
    return f'<p class="cxu-problem" role="alert">{html.escape(sentence)}</p>'


def data_address(content: bytes, kind: str) -> str:
    """Return bytes as a ``data:`` address.

    Examples
    --------
    >>> data_address(b"a", "text/csv")
    'data:text/csv;base64,YQ=='
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
