"""What the rows say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from sorl.errors import InputError

Rows = Sequence[Mapping[str, Any]]
Values = npt.NDArray[np.float64]

FORMS = {"stepwise_": "step by step", "": "with one L"}
TERMS = {
    "discretisation": "discretisation",
    "flow_matching": "flow matching",
    "self_consistency": "self-consistency",
}


def findings(rows: Rows) -> list[str]:
    """Sentences with figures: whether the bound holds, how tight it is, what the losses and h do.

    A cell is one dimension, seed, number of updates and step size. The distance is `coupled`, which
    is at least W2 and free of the floor of W2 between samples.

    Args:
        rows: of `measure`, of all settings.

    Raises:
        InputError: there are no rows.
    """
    if not rows:
        raise InputError("There are no rows to read: measure at least one setting.")
    sentences = []
    for prefix, form in FORMS.items():
        sentences += _held(rows, prefix, form)
    sentences += _lipschitz(rows)
    dimensions = sorted({int(row["dimension"]) for row in rows})
    for dimension in dimensions:
        sentences += _of_dimension([row for row in rows if int(row["dimension"]) == dimension])
    return sentences


def losses(row: Mapping[str, Any], rows: Rows) -> float:
    """Root of ε_FM² plus the mean of ε_SC² over step sizes: of the sum of both losses of a cell."""
    same = [
        other
        for other in rows
        if all(other[name] == row[name] for name in ("dimension", "seed", "updates"))
    ]
    finest = max(other["h"] for other in same)
    consistency = [other["eps_sc"] ** 2 for other in same if other["h"] != finest]
    return math.sqrt(row["eps_fm"] ** 2 + float(np.mean(consistency)))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's; NaN where one of both is constant."""
    ranks = [rankdata(values) for values in (first, second)]
    if any(np.ptp(values) == 0 for values in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def _held(rows: Rows, prefix: str, form: str) -> list[str]:
    bound, distance = _column(rows, f"{prefix}bound"), _column(rows, "coupled")
    w2 = _column(rows, "w2") - _column(rows, "w2_floor")
    ratio = bound / distance
    low, high = rows[int(ratio.argmin())], rows[int(ratio.argmax())]
    shares = [float(np.median(_column(rows, f"{prefix}{term}") / bound)) for term in TERMS]
    parts = ", ".join(
        f"{name} {share:.1%}" for name, share in zip(TERMS.values(), shares, strict=True)
    )
    return [
        f"The bound {form} holds in {(bound >= distance).sum()} of {len(rows)} cells for the "
        f"coupled distance, which is at least W2, and in {(bound >= w2).sum()} for W2 between "
        "samples less its floor.",
        f"The bound {form} is {ratio.min():.2f} (tightest: {_cell(low)}) to {ratio.max():.3g} "
        f"(loosest: {_cell(high)}) times the distance, median {np.median(ratio):.2f}; median "
        f"shares of its terms: {parts}.",
    ]


def _lipschitz(rows: Rows) -> list[str]:
    seen, proven = _column(rows, "lipschitz"), _column(rows, "lipschitz_product")
    with np.errstate(divide="ignore"):
        powers = np.log10(_column(rows, "bound_product"))
    gap = 1 - _column(rows, "w2_common_noise") / _column(rows, "coupled_common_noise")
    drift = np.median(_column(rows, "bound_drift") / _column(rows, "coupled"))
    return [
        f"L is the largest derivative seen, {seen.min():.2f} to {seen.max():.2f}, a lower "
        f"estimate. The drift's is at most {_column(rows, 'lipschitz_drift').max():.2f}, and with "
        f"that the bound with one L is {drift:.3g} times the distance (median). The product of the "
        f"layers' norms, which is proven, is {proven.min():.3g} to {proven.max():.3g}; with it the "
        f"bound is 10^{powers.min():.0f} to 10^{powers.max():.0f}, true and empty.",
        "Common noise is an almost optimal coupling: W2 of the paired samples is at most "
        f"{gap.max():.2%} below their coupled distance.",
    ]


def _of_dimension(rows: Rows) -> list[str]:
    name = f"Dimension {int(rows[0]['dimension'])}"
    levels = sorted({int(row["updates"]) for row in rows})
    sizes = sorted({int(row["h"]) for row in rows})
    sentences = []

    def mean(column: str, updates: int, steps: int) -> float:
        chosen = [r for r in rows if int(r["updates"]) == updates and int(r["h"]) == steps]
        return float(np.mean(_column(chosen, column)))

    if len(levels) > 1:
        correlations = []
        for steps in sizes:
            cells = [row for row in rows if int(row["h"]) == steps]
            pair = [losses(row, rows) for row in cells], [float(row["coupled"]) for row in cells]
            correlations.append(rank_correlation(*pair))
        falls = (
            f"from {mean('coupled', levels[0], steps):.3g} to "
            f"{mean('coupled', levels[-1], steps):.3g} in {steps} step{'s'[: steps != 1]}"
            for steps in (sizes[0], sizes[-1])
        )
        cells = len({(row["seed"], row["updates"]) for row in rows})
        sentences.append(
            f"{name}: between {levels[0]:,} and {levels[-1]:,} updates the distance falls "
            f"{' and '.join(falls)}; its rank correlation with the losses over {cells} networks is "
            f"{min(correlations):.2f} to {max(correlations):.2f}, by the number of steps."
        )
    ends = [mean("coupled", levels[-1], steps) for steps in sizes]
    bounds = [mean("stepwise_bound", levels[-1], steps) for steps in sizes]
    best = sizes[int(np.argmin(ends))]
    sentences.append(
        f"{name}, {levels[-1]:,} updates: fewer steps cost {ends[0] - ends[-1]:+.3g} of distance "
        f"({ends[-1]:.3g} in {sizes[-1]} steps, {ends[0]:.3g} in {sizes[0]}, least {min(ends):.3g} "
        f"in {best}); the bound step by step allows {bounds[-1]:.3g} and {bounds[0]:.3g}."
    )
    return sentences


def _cell(row: Mapping[str, Any]) -> str:
    return (
        f"dimension {int(row['dimension'])}, seed {int(row['seed'])}, "
        f"{int(row['updates']):,} updates, h = 1/{int(row['h'])}"
    )


def _column(rows: Rows, name: str) -> Values:
    return np.array([row[name] for row in rows], np.float64)
