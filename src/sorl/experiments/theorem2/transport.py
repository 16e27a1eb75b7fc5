"""Distances between samples: Wasserstein-2 by optimal transport, and that of a given coupling."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sorl.errors import InputError

Values = npt.NDArray[np.float64]

# Of the network simplex; POT's own 100,000 are too few for some thousand samples.
ITERATIONS = 10_000_000


def wasserstein(first: Values, second: Values) -> float:
    """W2 of two empirical distributions of equally many points, exactly.

    In one dimension both are sorted; else POT solves the assignment (Flamary et al. 2021). Between
    two samples of the same law this is not 0: it falls with their number n as n^(-1/dimension)
    from three dimensions on.

    Args:
        first: `[rows, dimension]`.
        second: the same shape.

    Raises:
        InputError: POT is needed and not installed.
    """
    if first.shape[1] == 1:
        return coupled(np.sort(first, axis=0), np.sort(second, axis=0))
    ot = library()
    weights = np.full(len(first), 1 / len(first))
    cost = ot.dist(first, second)  # squared Euclidean
    return float(np.sqrt(max(ot.emd2(weights, weights, cost, numItermax=ITERATIONS), 0.0)))


def library() -> Any:
    """POT.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ot
    except ImportError as error:
        raise InputError(
            "Optimal transport needs POT, which is not installed: install sorl[reproduce]."
        ) from error
    return ot


def coupled(first: Values, second: Values) -> float:
    """Root of the mean squared distance of row i to row i: at least W2 of the two samples."""
    return float(np.sqrt(((first - second) ** 2).sum(1).mean()))
