"""References as BibTeX: CheXmask-U, CheXmask, HybridGNet, the sources, cxu. As on the page ``docs/citation.md``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from cxu import __version__, files
from cxu.catalog import SOURCES
from cxu.errors import OutputExistsError, UsageError

CHEXMASK_U: Final = "cosarinsky2026chexmasku"
CHEXMASK: Final = "gaggion2024chexmask"
HYBRIDGNET: Final = "gaggion2022hybridgnet"
CXU: Final = "cxu"
BIB_SUFFIX: Final = ".bib"
_MARK: Final = "% References of a cxu report"

# key → entry type and fields. A field that is not known for certain is left out.
_ENTRIES: Final[dict[str, tuple[str, dict[str, str]]]] = {
    CHEXMASK_U: (
        "inproceedings",
        {
            "title": (
                "{CheXmask-U}: Quantifying uncertainty in landmark-based anatomical segmentation for {X}-ray images"
            ),
            "author": "Cosarinsky, Matias and Gaggion, Nicolas and Echeveste, Rodrigo and Ferrante, Enzo",
            "booktitle": "Medical Imaging with Deep Learning (MIDL)",
            "year": "2026",
            "note": "arXiv:2512.10715",
        },
    ),
    CHEXMASK: (
        "article",
        {
            "title": (
                "{CheXmask}: a large-scale dataset of anatomical segmentation masks for multi-center chest x-ray images"
            ),
            "author": (
                r"Gaggion, Nicol{\'a}s and Mosquera, Candelaria and Mansilla, Lucas and Saidman, Julia Mariel and "
                "Aineseder, Martina and Milone, Diego H. and Ferrante, Enzo"
            ),
            "journal": "Scientific Data",
            "year": "2024",
            "note": "arXiv:2307.03293",
        },
    ),
    HYBRIDGNET: (
        "article",
        {
            "title": (
                "Improving anatomical plausibility in medical image segmentation via hybrid graph neural networks: "
                "applications to chest x-ray analysis"
            ),
            "author": (
                r"Gaggion, Nicol{\'a}s and Mansilla, Lucas and Mosquera, Candelaria and Milone, Diego H. and "
                "Ferrante, Enzo"
            ),
            "journal": "IEEE Transactions on Medical Imaging",
            "year": "2022",
            "note": "arXiv:2203.10977",
        },
    ),
    "johnson2019mimic": (
        "article",
        {
            "title": "{MIMIC-CXR-JPG}, a large publicly available database of labeled chest radiographs",
            "author": "Johnson, Alistair E. W. and others",
            "journal": "arXiv preprint arXiv:1901.07042",
            "year": "2019",
        },
    ),
    "irvin2019chexpert": (
        "inproceedings",
        {
            "title": "{CheXpert}: A large chest radiograph dataset with uncertainty labels and expert comparison",
            "author": "Irvin, Jeremy and Rajpurkar, Pranav and others",
            "booktitle": "AAAI Conference on Artificial Intelligence",
            "year": "2019",
            "note": "arXiv:1901.07031",
        },
    ),
    "wang2017chestxray8": (
        "inproceedings",
        {
            "title": (
                "{ChestX-ray8}: Hospital-scale chest {X}-ray database and benchmarks on weakly-supervised "
                "classification and localization of common thorax diseases"
            ),
            "author": (
                "Wang, Xiaosong and Peng, Yifan and Lu, Le and Lu, Zhiyong and Bagheri, Mohammadhadi and "
                "Summers, Ronald M."
            ),
            "booktitle": "IEEE Conference on Computer Vision and Pattern Recognition (CVPR)",
            "year": "2017",
            "note": "arXiv:1705.02315",
        },
    ),
    "bustos2020padchest": (
        "article",
        {
            "title": "{PadChest}: A large chest x-ray image dataset with multi-label annotated reports",
            "author": (
                r"Bustos, Aurelia and Pertusa, Antonio and Salinas, Jose-Maria and de la Iglesia-Vay{\'a}, Maria"
            ),
            "journal": "Medical Image Analysis",
            "year": "2020",
            "note": "arXiv:1901.07441",
        },
    ),
    "nguyen2022vindr": (
        "article",
        {
            "title": "{VinDr-CXR}: An open dataset of chest {X}-rays with radiologist's annotations",
            "author": "Nguyen, Ha Q. and others",
            "journal": "Scientific Data",
            "year": "2022",
            "note": "arXiv:2012.15029",
        },
    ),
    CXU: (
        "misc",
        {
            "title": "{cxu}: landmarks, uncertainty and masks of {CheXmask-U}",
            "author": "{The cxu developers}",
            "note": f"Software, version {__version__}",
        },
    ),
}


def citation_of(source: str) -> str | None:
    """Return the key of a source's reference; None for a source of one's own."""
    return (SOURCES[source].citation or None) if source in SOURCES else None


def cited(text: str) -> list[str]:
    """Return the keys that a text cites as ``[key]`` or ``[key, key]``, in the order of the references.

    Examples
    --------
    >>> cited("filtered with cxu [cxu]; HybridGNet [gaggion2022hybridgnet]")
    ['gaggion2022hybridgnet', 'cxu']
    """
    found = {key.strip() for group in re.findall(r"\[([^\]]+)\]", text) for key in group.split(",")}
    return [key for key in _ENTRIES if key in found]


def entry_fields(key: str) -> Mapping[str, str]:
    """Return the fields of an entry."""
    return dict(_ENTRIES[key][1])


def bibtex(keys: Iterable[str]) -> str:
    """Return the entries of these keys, in the order of the references."""
    wanted = set(keys)
    return "\n".join(_entry(key) for key in _ENTRIES if key in wanted)


def _entry(key: str) -> str:
    kind, fields = _ENTRIES[key]
    width = max(map(len, fields))
    lines = [f"  {name:<{width}} = {{{value}}}" for name, value in fields.items()]
    return f"@{kind}{{{key},\n" + ",\n".join(lines) + "\n}\n"


def check_bibtex_path(path: Path) -> None:
    """Check that references can be written there, before there are any.

    Raises
    ------
    UsageError
        If the suffix is another.
    OutputExistsError
        If a file is there that is none of ours: a bibliography is soon lost.
    """
    if path.suffix.lower() != BIB_SUFFIX:
        raise UsageError(f"--bibtex {path}: expected a name that ends in {BIB_SUFFIX}")
    if path.exists() and not is_bibliography(path):
        raise OutputExistsError(f"{path} is there and was not written by cxu report: choose another name")


def is_bibliography(path: Path) -> bool:
    """Tell whether a file is one that :func:`write_bibtex` wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_MARK)) == _MARK.encode()


def write_bibtex(keys: Iterable[str], path: Path) -> None:
    """Write entries, a whole file or none."""
    files.write_bytes(path, f"{_MARK}\n\n{bibtex(keys)}".encode())
