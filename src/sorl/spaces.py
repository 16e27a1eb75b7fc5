"""Observations of Gymnasium's spaces as one flat vector, for logs and environments alike.

The entries of a `Dict` follow each other in the order of the space (Gymnasium sorts a plain dict by
its keys, so `achieved_goal`, `desired_goal`, `observation`), those of a `Tuple` in its order. A
`Box` is flattened row by row, a `MultiBinary` is taken as numbers, a `Discrete` becomes one entry a
value, 1 at its own. That is the order of `gymnasium.spaces.flatten`.

Never imports JAX: worker processes need it too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sorl.errors import InputError


def flatten(space: Any, values: Any, leading: tuple[int, ...] = ()) -> np.ndarray:
    """One flat vector for each value.

    Args:
        space: the space of one value.
        values: a value, or arrays of values with these leading axes where the value has arrays.
        leading: shape of the leading axes.

    Returns:
        `[*leading, size]`.

    Raises:
        InputError: images, text, graphs or sequences are in the space, or `values` do not fit it.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        inside = space.spaces
        named: Any = inside.items() if isinstance(space, spaces.Dict) else enumerate(inside)  # pyright: ignore[reportAttributeAccessIssue]
        parts = []
        for name, part in named:
            try:
                value = values[name]
            except (KeyError, IndexError, TypeError):
                raise InputError(f"Observations lack {name!r}, which their space has.") from None
            parts.append(flatten(part, value, leading))
        return np.concatenate(parts, axis=-1)
    if isinstance(space, spaces.Discrete):
        array = np.asarray(values).reshape(leading)
        return (array[..., None] == np.arange(space.start, space.start + space.n)).astype(
            np.float32
        )
    if isinstance(space, spaces.MultiBinary | spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) > 1:
            raise InputError(f"Observations hold images ({space}), which sorl does not read yet.")
        array = np.asarray(values)
        size = int(np.prod(space.shape))
        if array.shape != (*leading, *space.shape):
            raise InputError(
                f"Observations of {space} have shape {array.shape} instead of "
                f"{(*leading, *space.shape)}."
            )
        return array.reshape(*leading, size)
    raise InputError(f"Observations of {space} cannot be made a vector of numbers.")
