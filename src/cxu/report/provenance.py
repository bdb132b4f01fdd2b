"""Where the rows of a table came from, in sentences: files and revisions, models, samples, seeds. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from cxu.anatomy import ORGANS
from cxu.catalog import SOURCES
from cxu.model.reference import reference_of
from cxu.report.bibliography import CHEXMASK, CHEXMASK_U, CXU, HYBRIDGNET, citation_of
from cxu.report.tally import Origin, Tally
from cxu.report.words import frame_words, listed, number, title_of


def origin_sentences(tally: Tally) -> list[str]:
    """Return where rows came from; sources and methods are cited as ``[key]``."""
    origins = tally.sorted_origins()
    published = [one for one in origins if one[0].is_published and one[0].source in SOURCES]
    imported = [one for one in origins if one[0].is_published and one[0].source not in SOURCES]
    predicted = [one for one in origins if not one[0].is_published]
    return [
        *_published_sentences([one for one in published if one[0].has_sigma], with_sigma=True),
        *_published_sentences([one for one in published if not one[0].has_sigma], with_sigma=False),
        *_imported_sentences(imported),
        *_predicted_sentences(predicted),
        *_frame_sentences(origins),
    ]


def _published_sentences(origins: Sequence[tuple[Origin, int]], *, with_sigma: bool) -> list[str]:
    if not origins:
        return []
    landmarks = f"Landmarks of {_organs_told()}"
    if with_sigma:
        what = (
            f"{landmarks} and their standard deviations were taken from CheXmask-U [{CHEXMASK_U}], which builds on "
            f"CheXmask [{CHEXMASK}]: means and standard deviations over {_samples(origins)} predictions of HybridGNet "
            f"[{HYBRIDGNET}] for each radiograph of"
        )
    else:
        what = (
            f"{landmarks}, predicted by HybridGNet [{HYBRIDGNET}], were taken from CheXmask [{CHEXMASK}], without "
            "standard deviations, for radiographs of"
        )
    return [f"{what} {_sources_told(origins)}.", _places_sentence(origins)]


def _imported_sentences(origins: Sequence[tuple[Origin, int]]) -> list[str]:
    """Return what is known of rows of one's own sources: only that their files had the published columns."""
    if not origins:
        return []
    sigma = (
        ", with their standard deviations where the files have some,"
        if any(one.has_sigma for one, _ in origins)
        else ""
    )
    what = (
        f"Landmarks of {_organs_told()}{sigma} were read from files in the columns of CheXmask-U [{CHEXMASK_U}] for "
        f"radiographs of {_sources_told(origins)}; what predicted them is not recorded."
    )
    return [what, _places_sentence(origins)]


def _samples(origins: Sequence[tuple[Origin, int]]) -> str:
    return listed((number(count) for count in sorted({origin.n_samples or 0 for origin, _ in origins})), "or")


def _organs_told() -> str:
    (first, first_nodes), *others = [(organ.title, organ.n_nodes) for organ in ORGANS]
    return listed([f"{first} ({first_nodes} nodes)", *(f"{title} ({nodes})" for title, nodes in others)])


def _sources_told(origins: Iterable[tuple[Origin, int]]) -> str:
    """Return the sources of rows with their references and rows."""
    rows: Counter[str] = Counter()
    for origin, count in origins:
        rows[origin.source] += count
    return listed(f"{_cited_source(source)} ({number(rows[source])})" for source in sorted(rows))


def _cited_source(source: str) -> str:
    key = citation_of(source)
    return f"{title_of(source)} [{key}]" if key else f"the source {source!r}"


def _places_sentence(origins: Sequence[tuple[Origin, int]]) -> str:
    """Return from which repository and revision, or which file, the rows of each source came."""
    sources: dict[str, set[str]] = {}
    for origin, _ in origins:
        sources.setdefault(_place(origin), set()).add(origin.source)
    if len(sources) == 1:
        return f"They were read from {next(iter(sources))}."
    told = (f"{place} ({listed(map(title_of, sorted(names)))})" for place, names in sources.items())
    return f"They were read from {listed(told)}."


def _place(origin: Origin) -> str:
    if origin.repo:
        revision = f"at revision {origin.revision}" if origin.revision else "at a revision that is not recorded"
        return f"the repository {origin.repo} {revision}"
    if origin.file_sha256:
        return f"a file of unrecorded origin (SHA-256 {origin.file_sha256})"
    return "files whose repository and revision are not recorded"


def _predicted_sentences(origins: Sequence[tuple[Origin, int]]) -> list[str]:
    runs: dict[tuple[Any, ...], list[tuple[Origin, int]]] = {}
    for origin, rows in origins:
        run = (origin.model_id, origin.repo, origin.revision, origin.n_samples, origin.seed, origin.precision)
        runs.setdefault(run, []).append((origin, rows))
    return [_prediction_sentence(of_run) for of_run in runs.values()]


def _prediction_sentence(origins: Sequence[tuple[Origin, int]]) -> str:
    run = origins[0][0]
    weights = f"SHA-256 {run.model_id}"
    # those that ship have a learned spread, without which their standard deviations cannot be understood
    spread = ", each widened by the spread that the network has learned" if reference_of(run.model_id) else ""
    if reference_of(run.model_id):
        whose = f"the weights that ship with cxu ({weights})"
    elif run.repo:
        at = f"at revision {run.revision}" if run.revision else "at a revision that is not recorded"
        whose = f"weights from the repository {run.repo} {at} ({weights})"
    else:
        whose = f"weights of one's own ({weights})"
    count = run.n_samples
    if count is None:
        samples = f"an unrecorded number of samples an image{spread}"
    elif count > 1:
        samples = f"means and standard deviations over {number(count)} samples [{CHEXMASK_U}] an image{spread}"
    else:
        samples = "a single sample an image, without standard deviations"
    seed = "an unrecorded seed" if run.seed is None else f"seed {run.seed}"
    precision = f"the encoder in {run.precision}" if run.precision else "the encoder in an unrecorded precision"
    return (
        f"Landmarks of {_organs_told()} were predicted with cxu [{CXU}] by HybridGNet [{HYBRIDGNET}] with "
        f"{whose}: {samples}, {seed}, {precision}. These were radiographs of {_sources_told(origins)}."
    )


def _frame_sentences(origins: Sequence[tuple[Origin, int]]) -> list[str]:
    frames: dict[str, set[str]] = {}
    for origin, _ in origins:
        frames.setdefault(origin.frame, set()).add(origin.source)
    if not frames:
        return []
    if len(frames) == 1:
        return [f"Positions were in px of {frame_words(next(iter(frames)))}."]
    told = (
        f"{frame_words(frame)} ({listed(map(title_of, sorted(sources)))})" for frame, sources in sorted(frames.items())
    )
    return [f"Positions were in px of {listed(told)}."]
