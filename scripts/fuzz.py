"""Look for bytes that break a reader, guided by coverage.

    pip install atheris
    python scripts/fuzz.py --minutes 10 --work fuzz/              # every target in turn
    python scripts/fuzz.py rle image --minutes 30 --work fuzz/
    python scripts/fuzz.py --keep --work fuzz/                    # the smallest set with the same coverage → the suite

A target is a function of ``tests/fuzzing/targets.py``. What it finds stays in ``--work``: ``corpus-<target>/`` grows
from call to call, ``crash-<target>/`` holds input that failed. ``--keep`` writes ``tests/fuzzing/corpus/<target>.zip``,
which the suite runs (``tests/test_fuzzing.py``): the corpus with the same coverage, and all that failed once.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
import traceback
import zipfile
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
KEPT = TESTS / "fuzzing" / "corpus"
NAMES = ("rle", "coco", "landmarks", "published", "parquet", "image", "weights", "words", "records")
MOST_BYTES = 1 << 14
SLOWEST_S, MEMORY_MB = 30, 4096
MOST_KEPT_BYTES = 300_000  # of a target's zip


def fuzz_one(target: str, arguments: list[str]) -> None:
    """Run libFuzzer over one target, in this process."""
    import atheris  # noqa: PLC0415 - the parent needs none of it

    sys.path.insert(0, str(TESTS))
    with atheris.instrument_imports(include=["cxu", "pydicom", "PIL"]):
        from fuzzing.targets import TARGETS  # noqa: PLC0415 - imported as instrumented

        if target == "weights":
            import cxu.model.weights  # noqa: F401, PLC0415 - as the target does, but instrumented
    crashes = next(Path(word.split("=", 1)[1]) for word in arguments if word.startswith("-artifact_prefix="))
    seen: set[str] = set()

    def survive(data: bytes) -> None:
        """Keep the first input of each failure and go on: an exception need not end the search."""
        try:
            TARGETS[target](data)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            name = re.sub(r"\W+", "-", f"{type(error).__name__}-{Path(where.filename).stem}-{where.lineno}")
            if name not in seen:
                seen.add(name)
                (crashes / name).write_bytes(data)
                traceback.print_exc()

    # libFuzzer starts itself again by this name to merge
    atheris.Setup([f"{sys.executable} {Path(__file__).resolve()} --one {target} --", *arguments], survive)
    atheris.Fuzz()


def run(target: str, arguments: list[str], log: Path) -> int:
    """Run one target in a process of its own, since a crash ends it."""
    words = [sys.executable, __file__, "--one", target, "--", *arguments]
    with log.open("ab") as stream:
        return subprocess.run(words, stdout=stream, stderr=stream, check=False).returncode


def search(target: str, work: Path, minutes: float) -> bool:
    """Fuzz one target; return whether nothing was found."""
    corpus, crashes, log = work / f"corpus-{target}", work / f"crash-{target}", work / f"{target}.log"
    for folder in (corpus, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(TESTS))
    from fuzzing.seeds import seeds_of  # noqa: PLC0415 - found by the path above

    for index, seed in enumerate(seeds_of(target)):
        (corpus / f"seed-{index}").write_bytes(seed)
    start, before = time.monotonic(), len(list(crashes.iterdir()))
    options = [
        f"-max_total_time={round(60 * minutes)}",
        f"-artifact_prefix={crashes}/",
        f"-max_len={MOST_BYTES}",
        f"-timeout={SLOWEST_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        "-print_final_stats=1",
        str(corpus),
    ]
    code = run(target, options, log)
    runs = re.findall(rb"number_of_executed_units: (\d+)", log.read_bytes())
    found = len(list(crashes.iterdir())) - before
    done = f"{int(runs[-1]):,} runs" if runs else "ended early"
    print(f"{target:10} {(time.monotonic() - start) / 60:5.1f} min  {done}, {found} found, rc {code}", flush=True)
    return code == 0 and not found


def keep(target: str, work: Path) -> None:
    """Write the smallest corpus with the same coverage, and what failed once, for the suite."""
    corpus, small = work / f"corpus-{target}", work / f"small-{target}"
    small.mkdir(exist_ok=True)
    for old in small.iterdir():
        old.unlink()
    options = ["-merge=1", f"-artifact_prefix={small}/", f"-max_len={MOST_BYTES}", str(small), str(corpus)]
    run(target, options, work / f"{target}-merge.log")
    found = [path.read_bytes() for path in (work / f"crash-{target}").glob("*")]
    kept, size = sorted(found, key=len), 0
    for data in sorted((path.read_bytes() for path in small.iterdir()), key=lambda data: (len(data), data)):
        if size + len(data) <= 4 * MOST_KEPT_BYTES:
            kept.append(data)
            size += len(data)
    KEPT.mkdir(exist_ok=True)
    with zipfile.ZipFile(KEPT / f"{target}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for index, data in enumerate(kept):
            archive.writestr(zipfile.ZipInfo(f"{index:05}"), data, zipfile.ZIP_DEFLATED, 9)
    print(f"{target:10} {len(kept)} inputs kept, {(KEPT / f'{target}.zip').stat().st_size:,} bytes", flush=True)


def main() -> None:
    """Fuzz, or keep what was found."""
    if sys.argv[1:2] == ["--one"]:
        fuzz_one(sys.argv[2], sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description="Look for bytes that break a reader.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of {', '.join(NAMES)}; all without")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is found; outside the repository")
    parser.add_argument("--keep", action="store_true", help="write the corpus that the suite runs, and stop")
    arguments = parser.parse_args()
    targets = arguments.targets or list(NAMES)
    if unknown := sorted(set(targets) - set(NAMES)):
        parser.error(f"no target {unknown[0]}; expected some of {', '.join(NAMES)}")
    if arguments.keep:
        for target in targets:
            keep(target, arguments.work)
        return
    fine = [search(target, arguments.work, arguments.minutes) for target in targets]
    sys.exit(0 if all(fine) else 1)


if __name__ == "__main__":
    main()
