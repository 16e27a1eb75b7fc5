"""Image encoders against slow NumPy, and that an image is encoded once."""

from __future__ import annotations

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sorl import encoders
from sorl.encoders import Convolution, Encoder, image_of, max_pool
from sorl.errors import InputError
from sorl.nn import ActionNetwork, ValueNetwork
from sorl.types import EncoderName, Image, Spec

IMAGE = Image(height=5, width=6, channels=2, frames=2)
SPEC = Spec(observation_size=IMAGE.size + 3, action_size=2, image=IMAGE)


def observation(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, IMAGE.size)
    return np.concatenate([pixels, random.normal(size=3)]).astype(np.float32)


def slow_convolution(image: np.ndarray, layer: Convolution) -> np.ndarray:
    """The definition, place by place: the kernel's columns outermost, then its rows."""
    height, width, inputs = image.shape
    weight = np.asarray(layer.weight, np.float64).reshape(3, 3, inputs, -1)
    result = np.tile(np.asarray(layer.bias, np.float64), (height, width, 1))
    for y, x, dy, dx in itertools.product(range(height), range(width), range(3), range(3)):
        row, column = y + dy - 1, x + dx - 1
        if 0 <= row < height and 0 <= column < width:
            result[y, x] += image[row, column] @ weight[dx, dy]
    return result


def slow_pool(image: np.ndarray) -> np.ndarray:
    """The definition; of an even size the window begins at the place itself, else one before."""
    height, width, channels = image.shape
    result = np.zeros((-(-height // 2), -(-width // 2), channels))
    for y, x in np.ndindex(result.shape[:2]):
        top, left = 2 * y - height % 2, 2 * x - width % 2
        window = image[max(top, 0) : top + 3, max(left, 0) : left + 3]
        result[y, x] = window.max(axis=(0, 1))
    return result


def slow_encoder(encoder: Encoder, flat: np.ndarray) -> np.ndarray:
    """Features in float64 with loops."""
    image = encoder.image
    x = flat[: image.size].astype(np.float64).reshape(image.shape) / 255 - 0.5
    for stack in encoder.stacks:
        x = slow_pool(slow_convolution(x, stack.convolution))
        for block in stack.blocks:
            inside = slow_convolution(np.maximum(x, 0), block.first)
            x = x + slow_convolution(np.maximum(inside, 0), block.second)
    dense = encoder.dense
    x = np.maximum(x, 0).reshape(-1) @ np.asarray(dense.weight) + np.asarray(dense.bias)
    x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    x = x * np.asarray(encoder.norm.scale) + np.asarray(encoder.norm.offset)
    return np.concatenate([x, flat[image.size :]])


@pytest.mark.parametrize("name", ["impala-small", "impala"])
def test_the_encoder_is_the_slow_one(name: EncoderName) -> None:
    image = Image(5, 6, 2, 2, name)
    encoder = Encoder(image, key=jax.random.key(1))
    assert [len(stack.blocks) for stack in encoder.stacks] == [{"impala": 2}.get(name, 1)] * 3
    assert [stack.convolution.bias.shape[0] for stack in encoder.stacks] == [16, 32, 32]
    with jax.disable_jit():
        features = encoder(jnp.asarray(observation(0)))
    np.testing.assert_allclose(features, slow_encoder(encoder, observation(0)), atol=2e-4)


@settings(max_examples=8, deadline=None)
@given(height=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 99))
def test_pooling_of_any_size(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).normal(size=(height, width, 2)).astype(np.float32)
    np.testing.assert_array_equal(max_pool(jnp.asarray(image)), slow_pool(image))


def test_convolution_is_that_of_the_library() -> None:
    layer = Convolution(4, 5, key=jax.random.key(2))
    image = jax.random.normal(jax.random.key(3), (7, 6, 4))
    weight = jnp.swapaxes(layer.weight.reshape(3, 3, 4, 5), 0, 1)
    expected = jax.lax.conv_general_dilated(
        image[None], weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]
    np.testing.assert_allclose(layer(image), expected, atol=1e-5)
    # Glorot: the fans are 9 times the channels.
    limit = np.sqrt(6 / (9 * (4 + 5)))
    assert 0.9 * limit < np.abs(layer.weight).max() <= limit


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "CHANNELS", (3,))
    monkeypatch.setattr(encoders, "UNITS", 5)


@pytest.mark.usefixtures("tiny")
def test_networks_read_features_and_state() -> None:
    seen, action = jnp.asarray(observation(1)), jnp.asarray([0.3, -0.2])
    network = ActionNetwork(SPEC, (4,), scalars=1, key=jax.random.key(4))
    features = network.encode(seen)
    assert features.shape == (5 + 3,)
    np.testing.assert_array_equal(features[5:], seen[IMAGE.size :])
    answer = network(seen, action, jnp.asarray(0.5))
    np.testing.assert_array_equal(answer, network.bind(seen)(action, jnp.asarray(0.5)))
    np.testing.assert_array_equal(answer, network.answer(features, action, jnp.asarray(0.5)))
    assert image_of([features, network]) == IMAGE
    assert ValueNetwork(SPEC, (4,), key=jax.random.key(6))(seen).shape == ()


def test_without_an_image_there_is_no_encoder() -> None:
    network = ActionNetwork(Spec(4, 2), (4,), scalars=0, key=jax.random.key(0))
    seen = jnp.arange(4.0)
    assert network.encode(seen) is seen
    assert image_of(network) is None
    assert len(jax.tree.leaves(eqx.filter(network, eqx.is_array))) == 4


def test_spec_and_back() -> None:
    assert Spec.parse(SPEC.describe()) == SPEC
    assert SPEC.state_size == 3
    assert Spec(4, 2).describe() == {"observation_size": 4, "action_size": 2}
    assert Spec.parse({"observation_size": 4, "action_size": 2}) == Spec(4, 2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((0, 4, 3), "height=0"), ((4, 4, 3, 0), "frames=0")],
)
def test_images_that_make_no_sense(arguments: tuple, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Image(*arguments)
