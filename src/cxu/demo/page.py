"""The page: what stands where, and which answer of the desk belongs to which control."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Final

import gradio as gr

from cxu.demo import markup
from cxu.demo.desk import NOTHING, Desk, Shown
from cxu.demo.results import NOTE
from cxu.demo.session import (
    BRUSH_RANGE_PX,
    DEFAULT_BRUSH_PX,
    DEFAULT_MAX_STD_PX,
    MAX_NOISE,
    MAX_SAMPLES,
    MAX_STD_RANGE_PX,
    MIN_SAMPLES,
    Settings,
    Stroke,
)
from cxu.errors import CxuError
from cxu.model.sampling import DEFAULT_SAMPLES

TITLE: Final = "cxu demo"
MAX_WAITING: Final = 60  # events of all pages
_ONE_AT_A_TIME: Final = "film"
_SYSTEM_FONTS: Final = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO_FONTS: Final = ("ui-monospace", "Consolas", "monospace")

_Answer = Callable[[str, Settings], Shown]


def build_page(desk: Desk) -> gr.Blocks:
    """Return the page whose controls ask that desk."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_heading(), elem_id="cxu-heading")
        with gr.Row(elem_id="cxu-columns"):
            with gr.Column(scale=5, min_width=240, elem_id="cxu-left"):
                upload = gr.File(label="Film: PNG, JPEG, TIFF or DICOM", height=132, elem_id="cxu-upload")
                example = gr.Button("Synthetic example", variant="primary", size="sm")
                sliders = _sliders()
                gr.Slider(
                    *BRUSH_RANGE_PX,
                    value=DEFAULT_BRUSH_PX,
                    step=5,
                    label="Brush radius, px",
                    interactive=True,
                    elem_id="cxu-brush",
                )
                with gr.Row(elem_id="cxu-brush-buttons"):
                    undo = gr.Button("Undo stroke", size="sm", min_width=90)
                    clear = gr.Button("Clear strokes", size="sm", min_width=90)
            with gr.Column(scale=11, min_width=400, elem_id="cxu-middle"):
                problem = gr.HTML(elem_id="cxu-problem")
                picture = gr.HTML(
                    NOTHING.picture, js_on_load=_resource("paint.js"), elem_id="cxu-picture", apply_default_css=False
                )
            with gr.Column(scale=8, min_width=360, elem_id="cxu-right"):
                result = gr.HTML(NOTHING.result, elem_id="cxu-result", apply_default_css=False)
                downloads = gr.HTML(elem_id="cxu-downloads", apply_default_css=False)
        shown = [problem, picture, result, downloads]
        _connect(desk, upload, example, sliders, undo, clear, picture, shown)
        page.unload(_leaving(desk, page))
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
    return page


def theme() -> gr.themes.Base:
    """Return the look: fonts of the system, none that would be loaded from elsewhere."""
    return gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", text_size="sm", spacing_size="sm", font=_SYSTEM_FONTS,
        font_mono=_MONO_FONTS,
    )  # fmt: skip


def style() -> str:
    """Return the style sheet of the page."""
    return _resource("page.css")


def _resource(name: str) -> str:
    return package_files("cxu.demo").joinpath(name).read_text("utf-8")


def _heading() -> str:
    return (
        '<div class="cxu-heading"><h1>cxu demo</h1><p>Landmarks of lungs and heart in a chest radiograph, and how '
        f"uncertain they are. <strong>{NOTE}</strong></p></div>"
    )


def _sliders() -> list[gr.Slider]:
    """Return the sliders of :meth:`cxu.demo.session.Settings.parse`, in its order."""
    return [
        gr.Slider(0, MAX_NOISE, value=0, step=5, label="Noise sigma, 8-bit", elem_id="cxu-noise"),
        gr.Slider(MIN_SAMPLES, MAX_SAMPLES, value=DEFAULT_SAMPLES, step=1, label="Samples N", elem_id="cxu-samples"),
        gr.Slider(
            *MAX_STD_RANGE_PX, value=DEFAULT_MAX_STD_PX, step=0.5, label="max-std, px",
            elem_id="cxu-max-std",
        ),
    ]  # fmt: skip


def _connect(
    desk: Desk,
    upload: gr.File,
    example: gr.Button,
    sliders: list[gr.Slider],
    undo: gr.Button,
    clear: gr.Button,
    picture: gr.HTML,
    shown: list[gr.HTML],
) -> None:
    how: dict[str, Any] = {
        "concurrency_id": _ONE_AT_A_TIME,
        "show_progress": "minimal",
        "show_progress_on": picture,
        "api_visibility": "private",
    }

    def answering(ask: _Answer) -> Callable[..., tuple[Any, ...]]:
        def answer(noise: float, samples: float, max_std: float, request: gr.Request) -> tuple[Any, ...]:
            return _updates(lambda: ask(_key_of(request), Settings.parse(noise, samples, max_std)))

        return answer

    def opened(path: str | None, noise: float, samples: float, max_std: float, request: gr.Request) -> tuple[Any, ...]:
        film = Path(path) if path else None
        settings = (noise, samples, max_std)
        # the drop zone is free for the next film
        return None, *_updates(lambda: desk.open_film(_key_of(request), film, Settings.parse(*settings)))

    def painted(
        noise: float, samples: float, max_std: float, event: gr.EventData, request: gr.Request
    ) -> tuple[Any, ...]:
        def paint() -> Shown:
            stroke = Stroke.parse(_sent(event, "points"), _sent(event, "radius"))
            return desk.paint(_key_of(request), stroke, Settings.parse(noise, samples, max_std))

        return _updates(paint)

    upload.upload(opened, [upload, *sliders], [upload, *shown], api_name="open_film", **how)
    example.click(answering(desk.open_example), sliders, shown, api_name="open_example", **how)
    for slider in sliders:
        # of a slider under way only the latest value counts; a reset is a change and no input
        slider.change(
            answering(desk.change), sliders, shown, api_name=slider.elem_id, trigger_mode="always_last", **how
        )
    picture.stroke(painted, sliders, shown, api_name="paint", trigger_mode="multiple", **how)
    undo.click(answering(desk.undo), sliders, shown, api_name="undo", trigger_mode="multiple", **how)
    clear.click(answering(desk.clear), sliders, shown, api_name="clear", **how)


def _leaving(desk: Desk, page: gr.Blocks) -> Callable[[gr.Request], None]:
    def leave(request: gr.Request) -> None:
        key = _key_of(request)
        desk.leave(key)
        # gradio keeps the last values of a page for an hour
        page.state_holder.session_data.pop(key, None)
        page.state_holder.time_last_used.pop(key, None)

    return leave


def _key_of(request: gr.Request) -> str:
    return str(request.session_hash)


def _sent(event: gr.EventData, name: str) -> object:
    """Return what the page sent with an event, None where it did not."""
    try:
        return getattr(event, name)
    except (AttributeError, TypeError):
        return None


def _updates(ask: Callable[[], Shown]) -> tuple[Any, ...]:
    """Return the new content of the parts of the page: what has none stays."""
    try:
        shown = ask()
    except CxuError as error:
        shown = Shown(markup.problem_html(str(error)))
    parts = (shown.problem, shown.picture, shown.result, shown.downloads)
    return tuple(gr.skip() if part is None else part for part in parts)
