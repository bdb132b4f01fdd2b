"""List the image files of a part of a folder of annotated films, one a line: what `cxu predict` takes as a list.

    python scripts/list_films.py /data/train --split test > test.txt
    cxu predict test.txt --out predictions/

The parts are those of `cxu train`: the file's own splits where it has some, else by the hash of the name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cxu.training.data import read_folder


def main() -> None:
    """Print the paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    parser.add_argument("--dataset", action="append", help="this data set only; may be repeated")
    given = parser.parse_args()
    files = {path.stem: path for path in (given.data / "images").iterdir()}
    for row in read_folder(given.data).part(given.split).rows:
        if not given.dataset or row.dataset in given.dataset:
            print(files[row.name].resolve())


if __name__ == "__main__":
    main()
