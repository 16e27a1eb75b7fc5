"""Image encoders: from the pixels of an observation to features, the rest of it unchanged.

    features = [encoder(pixels / 255 - 1/2), state]

An observation is one flat vector of numbers, pixels first (see `sorl.types.Image`), so nothing but
the networks that read it knows of images. Every network has an encoder of its own, and the heads of
a critic share one, as usual in the field.

The encoder is that of IMPALA (Espeholt et al. 2018, arXiv 1802.01561, figure 3, the large one):
three stacks of 16, 32 and 32 channels, each

    convolution 3x3 -> max pooling 3x3, stride 2 -> residual blocks (ReLU, conv, ReLU, conv, add)

then ReLU, flatten, dense. `impala` has two residual blocks in a stack, as in the paper,
`impala-small` one, as usual on OGBench's images. Departures: no LSTM; 512 units after the
convolutions and not 256; behind them GELU and LayerNorm, as in the hidden layers of `sorl.nn`.

Convolutions and pooling are written as slices and matrix products. On a CPU that is as fast as a
convolution for one network and faster for several mapped ones, whose convolutions become grouped.
And an exported policy needs no operations that others lack.
"""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from sorl.arithmetic import Compute
from sorl.layers import LayerNorm, Linear
from sorl.types import EncoderName, Image, Spec

KERNEL = 3
LOWEST = float(np.finfo(np.float32).min)
CHANNELS = (16, 32, 32)
UNITS = 512
BLOCKS: dict[EncoderName, int] = {"impala-small": 1, "impala": 2}


class Convolution(eqx.Module):
    """A 3x3 convolution of stride 1 that keeps height and width, zeros around the image.

    Glorot-uniform weights, whose fans count the kernel's places, which stand in the order of its
    columns, then rows; zero bias.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
    """

    weight: Float[Array, "places outputs"]
    bias: Float[Array, " outputs"]
    compute: Compute

    def __init__(self, inputs: int, outputs: int, *, key: PRNGKeyArray):
        initialise = jax.nn.initializers.glorot_uniform()
        weight = initialise(key, (KERNEL, KERNEL, inputs, outputs), jnp.float32)
        self.weight = weight.reshape(KERNEL * KERNEL * inputs, outputs)
        self.bias = jnp.zeros(outputs)
        self.compute = Compute()

    def __call__(
        self, image: Float[Array, "height width inputs"]
    ) -> Float[Array, "height width outputs"]:
        """Map one image."""
        for axis in (0, 1):
            padded = _padded(image, axis, 1, 1, 0.0)
            size = image.shape[axis]
            places = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(KERNEL)]
            image = jnp.concatenate(places, axis=-1)
        return self.compute.product(image, self.weight) + self.bias[None, None]


def max_pool(
    image: Float[Array, "height width channels"],
) -> Float[Array, "half_height half_width channels"]:
    """The largest of 3x3 places at every second one; sizes are halved, odd ones rounded up.

    The window stands as `SAME` padding puts it: over an even size it begins at the first place.
    """
    for axis in (0, 1):
        size = image.shape[axis]
        before, count = size % 2, -(-size // 2)
        # Pairs of places, one pair more than there are windows: each window is a pair and the
        # first place of the next one.
        padded = _padded(image, axis, before, 2 * count + 2 - size - before, LOWEST)
        pairs = padded.reshape(*image.shape[:axis], count + 1, 2, *image.shape[axis + 1 :])
        first, second = (
            jax.lax.index_in_dim(pairs, i, axis=axis + 1, keepdims=False) for i in (0, 1)
        )
        here, following = (jax.lax.slice_in_dim(first, i, i + count, axis=axis) for i in (0, 1))
        beside = jax.lax.slice_in_dim(second, 0, count, axis=axis)
        image = jnp.maximum(jnp.maximum(here, beside), following)
    return image


def _padded(
    image: Float[Array, "height width channels"], axis: int, before: int, after: int, value: float
) -> Float[Array, "rows columns channels"]:
    """The image with so many places more at both ends of an axis."""
    padding = [(0, 0, 0)] * 3
    padding[axis] = (before, after, 0)
    return jax.lax.pad(image, jnp.asarray(value, image.dtype), padding)


class ResidualBlock(eqx.Module):
    """x + conv(relu(conv(relu(x)))).

    Args:
        channels: of input and output.
    """

    first: Convolution
    second: Convolution

    def __init__(self, channels: int, *, key: PRNGKeyArray):
        keys = jax.random.split(key)
        self.first = Convolution(channels, channels, key=keys[0])
        self.second = Convolution(channels, channels, key=keys[1])

    def __call__(
        self, image: Float[Array, "height width channels"]
    ) -> Float[Array, "height width channels"]:
        """Map one image."""
        return image + self.second(jax.nn.relu(self.first(jax.nn.relu(image))))


class Stack(eqx.Module):
    """Convolution, pooling, residual blocks.

    Args:
        inputs: channels of the input.
        outputs: channels of the output, whose height and width are halved.
        blocks: number of residual blocks.
    """

    convolution: Convolution
    blocks: tuple[ResidualBlock, ...]

    def __init__(self, inputs: int, outputs: int, *, blocks: int, key: PRNGKeyArray):
        first, *rest = jax.random.split(key, 1 + blocks)
        self.convolution = Convolution(inputs, outputs, key=first)
        self.blocks = tuple(ResidualBlock(outputs, key=k) for k in rest)

    def __call__(
        self, image: Float[Array, "height width inputs"]
    ) -> Float[Array, "half_height half_width outputs"]:
        """Map one image."""
        image = max_pool(self.convolution(image))
        for block in self.blocks:
            image = block(image)
        return image


class Encoder(eqx.Module):
    """From ONE flat observation to features: those of its image, then its state.

    Args:
        image: what the first entries of the observation are.
    """

    stacks: tuple[Stack, ...]
    dense: Linear
    norm: LayerNorm
    image: Image = eqx.field(static=True)

    def __init__(self, image: Image, *, key: PRNGKeyArray):
        *stack_keys, dense_key = jax.random.split(key, len(CHANNELS) + 1)
        height, width, inputs = image.shape
        stacks = []
        for outputs, k in zip(CHANNELS, stack_keys, strict=True):
            stacks.append(Stack(inputs, outputs, blocks=BLOCKS[image.encoder], key=k))
            height, width, inputs = -(-height // 2), -(-width // 2), outputs
        self.stacks = tuple(stacks)
        self.dense = Linear(height * width * inputs, UNITS, key=dense_key)
        self.norm = LayerNorm(UNITS)
        self.image = image

    def __call__(self, observation: Float[Array, " observation_size"]) -> Float[Array, " features"]:
        """Features of one observation."""
        pixels, state = jnp.split(observation, [self.image.size])
        x = pixels.reshape(self.image.shape) / 255 - 0.5
        for stack in self.stacks:
            x = stack(x)
        x = self.dense(jax.nn.relu(x).reshape(-1))
        return jnp.concatenate([self.norm(jax.nn.gelu(x, approximate=True)), state])


def begin(spec: Spec, key: PRNGKeyArray) -> tuple[Encoder | None, int, PRNGKeyArray]:
    """What a network over observations begins with.

    Returns:
        An encoder, or None where there is no image; how many features come of an observation; and
        the key for the rest of the network, which is `key` itself where there is no image.
    """
    if spec.image is None:
        return None, spec.observation_size, key
    encoder_key, key = jax.random.split(key)
    features = UNITS + spec.observation_size - spec.image.size
    return Encoder(spec.image, key=encoder_key), features, key


def encode(
    encoder: Encoder | None, observation: Float[Array, " observation_size"]
) -> Float[Array, " features"]:
    """Features of one observation; the observation itself where there is no encoder."""
    return observation if encoder is None else encoder(observation)


def encode_batch(
    encoder: Encoder | None, observation: Float[Array, "rows observation_size"]
) -> Float[Array, "rows features"]:
    """`encode` of many observations."""
    return jax.vmap(functools.partial(encode, encoder))(observation)


def image_of(tree: object) -> Image | None:
    """The image that the networks inside `tree` read; None where they read states."""
    for leaf in jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Encoder)):
        if isinstance(leaf, Encoder):
            return leaf.image
    return None


def frames_of(tree: object) -> int:
    """How many frames the networks inside `tree` read stacked; 1 where they read no image."""
    image = image_of(tree)
    return 1 if image is None else image.frames


def as_observation(image: Image, pixels: np.ndarray, state: np.ndarray | None) -> np.ndarray:
    """Flat float32 observations of images `[..., *image.shape]` and states `[..., size]`."""
    leading = pixels.shape[: -len(image.shape)]
    flat = pixels.reshape(*leading, image.size).astype(np.float32)
    return flat if state is None else np.concatenate([flat, state.astype(np.float32)], axis=-1)
