"""Score against error over several kinds of damage together: a run, and tables that other runs wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cxu.errors import UsageError
from cxu.evaluation.corruption import UNDAMAGED
from cxu.evaluation.result_file import check_table_path
from cxu.stats import Interval, bootstrap, spearman

_FACTS: Final = ("model_id", "seed", "n_samples")
_VALUES: Final = ("source", "image_id", "severity", "score_px", "error_px")


@dataclass(frozen=True)
class Pooled:
    """What several kinds of damage come to.

    Attributes
    ----------
    images
        How many have been damaged in all these ways; the others are left out.
    damage
        The ways.
    score_with_error
        Rank correlation of score and error over all images and severities of all kinds; the undamaged prediction
        counts once. The interval is 95 % of a bootstrap over images.
    """

    images: int
    damage: tuple[str, ...]
    score_with_error: Interval


def read_damage_table(path: Path) -> pa.Table:
    """Read a table of :func:`~cxu.evaluation.corruption_table.damage_rows` that has errors.

    Raises
    ------
    UsageError
        If there is no such file, or it is no such table, or it has been measured without truth.
    """
    check_table_path(path, option="--pool")
    columns = [*_VALUES, *_FACTS, "damage"]
    try:
        if path.suffix.lower() == ".csv":
            convert = pyarrow.csv.ConvertOptions(column_types={"source": pa.string(), "image_id": pa.string()})
            rows = pyarrow.csv.read_csv(path, convert_options=convert).select(columns)
        else:
            rows = pq.read_table(path, columns=columns)
    except FileNotFoundError:
        raise UsageError(f"--pool {path}: no such file") from None
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UsageError(
            f"--pool {path}: no table that cxu evaluate noise or occlusion wrote with --out: {error}"
        ) from None
    if rows["error_px"].null_count == len(rows):
        raise UsageError(f"--pool {path}: has no errors; it was measured without --truth")
    return rows


def check_same_run(tables: dict[Path, pa.Table], model_id: str, seed: int, n_samples: int) -> None:
    """Check that tables have been measured with the network, seed and samples of this run.

    Raises
    ------
    UsageError
        If one has not.
    """
    asked = {"model_id": model_id, "seed": seed, "n_samples": n_samples}
    for path, rows in tables.items():
        for name, value in asked.items():
            if other := set(rows[name].unique().to_pylist()) - {value}:
                raise UsageError(f"--pool {path}: was measured with another {name}: {other.pop()}, here {value}")


def pool(tables: Sequence[pa.Table], *, seed: int = 0) -> Pooled:
    """Return what tables of damage come to together; ``seed`` is that of the resampling.

    Images are told apart by source and id. An image counts where it is in every table.
    """
    by_image = [_by_image(rows) for rows in tables]
    shared = sorted(set.intersection(*(set(points) for points in by_image)))
    merged = [{key: value for points in by_image for key, value in points[image].items()} for image in shared]
    values = [np.array(list(points.values()), np.float64) for points in merged]
    damage = sorted({kind for rows in tables for kind in rows["damage"].unique().to_pylist()})

    def correlation(of: npt.NDArray[np.int64]) -> float:
        score, error = np.concatenate([values[index] for index in of]).T
        return spearman(score, error)

    return Pooled(len(shared), tuple(damage), bootstrap(correlation, len(shared), seed=seed))


def _by_image(rows: pa.Table) -> dict[tuple[str, str], dict[tuple[str, float], tuple[float, float]]]:
    """Return image → damage → score and error; the undamaged prediction is no damage, whatever the table is of."""
    points: dict[tuple[str, str], dict[tuple[str, float], tuple[float, float]]] = {}
    for row in rows.select([*_VALUES, "damage"]).filter(pc.is_valid(rows["error_px"])).to_pylist():
        damage = "" if row["severity"] == UNDAMAGED else row["damage"]
        found = points.setdefault((row["source"], row["image_id"]), {})
        found[damage, row["severity"]] = (row["score_px"], row["error_px"])
    return points
