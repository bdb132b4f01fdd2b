"""What scikit-learn and scipy do for the detectors: Isolation Forests and density curves. Both are optional extras.

Source: Liu et al., Isolation Forest, ICDM 2008.
"""

from __future__ import annotations

import importlib
import itertools
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cxu.errors import MissingExtraError
from cxu.stats import roc_auc

FloatArray = npt.NDArray[np.floating]

_TREES: Final = (100, 300)
_ROWS_A_TREE: Final = (256, 1024)
_FEATURES_A_TREE: Final = (1.0, 0.5)


def choose_forest(
    train: FloatArray, choose_in: FloatArray, choose_out: FloatArray, seed: int
) -> tuple[Any, dict[str, Any]]:
    """Fit Isolation Forests to latent sigmas [n, Z]; return the one of the best validation ROC-AUC, and its settings.

    Of equals the first is taken, which is the smaller one. The order of the rows matters: sort them.

    Raises
    ------
    MissingExtraError
        If scikit-learn is not installed.
    """
    ensemble = _science("sklearn.ensemble", "an Isolation Forest needs scikit-learn")
    best: tuple[float, Any, dict[str, Any]] | None = None
    rows_a_tree = sorted({min(rows, len(train)) for rows in _ROWS_A_TREE})
    for trees, rows, features in itertools.product(_TREES, rows_a_tree, _FEATURES_A_TREE):
        settings = {"n_estimators": trees, "max_samples": rows, "max_features": features}
        forest = ensemble.IsolationForest(**settings, random_state=seed % 2**32).fit(train)
        auc = roc_auc(forest_score(forest, choose_in), forest_score(forest, choose_out))
        if best is None or auc > best[0]:
            best = auc, forest, settings
    assert best is not None, "the grid has settings"
    return best[1], best[2]


def forest_score(forest: Any, latent_sigma: FloatArray) -> FloatArray:
    """Return how strange latent sigmas [n, Z] are to a forest [n]: higher is stranger."""
    return -np.asarray(forest.score_samples(latent_sigma)) if len(latent_sigma) else np.empty(0)


def density(values: FloatArray, at: FloatArray) -> FloatArray | None:
    """Return a Gaussian kernel density of values [n] at points [m]; None of fewer than two different values.

    Raises
    ------
    MissingExtraError
        If scipy is not installed.
    """
    scipy_stats = _science("scipy.stats", "density curves need scipy")
    if len(values) < 2 or np.ptp(values) == 0:
        return None
    return np.asarray(scipy_stats.gaussian_kde(values)(at))


def check_density() -> None:
    """Check that density curves can be drawn, before the long work.

    Raises
    ------
    MissingExtraError
        If scipy is not installed.
    """
    _science("scipy.stats", "density curves need scipy")


def _science(module: str, why: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(f"{why}: pip install 'cxu[science]'") from None
