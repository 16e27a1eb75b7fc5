"""In which numbers networks compute: float32, TF32 or bfloat16; parameters are float32 in all.

Nearly all of a training's time goes into products of activations and weights, and GPUs (and some
processors) multiply shorter numbers several times as fast. Everything else stays in float32: the
parameters, their optimisers and averages, biases, activation functions, normalisation and losses.

`float32` is exact to float32's rounding, and what policies act in. `tf32` rounds both factors to 10
bits behind the point (NVIDIA GPUs since Ampere) and gives float32. `bfloat16` rounds the factors to
7 bits; on GPUs the result too, which halves what travels through memory. Processors that multiply
bfloat16 (`avx512_bf16` or `amx_bf16` among their flags) add up in float32 and would lose time
rounding the sums, so on CPUs the result is float32. CPUs without such instructions gain nothing by
it, nor do the encoders of images on any.

On CPUs the gradients of batches' products are written out, in every arithmetic: XLA's own are the
same sums, but of factors that its libraries there read the slow way. They have no derivative of
their own, nor a forward mode.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sorl.errors import InputError

Arithmetic = Literal["float32", "tf32", "bfloat16"]

Tree = TypeVar("Tree")

# On a GPU, JAX's default is TF32.
_PRECISION: Mapping[Arithmetic, Any] = {
    "float32": jax.lax.Precision.HIGHEST,
    "tf32": jax.lax.DotAlgorithmPreset.TF32_TF32_F32,
    "bfloat16": None,
}


class Compute(eqx.Module):
    """How a layer computes.

    Args:
        arithmetic: in which numbers.
        fused: whether what stands between two products may be one kernel, see `sorl.kernels`.
        on_cpu: whether products and their gradients are made as CPUs make them fastest.
    """

    arithmetic: Arithmetic = eqx.field(static=True, default="float32")
    fused: bool = eqx.field(static=True, default=False)
    on_cpu: bool = eqx.field(static=True, default=False)

    def factor(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`x` as a product reads it."""
        return x.astype(jnp.bfloat16) if self.arithmetic == "bfloat16" else x

    def product(
        self, x: Float[Array, "*rows inputs"], weight: Float[Array, "inputs outputs"]
    ) -> Float[Array, "*rows outputs"]:
        """x W, as float32."""
        x, weight = self.factor(x), self.factor(weight)
        if self.on_cpu:
            return _product(self, x, weight, ((x.ndim - 1,), (0,)))
        return jnp.matmul(x, weight, precision=_PRECISION[self.arithmetic]).astype(jnp.float32)

    def batch_product(
        self, x: Float[Array, "rows inputs"], weight: Float[Array, "inputs outputs"]
    ) -> Float[Array, "rows outputs"]:
        """x W of a matrix x, as float32, and so are the products of its gradient on a CPU."""
        if not self.on_cpu:
            return self.product(x, weight)
        # A weight may be `sorl.layers.shortened`; going up and down again costs nothing.
        return _cpu_product(self, x.astype(jnp.float32), weight.astype(jnp.float32))

    def weight_gradient(
        self, x: Float[Array, "rows inputs"], gradient: Float[Array, "rows outputs"]
    ) -> Float[Array, "inputs outputs"]:
        """x^T g, as float32: the gradient of `batch_product` with respect to the weight."""
        x, gradient = self.factor(x), self.factor(gradient)
        if self.on_cpu:
            return _cpu_weight_gradient(self, x, gradient)
        return self.product(x.T, gradient)

    def gelu(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """GELU, tanh approximation."""
        rounded = self.arithmetic == "bfloat16" and not self.on_cpu
        return _gelu(x) if rounded else jax.nn.gelu(x, approximate=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cpu_product(
    compute: Compute, x: Float[Array, "rows inputs"], weight: Float[Array, "inputs outputs"]
) -> Float[Array, "rows outputs"]:
    """x W of float32 factors, shortened here, and x^T g and g W^T as its gradient g's products.

    Plain differentiation would multiply the gradient in float32, as which it comes.
    """
    return _cpu_forward(compute, x, weight)[0]


def _cpu_forward(
    compute: Compute, x: Float[Array, "rows inputs"], weight: Float[Array, "inputs outputs"]
) -> tuple[Float[Array, "rows outputs"], tuple[Array, Array]]:
    x, weight = compute.factor(x), compute.factor(weight)
    return _product(compute, x, weight, ((1,), (0,))), (x, weight)


def _cpu_backward(
    compute: Compute, kept: tuple[Array, Array], gradient: Float[Array, "rows outputs"]
) -> tuple[Float[Array, "rows inputs"], Float[Array, "inputs outputs"]]:
    x, weight = kept
    gradient = compute.factor(gradient)
    of_x = _product(compute, gradient, weight, ((1,), (1,)))
    return of_x, _cpu_weight_gradient(compute, x, gradient)


_cpu_product.defvjp(_cpu_forward, _cpu_backward)


def _cpu_weight_gradient(
    compute: Compute, x: Float[Array, "rows inputs"], gradient: Float[Array, "rows outputs"]
) -> Float[Array, "inputs outputs"]:
    """x^T g, where outputs are fewer than inputs as (g^T x)^T.

    XLA's library takes 13 times as long for a matrix of 512 rows of 5 entries as for one of 5 rows
    of 512, and still 1.3 times for 256 in place of 5; the barrier keeps it from making the former
    after all.
    """
    if gradient.shape[-1] < x.shape[-1]:
        return jax.lax.optimization_barrier(_over_rows(compute, gradient, x)).T
    return _over_rows(compute, x, gradient)


def _over_rows(
    compute: Compute, x: Float[Array, "rows _"], y: Float[Array, "rows _"]
) -> Float[Array, "_ _"]:
    """x^T y. The rows stand in two axes, which XLA turns into x transposed, then a plain product.

    Of one axis it makes a product that reads x column by column: in float32 some 15% slower, and in
    bfloat16 unknown to its library; the product would be made in float32, in more than twice the
    time.
    """
    in_two = math.gcd(len(x), 8)
    x, y = (rows.reshape(-1, in_two, rows.shape[-1]) for rows in (x, y))
    return _product(compute, x, y, ((0, 1), (0, 1)))


def _product(
    compute: Compute,
    x: Float[Array, "*x"],
    y: Float[Array, "*y"],
    contracted: tuple[Sequence[int], Sequence[int]],
) -> Float[Array, "*product"]:
    """The sums of products over the contracted axes of two factors, as float32."""
    return jax.lax.dot_general(
        x,
        y,
        (contracted, ((), ())),
        precision=_PRECISION[compute.arithmetic],
        preferred_element_type=jnp.float32,
    )


@jax.custom_vjp
def _gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The same function, whose slope is computed anew where plain differentiation keeps tanh.

    Where products are this fast, memory decides: tanh in float32 is twice what the product gave.
    """
    return jax.nn.gelu(x, approximate=True)


def _gelu_forward(
    x: Float[Array, "*shape"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    return _gelu(x), x


def _gelu_backward(
    x: Float[Array, "*shape"], gradient: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"]]:
    _, slope = gelu_and_slope(x)
    # The products round it anyway; rounded here, memory holds it as bfloat16 for the bias as well.
    rounded = jax.lax.optimization_barrier((gradient * slope).astype(jnp.bfloat16))
    return (rounded.astype(jnp.float32),)


def gelu_and_slope(
    x: Float[Array, "*shape"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """GELU, tanh approximation, and its derivative.

    gelu(x) = x σ(2u), u = √(2/π) (x + 0.044715 x³), so gelu' = σ + x σ (1 - σ) 2u'.
    """
    twice, cubic = 2 * (2 / math.pi) ** 0.5, 0.044715
    gate = 1 / (1 + jnp.exp(-twice * (x + cubic * x * x * x)))
    return x * gate, gate + x * gate * (1 - gate) * twice * (1 + 3 * cubic * x * x)


_gelu.defvjp(_gelu_forward, _gelu_backward)


def computing(tree: Tree, compute: Compute) -> Tree:
    """The same networks (or gradients, or optimiser's states of them) computing otherwise."""

    def is_compute(node: object) -> bool:
        return isinstance(node, Compute)

    return jax.tree.map(
        lambda node: compute if is_compute(node) else node, tree, is_leaf=is_compute
    )


def check_arithmetic(arithmetic: str) -> None:
    """Raise `InputError` for a word that names no arithmetic."""
    if arithmetic not in get_args(Arithmetic):
        raise InputError(
            f"There is no arithmetic {arithmetic!r}: use {', '.join(get_args(Arithmetic))}."
        )


def check_devices(arithmetic: Arithmetic) -> None:
    """Raise `InputError` unless the devices of this process can compute so."""
    check_arithmetic(arithmetic)
    if arithmetic == "tf32" and jax.default_backend() != "gpu":
        raise InputError(
            "The arithmetic tf32 is one of NVIDIA's GPUs, and none is used here: choose float32 or "
            "bfloat16."
        )
