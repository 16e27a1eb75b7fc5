"""Images of a data set: single frames as uint8 on the device, stacked and shifted when sampled.

    observation of row i = [frames i-F+1, ..., i of its episode stacked in the channels; state]

Before an episode's first row its first frame is repeated. Shifting a copy of every image by a few
pixels at random is the augmentation of DrQ (Kostrikov et al. 2021, arXiv 2004.13649): the image is
padded by its edges and a crop of the old size is taken out. All frames of a stack share one shift;
s and s' of a transition have shifts of their own. With probability p a transition is shifted, which
is decided for each by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped, UInt8

from sorl.errors import InputError
from sorl.types import EncoderName, Image, Transition

PADDING = 3
"""Most pixels by which an image is shifted, in either direction."""

NO_STANDARDISING = (
    "observations with images cannot be standardised, and images need not be: their encoder scales "
    "them. Leave out standardize."
)

PARTS = ("image", "state")
"""What a mapping of observations may hold."""


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How training reads images; without images nothing of it matters.

    Args:
        encoder: what makes features of images, see `sorl.encoders`.
        frame_stack: frames in one observation, its own and those before it, at least 1.
        augment_probability: share of the transitions whose images are shifted at random, 0 to 1.

    Raises:
        InputError: a number out of range; an unknown encoder is refused by `sorl.types.Image`.
    """

    encoder: EncoderName = "impala-small"
    frame_stack: int = 3
    augment_probability: float = 0.5

    def __post_init__(self) -> None:
        """Check the ranges."""
        Image(1, 1, 1, self.frame_stack, self.encoder)
        if not 0 <= self.augment_probability <= 1:
            raise InputError(
                f"augment_probability={self.augment_probability} is not possible: give 0 to 1."
            )


USUAL_IMAGES = ImageSettings()
"""As usual on OGBench's images."""


class Images(eqx.Module):
    """The frames of all rows.

    Attributes:
        frames: every row's own frame.
        first: the first row of the episode that a row belongs to.
        settings: how they are read.
    """

    frames: UInt8[Array, "rows height width channels"]
    first: Int[Array, " rows"]
    settings: ImageSettings = eqx.field(static=True, default=USUAL_IMAGES)

    @property
    def image(self) -> Image:
        """What the first entries of an observation are."""
        height, width, channels = self.frames.shape[1:]
        return Image(height, width, channels, self.settings.frame_stack, self.settings.encoder)

    def stacked(self, row: Int[Array, ""]) -> UInt8[Array, "height width stacked_channels"]:
        """The image of one row, the oldest frame first; callers vmap."""
        count = self.settings.frame_stack
        rows = jnp.maximum(row - jnp.arange(count - 1, -1, -1), self.first[row])
        # Rows come from the data set itself, so the gather needs no handling of bad indices.
        frames = self.frames.at[rows].get(mode="promise_in_bounds")
        return jnp.moveaxis(frames, 0, 2).reshape(self.image.shape)

    def flat(self, row: Int[Array, ""]) -> Float[Array, " pixels"]:
        """The same as the first entries of an observation."""
        return self.stacked(row).reshape(-1).astype(jnp.float32)


def images_of(frames: np.ndarray, ends: np.ndarray) -> Images:
    """Put frames on the default device.

    Args:
        frames: uint8 `[rows, height, width, channels]`.
        ends: true on the last row of each episode, `[rows]`.
    """
    starts = np.append(True, ends[:-1])
    first = np.maximum.accumulate(np.where(starts, np.arange(len(ends)), 0))
    return Images(frames=jnp.array(frames), first=jnp.array(first, jnp.int32))


def random_crop(
    image: Shaped[Array, "height width channels"], shift: Int[Array, " 2"]
) -> Shaped[Array, "height width channels"]:
    """The image as seen `shift - PADDING` pixels further down and right, its edges replicated.

    Args:
        image: one image, of any type.
        shift: rows and columns, each 0 to 2 `PADDING`; `PADDING` leaves the image as it is.
    """
    padded = jnp.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="edge")
    return jax.lax.dynamic_slice(padded, (shift[0], shift[1], 0), image.shape)


def augmented(
    batch: Transition, image: Image, probability: float, *, key: PRNGKeyArray
) -> Transition:
    """A batch of which every transition is shifted with this probability, as told above.

    Args:
        batch: transitions, leading axis rows.
        image: what the first entries of an observation are.
        probability: 0 to 1.
        key: random key.
    """
    chosen_key, shift_key = jax.random.split(key)
    rows = batch.reward.shape[0]
    chosen = jax.random.bernoulli(chosen_key, probability, (rows,))
    shifts = jax.random.randint(shift_key, (2, rows, 2), 0, 2 * PADDING + 1)
    shifts = jnp.where(chosen[None, :, None], shifts, PADDING)

    def shifted(
        observation: Float[Array, " observation_size"], shift: Int[Array, " 2"]
    ) -> Float[Array, " observation_size"]:
        pixels, state = jnp.split(observation, [image.size])
        crop = random_crop(pixels.reshape(image.shape), shift)
        return jnp.concatenate([crop.reshape(-1), state])

    return batch._replace(
        observation=jax.vmap(shifted)(batch.observation, shifts[0]),
        next_observation=jax.vmap(shifted)(batch.next_observation, shifts[1]),
    )


class Observed(NamedTuple):
    """Observations taken apart.

    Attributes:
        frames: uint8 `[rows, height, width, channels]`, or None.
        state: what is left, any array whose leading axis is rows; None where nothing is.
    """

    frames: np.ndarray | None
    state: Any


def take_apart(source: str, name: str, observations: Any) -> Observed:
    """Images and states of observations as users give them.

    Args:
        source: file or origin that messages begin with.
        name: what the observations are called in messages.
        observations: states; or images, uint8 `[rows, height, width, channels]`; or a mapping of
            `image` and, where there is one, `state`.

    Raises:
        InputError: another mapping, or images of another type or shape.
    """
    if not isinstance(observations, Mapping):
        array = _array_or_none(observations)
        if array is None or array.dtype != np.uint8 or array.ndim < 3:
            return Observed(None, observations)
        return Observed(_frames(source, name, array), None)
    unknown = [str(key) for key in observations if key not in PARTS]
    if unknown or "image" not in observations:
        raise InputError(
            f"{source}: {name} are a mapping of {', '.join(map(str, observations))}, but it must "
            "hold `image`, and `state` if there is one."
        )
    image = _array_or_none(observations["image"])
    if image is None:
        raise InputError(f"{source}: {name}: the images are not one rectangular array.")
    return Observed(_frames(source, f"{name}: image", image), observations.get("state"))


def _frames(source: str, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 4 or 0 in array.shape[1:]:
        raise InputError(
            f"{source}: {name} are {array.dtype} of shape {array.shape}, but images must be uint8 "
            "of shape (rows, height, width, channels)."
        )
    return array


def _array_or_none(values: Any) -> np.ndarray | None:
    try:
        return np.asarray(values)
    except (ValueError, TypeError):
        return None
