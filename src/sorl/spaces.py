"""Observations of Gymnasium's spaces as an image and one flat vector, for logs and environments.

An image is a `Box` of uint8 with height, width and channels: a whole observation, or one entry of a
`Dict`, whose other entries are the state beside it.

The entries of a `Dict` follow each other in the order of the space (Gymnasium sorts a plain dict by
its keys, so `achieved_goal`, `desired_goal`, `observation`), those of a `Tuple` in its order. A
`Box` is flattened row by row, a `MultiBinary` is taken as numbers, a `Discrete` becomes one entry a
value, 1 at its own. That is the order of `gymnasium.spaces.flatten`.

Never imports JAX: worker processes need it too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sorl.errors import InputError


class Apart(NamedTuple):
    """An observation taken apart.

    Attributes:
        image: uint8 `[*leading, height, width, channels]`; None where there is none.
        state: `[*leading, size]`; its size may be 0 beside an image.
    """

    image: np.ndarray | None
    state: np.ndarray

    def together(self) -> np.ndarray | dict[str, np.ndarray]:
        """The state, or the image, or a mapping of both, as data sets take them."""
        if self.image is None:
            return self.state
        return {"image": self.image, "state": self.state} if self.state.shape[-1] else self.image


def is_image(space: Any) -> bool:
    """Whether this space is that of an image."""
    from gymnasium import spaces

    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape or ()) == 3


def take_apart(space: Any, values: Any, leading: tuple[int, ...] = ()) -> Apart:
    """Image and state of each value; arguments as for `flatten`.

    Raises:
        InputError: as `flatten`; so images that are not the only one, or lie deeper, are refused.
    """
    from gymnasium import spaces

    if is_image(space):
        array = np.asarray(values)
        if array.shape != (*leading, *space.shape) or array.dtype != np.uint8:
            raise InputError(
                f"Images are {array.dtype} of shape {array.shape} instead of uint8 of shape "
                f"{(*leading, *space.shape)}."
            )
        return Apart(array, np.zeros((*leading, 0)))
    if isinstance(space, spaces.Dict):
        images = [name for name, part in space.spaces.items() if is_image(part)]
        if len(images) == 1 and images[0] in values:
            image, _ = take_apart(space[images[0]], values[images[0]], leading)
            rest = {name: part for name, part in space.spaces.items() if name != images[0]}
            parts = [flatten(spaces.Dict(rest), values, leading)] if rest else []
            return Apart(image, np.concatenate([np.zeros((*leading, 0)), *parts], axis=-1))
    return Apart(None, flatten(space, values, leading))


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
            raise InputError(
                f"Observations hold images ({space}) that cannot be read: one of uint8 with "
                "height, width and channels can, alone or as an entry of a dictionary."
            )
        array = np.asarray(values)
        size = int(np.prod(space.shape))
        if array.shape != (*leading, *space.shape):
            raise InputError(
                f"Observations of {space} have shape {array.shape} instead of "
                f"{(*leading, *space.shape)}."
            )
        return array.reshape(*leading, size)
    raise InputError(f"Observations of {space} cannot be made a vector of numbers.")
