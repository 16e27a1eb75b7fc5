"""GELU and LayerNorm in one kernel: against NumPy and the layers that it stands for."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import one_member
from sorl import kernels
from sorl.algorithms.sorl import SORL
from sorl.arithmetic import Arithmetic, Compute, computing
from sorl.layers import LAYER_NORM_EPSILON
from sorl.mixed_precision import in_arithmetic
from sorl.nn import MLP

# bfloat16 has 8 significant bits: rounding moves a number by at most this share of it.
ROUNDING = 2.0**-8
MEMBERS, HEADS, ROWS, SIZE = 3, 2, 32, 64
ALGORITHM = SORL(hidden=(32, 32), discretization=2, backprop_steps=1)


def over_all(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mapped over members and heads, as training does."""
    return jax.vmap(jax.vmap(function))


@pytest.fixture
def arguments(rng: np.random.Generator) -> tuple[jax.Array, ...]:
    """h, bias, scale, offset and a gradient d, each of its own for every member and head."""

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=(MEMBERS, HEADS, *shape))

    h, d = (jnp.asarray(draw(ROWS, SIZE), jnp.bfloat16) for _ in range(2))
    bias, offset = (jnp.asarray(draw(SIZE), jnp.float32) for _ in range(2))
    scale = jnp.asarray(1 + 0.3 * draw(SIZE), jnp.float32)
    return h, bias, scale, offset, d


def reference(h: Any, bias: Any, scale: Any, offset: Any) -> Any:
    """The layer in float64, written as its parts are defined."""
    a = h + bias[..., None, :]
    g = 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
    centred = g - g.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
    return y * scale[..., None, :] + offset[..., None, :]


def test_the_layer_is_that_of_numpy_in_float64(arguments):
    *layer, _ = arguments
    exact = reference(*(np.asarray(one, np.float64) for one in layer))
    found = np.asarray(over_all(kernels.gelu_layer_norm)(*layer), np.float64)
    np.testing.assert_allclose(found, exact, rtol=ROUNDING, atol=1e-5)


def test_its_gradients_are_the_slopes_of_numpy_s_layer(arguments):
    *layer, d = (np.asarray(one, np.float64) for one in arguments)

    def loss(*layer: np.ndarray) -> np.ndarray:
        return (reference(*layer) * d).sum((-1, -2))

    _, back = jax.vjp(over_all(kernels.gelu_layer_norm), *arguments[:-1])
    found = [np.asarray(one, np.float64) for one in back(arguments[-1])]
    width = 1e-5
    for place in range(4):
        shape = layer[place].shape[2:]
        for entry in ((0,) * len(shape), tuple(n // 2 for n in shape), tuple(n - 1 for n in shape)):
            ends = []
            for sign in (-1, 1):
                moved = [one.copy() for one in layer]
                moved[place][:, :, *entry] += sign * width
                ends.append(loss(*moved))
            slope = (ends[1] - ends[0]) / (2 * width)
            # The bias adds up gradients that were rounded, each by its own share.
            tolerance = 1e-4 if place else 1e-6
            rounding = np.abs(found[0]).sum(-2).max() * ROUNDING if place == 1 else 0.0
            np.testing.assert_allclose(
                found[place][:, :, *entry], slope, rtol=ROUNDING, atol=tolerance + rounding
            )


def test_the_kernels_of_a_gpu_compute_the_same(arguments):
    h, bias, scale, offset, d = arguments
    on_gpu = functools.partial(kernels._on_gpu, interpret=True)
    gradient = functools.partial(kernels._gradient_on_gpu, interpret=True)
    pairs = [
        (over_all(on_gpu)(h, bias, scale, offset), over_all(kernels.plain)(h, bias, scale, offset)),
        *zip(
            over_all(gradient)(h, bias, scale, d),
            over_all(kernels.plain_gradient)(h, bias, scale, d),
            strict=True,
        ),
    ]
    for found, expected in pairs:
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        rtol = ROUNDING if found.dtype == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(
            np.asarray(found, np.float64), np.asarray(expected, np.float64), rtol=rtol, atol=1e-4
        )


def test_a_gpu_is_given_one_kernel_a_layer_and_one_for_its_gradient():
    shapes = [(256, 512), (512,), (512,), (512,)]
    kinds = [jnp.bfloat16, *[jnp.float32] * 3]
    arguments = [jax.ShapeDtypeStruct((4, 2, *s), k) for s, k in zip(shapes, kinds, strict=True)]

    def loss(*layer: jax.Array) -> jax.Array:
        return jnp.sum(over_all(kernels.gelu_layer_norm)(*layer).astype(jnp.float32) ** 2)

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).trace(*arguments)
    made = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert made.count("custom_call @") == made.count("triton(") + made.count("triton_kernel") == 2
    assert "triton" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [(256, 512, True), (16, 32, True), (24, 512, False), (256, 300, False), (256, 16, False)],
)
def test_which_shapes_fit(rows, size, expected):
    assert kernels.fits(rows, size) is expected


@pytest.mark.parametrize("hidden", [(64, 32), (64, 40)], ids=["kernels", "a layer that fits none"])
@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_many_rows_are_mapped_as_one_by_one(hidden, arithmetic: Arithmetic, rng):
    fused = arithmetic == "bfloat16"
    network = MLP(20, hidden, 1, layer_norm=True, key=jax.random.key(0))
    network = computing(network, Compute(arithmetic, fused=fused))
    x = jnp.asarray(rng.normal(size=(32, 20)), jnp.float32)

    def loss(network: MLP, *, way: Callable[[MLP], jax.Array]) -> tuple[jax.Array, jax.Array]:
        answers = way(network)
        return jnp.mean((answers - 1) ** 2), answers

    ways = [lambda network: network.batch(x, fusing=True), lambda network: jax.vmap(network)(x)]
    (_, found), gradient = eqx.filter_value_and_grad(
        functools.partial(loss, way=ways[0]), has_aux=True
    )(network)
    (_, expected), slope = eqx.filter_value_and_grad(
        functools.partial(loss, way=ways[1]), has_aux=True
    )(network)
    # Products and sums of a few dozen rounded numbers of size 1.
    tolerance = 1e-6 if arithmetic == "float32" else 8 * ROUNDING
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(slope), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.max(jnp.abs(b))))
    program = jax.make_jaxpr(functools.partial(network.batch, fusing=True))(x)
    assert ("gelu_layer_norm" in str(program)) == fused


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What JAX tells of a GPU."""

    compute_capability: str
    platform: str = "gpu"


@pytest.mark.parametrize(
    ("gpus", "batch_devices", "expected"),
    [
        ([], 1, False),
        ([Gpu("9.0")], 1, True),
        ([Gpu("8.0"), Gpu("12.0")], 1, True),
        ([Gpu("9.0"), Gpu("7.5")], 1, False),
        ([Gpu("gfx942")], 1, False),
        ([Gpu("9.0"), Gpu("9.0")], 2, False),
    ],
)
def test_training_takes_the_kernels_where_they_can_be_made_and_divided(
    gpus: list[Gpu], batch_devices: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for GPUs before Ampere, nor where devices share the rows of a batch."""
    state = jax.eval_shape(lambda key: ALGORITHM.init(one_member.SPEC, key=key), jax.random.key(0))
    batch = one_member.batch_of(np.random.default_rng(0), 32)
    monkeypatch.setattr("sorl.kernels.jax.devices", lambda: [*gpus, *jax.local_devices()])
    monkeypatch.setattr(
        "sorl.mixed_precision.jax.default_backend", lambda: "gpu" if gpus else "cpu"
    )
    training = in_arithmetic(ALGORITHM, "bfloat16", batch_devices=batch_devices)
    update = jax.jit(lambda *arguments, key: training.update(*arguments, key=key))
    monkeypatch.undo()
    traced = update.trace(state, batch, jnp.int32(0), key=jax.random.key(1))
    assert ("triton" in traced.lower(lowering_platforms=("cuda",)).as_text()) == expected


def test_who_only_acts_does_not_import_what_makes_kernels() -> None:
    program = "import sys, sorl.deployment.policy; print('jax.experimental.pallas' in sys.modules)"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"False\n"
