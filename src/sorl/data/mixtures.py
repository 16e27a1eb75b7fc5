"""Several data sets as one, from which every batch takes its share of each.

A row of a batch comes from source i with probability w_i / Σw, and is then uniform over the
transitions of that source.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from sorl.data.checks import check_once
from sorl.data.dataset import Dataset, Mixture
from sorl.data.images import Images
from sorl.errors import InputError


def split_weight(text: str) -> tuple[str, float | None]:
    """`data/a.npz:0.7` as a source and its weight; None where none is given.

    Raises:
        InputError: the weight is not above 0, or not finite.
    """
    source, sign, number = text.rpartition(":")
    if not sign or not source or os.path.exists(text):
        return text, None
    try:
        weight = float(number)
    except ValueError:
        return text, None  # the colon belongs to the name
    if not 0 < weight < math.inf:
        raise InputError(f"The weight of {source} is {number}: give a number above 0.")
    return source, weight


def joined(images: Sequence[Images | None], starts: np.ndarray) -> Images:
    """The images of several data sets one after the other, the rows of each from a start on."""
    every = [one for one in images if one is not None]
    return dataclasses.replace(
        every[0],
        frames=jnp.concatenate([one.frames for one in every]),
        first=jnp.concatenate([one.first + int(s) for one, s in zip(every, starts, strict=True)]),
    )


def mix(
    datasets: Sequence[Dataset], weights: Sequence[float | None], names: Sequence[str]
) -> Dataset:
    """One data set that draws from several.

    Args:
        datasets: at least two, of the same sizes, tasks and units.
        weights: one for each, above 0; or None for all, and every transition is as likely.
        names: what each is called in messages.

    Raises:
        InputError: sizes, tasks or units differ, one is named twice, or only some have a weight.
    """
    known = [weight is not None for weight in weights]
    if any(known) != all(known):
        raise InputError(
            f"Only some of the data have a weight: give one to {names[known.index(False)]} too, "
            "such as FILE:0.5, or to none."
        )
    check_once(names)
    first = datasets[0]
    for dataset, name in zip(datasets[1:], names[1:], strict=True):
        for what, one, other in (
            ("sizes", first.spec, dataset.spec),
            ("tasks", first.tasks, dataset.tasks),
        ):
            if one != other:
                raise InputError(
                    f"{names[0]} and {name} cannot be mixed: their {what} are {one} and {other}."
                )
        if first.units != dataset.units:
            raise InputError(
                f"{names[0]} and {name} cannot be mixed: their actions or observations are in "
                f"other units. Import one anew with --like {names[0]}, or both with the same "
                "--action-low and --action-high."
            )
    counts = np.array([dataset.valid_rows.shape[0] for dataset in datasets])
    shares = counts / counts.sum() if not any(known) else np.array(weights, np.float64)
    rows = np.array([dataset.ends.shape[0] for dataset in datasets])
    starts = np.cumsum(rows) - rows
    images = [dataset.images for dataset in datasets]
    return dataclasses.replace(
        first,
        images=None if first.images is None else joined(images, starts),
        observations=jnp.concatenate([dataset.observations for dataset in datasets]),
        actions=jnp.concatenate([dataset.actions for dataset in datasets]),
        rewards=jnp.concatenate([dataset.rewards for dataset in datasets], axis=1),
        masks=jnp.concatenate([dataset.masks for dataset in datasets], axis=1),
        ends=jnp.concatenate([dataset.ends for dataset in datasets]),
        valid_rows=jnp.concatenate(
            [dataset.valid_rows + int(s) for dataset, s in zip(datasets, starts, strict=True)]
        ),
        mixture=Mixture(
            weights=jnp.array(shares / shares.sum(), jnp.float32),
            first=jnp.array(np.cumsum(counts) - counts, jnp.int32),
            count=jnp.array(counts, jnp.int32),
        ),
    )
