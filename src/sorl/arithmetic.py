"""In which numbers networks multiply: float32, TF32 or bfloat16; parameters are float32 in all.

Nearly all of a training's time goes into products of activations and weights, and GPUs (and some
processors) multiply shorter numbers many times as fast. Everything else stays in float32: the
parameters, their optimisers and averages, biases, activation functions, normalisation and losses.

`float32` is exact to float32's rounding, and what policies act in. `tf32` rounds both factors to 10
bits behind the point (NVIDIA GPUs since Ampere) and gives float32. `bfloat16` rounds the factors to
7 bits and the result too, which halves what travels through memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sorl.errors import InputError

Arithmetic = Literal["float32", "tf32", "bfloat16"]

Tree = TypeVar("Tree")


class Product(eqx.Module):
    """How a layer multiplies what it reads by its weights.

    Args:
        arithmetic: in which numbers.
    """

    arithmetic: Arithmetic = eqx.field(static=True, default="float32")

    def factor(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`x` as the product reads it."""
        return x.astype(jnp.bfloat16) if self.arithmetic == "bfloat16" else x

    def __call__(
        self, x: Float[Array, "*rows inputs"], weight: Float[Array, "inputs outputs"]
    ) -> Float[Array, "*rows outputs"]:
        """x W, as float32."""
        found = jnp.matmul(
            self.factor(x), self.factor(weight), precision=_PRECISION[self.arithmetic]
        )
        return found.astype(jnp.float32)


# On a GPU, JAX's default is TF32.
_PRECISION: Mapping[Arithmetic, Any] = {
    "float32": jax.lax.Precision.HIGHEST,
    "tf32": jax.lax.DotAlgorithmPreset.TF32_TF32_F32,
    "bfloat16": None,
}


def with_arithmetic(tree: Tree, arithmetic: Arithmetic) -> Tree:
    """The same networks (or gradients, or optimiser's states of them) multiplying otherwise."""

    def is_product(node: object) -> bool:
        return isinstance(node, Product)

    return jax.tree.map(
        lambda node: Product(arithmetic) if is_product(node) else node, tree, is_leaf=is_product
    )


def check_arithmetic(arithmetic: str) -> None:
    """Raise `InputError` for a word that names no arithmetic."""
    if arithmetic not in get_args(Arithmetic):
        raise InputError(
            f"There is no arithmetic {arithmetic!r}: use {', '.join(get_args(Arithmetic))}."
        )


def check_devices(arithmetic: Arithmetic) -> None:
    """Raise `InputError` unless the devices of this process can multiply so."""
    check_arithmetic(arithmetic)
    if arithmetic == "tf32" and jax.default_backend() != "gpu":
        raise InputError(
            "The arithmetic tf32 is one of NVIDIA's GPUs, and none is used here: choose float32 or "
            "bfloat16."
        )
