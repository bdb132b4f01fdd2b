"""How a network is loaded and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from cxu.cli._output import make_table, size
from cxu.cli._tables import titled

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cxu.cli._output import Output
    from cxu.model.weights import Weights

_VARIANTS: Final = {
    "igsc": "igsc: HybridGNet with image-to-graph skip connections",
    "no-skip": "no-skip: HybridGNet without skip connections",
}
_SPLITS: Final = ("train", "val", "test")
_PARTS: Final = ("test", "validation")  # the first that was measured is shown
# of the scores in a file: title, decimals
_SCORES: Final = {
    "images": ("images", 0),
    "mse_px2": ("MSE px²", 1),
    "error_px": ("error px", 1),
    "dice_lungs": ("Dice lungs", 3),
    "dice_heart": ("Dice heart", 3),
    "pearson": ("Pearson", 2),
    "sigma_px": ("uncertainty px", 1),
}


def load_model(output: Output, spec: str) -> Weights:
    """Load the weights that ``spec`` means; a download is announced on stderr and shows how far it is."""
    from cxu.model.weight_source import load

    with ExitStack() as shown:
        advance: Callable[[int], None] | None = None

        def downloaded(n_bytes: int) -> None:
            nonlocal advance
            if advance is None:
                output.say(f"downloading the weights {spec}")
                advance = shown.enter_context(output.progress("downloading", None, "bytes"))
            advance(n_bytes)

        return load(spec, progress=downloaded)


def model_parts(description: Mapping[str, Any]) -> list[RenderableType]:
    """Return the essentials of :func:`cxu.model.card.describe_model`; what the file does not know is left out."""
    overview = make_table("", ["", ""], [[name, text] for name, text in _overview(description).items() if text])
    overview.show_header = False
    return [overview, *_images(description["images"]), *_scores(description["scores"])]


def _overview(description: Mapping[str, Any]) -> dict[str, str]:
    network = description["architecture"]
    return {
        "network": _VARIANTS[network["variant"]],
        "input": f"{network['size']} × {network['size']} px",
        "latents": f"{network['latents']}",
        "parameters": f"{network['parameters']:,}",
        "refinement": "two further skip connections" if network["refine"] else "none",
        "spread": "of samples, and learned for each node" if network["spread"] else "of samples",
        "file": plain(description["file"]),
        "size": f"{size(description['bytes'])}, {description['stored']}",
        "model_id": description["model_id"],
        "repository": plain(f"{description['repo']} at {description['revision']}") if description["repo"] else "",
        "training": _training(description),
        "left out": _counted(description["left_out"], "image"),
        "terms": plain(description["terms"]),
        "card": description["page"] or "",
    }


def _training(description: Mapping[str, Any]) -> str:
    seconds, recipe = description["seconds"], description["recipe"]
    parts = [_counted(description["steps"], "step"), "" if seconds is None else _counted(round(seconds / 60), "minute")]
    if "start" in recipe:
        start = recipe["start"]
        parts.append("from new weights" if start is None else plain(f"from {PurePath(str(start)).name}"))
    return ", ".join(part for part in parts if part)


def _images(images: Mapping[str, Mapping[str, int]]) -> list[RenderableType]:
    if not images:
        return []
    found = {split for splits in images.values() for split in splits}
    columns = [*(split for split in _SPLITS if split in found), *sorted(found - {*_SPLITS})]
    rows = [[plain(dataset), *(splits.get(split) for split in columns)] for dataset, splits in images.items()]
    return titled("Images of its training data, by split", ["data set", *map(plain, columns)], rows)


def _scores(scores: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> list[RenderableType]:
    part = next((name for name in (*_PARTS, *scores) if name in scores), None)
    if part is None:
        return []
    measured = scores[part]
    names = [name for name in _SCORES if any(one.get(name) is not None for one in measured.values())]
    rows = [[plain(dataset), *(_figure(one.get(name), name) for name in names)] for dataset, one in measured.items()]
    title = f"Measured on the {plain(part)} part, px of the 1024 model frame"
    return titled(title, ["data set", *(_SCORES[name][0] for name in names)], rows) if names else []


def _figure(value: float | None, name: str) -> str | None:
    return None if value is None else f"{value:,.{_SCORES[name][1]}f}"


def _counted(number: float | None, noun: str) -> str:
    return "" if number is None else f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def plain(text: str) -> str:
    """Return text of a foreign file without what a terminal would obey, or cannot show."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
