"""Observations of images as a policy's users have them, made the flat vectors that it reads.

Beside the flat vector itself (pixels first, 0 to 255, then the state) a policy of images takes

    images                       uint8 [..., height, width, frames * channels]
    {"image": ..., "state": ...} such images with states [..., state_size]

The frames stand in the channels, the oldest first; before an episode's start its first frame is
repeated. Whoever acts keeps them, for a policy has no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sorl.encoders import as_observation
from sorl.errors import InputError
from sorl.types import Image, Spec


def flat_observation(spec: Spec, image: Image, observation: Any) -> Any:
    """The flat observation of images, and of images with states; anything else as it is.

    Raises:
        InputError: the images or states have another type or shape.
    """
    state: Any = None
    if isinstance(observation, Mapping):
        names = ["image", *(["state"] if spec.state_size else [])]
        if set(observation) != set(names):
            raise InputError(
                f"The observation is a mapping of {', '.join(map(str, observation)) or 'nothing'}, "
                f"but this policy takes {' and '.join(names)}."
            )
        pixels, state = np.asarray(observation["image"]), observation.get("state")
        if pixels.dtype != np.uint8:
            raise InputError(f"The image is {pixels.dtype}, but must be uint8.")
    else:
        pixels = np.asarray(observation) if hasattr(observation, "dtype") else None
        if pixels is None or pixels.dtype != np.uint8 or pixels.ndim < 3:
            return observation
        if spec.state_size:
            raise InputError(
                "The observation is an image alone, but this policy reads a state too: give "
                "{'image': ..., 'state': ...}."
            )
    if pixels.shape[-3:] != image.shape:
        raise InputError(
            f"The image has shape {list(pixels.shape)}, but this policy takes "
            f"{list(image.shape)} ({image}, stacked in the channels) or a batch of them."
        )
    if state is not None:
        state = np.asarray(state)
        if state.dtype.kind not in "fiub" or state.shape != (*pixels.shape[:-3], spec.state_size):
            raise InputError(
                f"The state has shape {list(state.shape)}, but beside this image must be numbers "
                f"of shape {[*pixels.shape[:-3], spec.state_size]}."
            )
    return as_observation(image, pixels, state)
