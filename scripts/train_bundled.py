"""Train the weights that ship with cxu, from a folder of annotated films to the files of the package.

    python scripts/train_bundled.py /data/train --out runs/

Every stage is a `cxu train` command, printed as it is begun; an interrupted one continues where it was. Two CPU cores
take about three hours. The numbers of docs/model.md are then measured by scripts/measure_model.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

import torch

from cxu.model.weights import load_weights, save_weights

BUNDLED: Final = Path(__file__).parents[1] / "src/cxu/model/bundled"
TERMS: Final = (
    "research and education only; not a medical device. Trained on JSRT (registration terms; SCR outlines for research "
    "and education), Montgomery and Shenzhen (NLM, open to the research community)"
)


class Stage(NamedTuple):
    """Options of a run, and the stage whose weights it begins with."""

    options: str
    start: str | None = None


STAGES: Final = {
    "first": Stage(
        "--size 256 --steps 8000 --train-samples 4 --energy 0.05 --augmentation corrupt=0.2 --kl 1e-3",
    ),
    "refined": Stage(
        "--size 256 --steps 11000 --refine --across 1 --kl 3e-4 --augmentation corrupt=0.2 --seed 1",
        "first",
    ),
    "whole": Stage(
        "--size 384 --steps 9000 --refine --spread --across 1 --kl-start 3e-4 --kl 3e-4 --lr 5e-4 --seed 2 "
        "--augmentation corrupt=0.25 --augmentation corrupt_noise=0.75 --corrupt-teaches uncertainty "
        "--augmentation scale=0.18 --augmentation shift=0.1",
        "refined",
    ),
    # without squares and strong noise in the ordinary augmentation: only the spread is taught what they do
    "igsc": Stage(
        "--size 384 --steps 3500 --refine --spread --across 1 --kl-start 3e-4 --kl 3e-4 --lr 4e-4 --seed 4 "
        "--augmentation corrupt=0.3 --augmentation corrupt_noise=0.75 --corrupt-teaches uncertainty "
        "--augmentation scale=0.18 --augmentation shift=0.1 --augmentation squares=0 --augmentation noise=0.03 "
        "--report-test",
        "whole",
    ),
    "no-skip": Stage(
        "--variant no-skip --size 256 --steps 5000 --spread --across 1 --kl 1e-4 --augmentation corrupt=0.2 --seed 3 "
        "--report-test",
        "refined",
    ),
}
SHIPPED: Final = ("igsc", "no-skip")


def main() -> None:
    """Run the stages in order, then write what ships."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    given = parser.parse_args()
    for name in STAGES:
        command = stage_command(name, given.data, given.out)
        print(shlex.join(command), flush=True)
        subprocess.run([sys.executable, "-m", *command], check=True)
    for name in SHIPPED:
        ship(given.out, name, BUNDLED / f"hybridgnet-{name}.safetensors")


def stage_command(name: str, data: Path, out: Path) -> list[str]:
    """Return the command of a stage."""
    options, start = STAGES[name]
    begin = ["--start", str(out / start / "weights.safetensors")] if start else []
    return ["cxu", "train", str(data), "--out", str(out / name), *options.split(), *begin]


def ship(out: Path, stage: str, target: Path) -> None:
    """Write a stage's weights in half precision, with the commands that led to it and the terms of their use."""
    weights = load_weights(out / stage / "weights.safetensors")
    facts = {name: value for name, value in weights.metadata.items() if not name.startswith("cxu_")}
    recipe = json.loads(facts["recipe"])
    facts["recipe"] = json.dumps({**recipe, "start": STAGES[stage].start}, sort_keys=True)
    facts |= {"terms": json.dumps(TERMS), "commands": json.dumps(chain(stage))}
    save_weights(weights.model, target, facts, dtype=torch.float16)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


def chain(stage: str) -> list[str]:
    """Return the commands from the first stage to this one, with made-up folders."""
    start = STAGES[stage].start
    command = shlex.join(stage_command(stage, Path("/data/train"), Path("runs")))
    return [*(chain(start) if start else []), command]


if __name__ == "__main__":
    main()
