"""What happens on a page: a film comes, a slider moves, something is painted. Without gradio.

One network serves all pages; what belongs to a page lies in its session. Calls come one at a time.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import torch

from cxu.demo import markup, results
from cxu.demo.session import (
    EXAMPLE_NAME,
    MAX_STROKES,
    LoadedFilm,
    Settings,
    Stroke,
    example_png,
    load_film,
    predict_film,
    select_nodes,
)
from cxu.demo.sessions import Session, Sessions
from cxu.errors import CxuError, UsageError
from cxu.image_listing import ImageFile
from cxu.model.device import freed_memory_kept
from cxu.model.weights import Weights


@dataclass(frozen=True)
class Shown:
    """What a page shows, as HTML; ``problem`` is empty where nothing went wrong. None leaves a part as it is."""

    problem: str = ""
    picture: str | None = None
    result: str | None = None
    downloads: str | None = None


NOTHING = Shown("", markup.EMPTY_PICTURE, markup.EMPTY_RESULT, "")


class Desk:
    """Answers to what people do on their pages.

    Parameters
    ----------
    weights, device
        The network and where it runs.
    folder
        For files that exist for a moment.
    """

    def __init__(self, weights: Weights, device: torch.device, folder: Path) -> None:
        self.weights, self.device, self.folder = weights, device, folder
        self.sessions = Sessions()
        weights.model.to(device).eval()

    def open_film(self, key: str, path: Path | None, settings: Settings) -> Shown:
        """Take a film that was uploaded to a page; a file that is none leaves the page as it was, and says why."""
        if path is None:
            return Shown()
        try:
            film = load_film(path, self.weights.model.config.size)
        except CxuError as error:
            # the page knows the file by its name; where it lay is nobody's business
            return Shown(markup.problem_html(str(error).replace(ImageFile.at(path).name, path.name)))
        return self._show(key, Session(film), settings)

    def open_example(self, key: str, settings: Settings) -> Shown:
        """Take the synthetic example."""
        with tempfile.TemporaryDirectory(dir=self.folder) as made:
            path = Path(made) / EXAMPLE_NAME
            path.write_bytes(example_png())
            return self.open_film(key, path, settings)

    def change(self, key: str, settings: Settings) -> Shown:
        """Show a page's film at other settings."""
        session = self.sessions.get(key)
        return NOTHING if session is None else self._show(key, session, settings)

    def paint(self, key: str, stroke: Stroke, settings: Settings) -> Shown:
        """Paint over a page's film."""
        session = self.sessions.get(key)
        if session is None:
            return NOTHING
        if len(session.strokes) >= MAX_STROKES:
            raise UsageError(f"{MAX_STROKES} strokes are the most; undo or clear some")
        return self._repaint(key, session, (*session.strokes, stroke), settings)

    def undo(self, key: str, settings: Settings) -> Shown:
        """Take the last stroke away."""
        session = self.sessions.get(key)
        return NOTHING if session is None else self._repaint(key, session, session.strokes[:-1], settings)

    def clear(self, key: str, settings: Settings) -> Shown:
        """Take all strokes away."""
        session = self.sessions.get(key)
        return NOTHING if session is None else self._repaint(key, session, (), settings)

    def leave(self, key: str) -> None:
        """Forget a page that was closed."""
        self.sessions.drop(key)

    def _repaint(self, key: str, session: Session, strokes: tuple[Stroke, ...], settings: Settings) -> Shown:
        return self._show(key, replace(session, strokes=strokes, row=None), settings)

    def _show(self, key: str, session: Session, settings: Settings) -> Shown:
        row_key = (settings.noise_sigma, settings.n_samples)
        if session.row is None or session.row_key != row_key:
            session = replace(session, row=self._predict(session, settings), row_key=row_key)
        self.sessions.put(key, session)
        assert session.row is not None
        return self._draw(session.film, session.strokes, select_nodes(session.row, settings.max_std_px), settings)

    def _predict(self, session: Session, settings: Settings) -> pa.Table:
        with _quick_memory(self.device):
            return predict_film(session.film, settings, session.strokes, self.weights, self.device)

    def _draw(self, film: LoadedFilm, strokes: tuple[Stroke, ...], row: pa.Table, settings: Settings) -> Shown:
        result = results.describe(row)
        numbers = results.as_json(film, settings, strokes, row, result, self.weights, self.device)
        return Shown(
            "",
            markup.picture_html(film, settings, strokes, row),
            markup.result_html(film, result),
            markup.downloads_html(film, results.as_csv(row, self.folder), results.as_label_png(row), numbers),
        )


@contextlib.contextmanager
def _quick_memory(device: torch.device) -> Iterator[None]:
    with freed_memory_kept() if device.type == "cpu" else contextlib.nullcontext():
        yield
