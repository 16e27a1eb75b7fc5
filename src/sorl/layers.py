"""Layers that every network is made of: dense, and layer normalisation.

Each takes ONE sample; a dense layer takes a batch by a method of its own, whose gradient is of the
layer's arithmetic too.
"""

from __future__ import annotations

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sorl.arithmetic import Compute

LAYER_NORM_EPSILON = 1e-6

Network = TypeVar("Network", bound=eqx.Module)


class Linear(eqx.Module):
    """y = x W + b; Glorot-uniform W (variance scaling 1.0, fan average), zero b.

    Args:
        inputs: size of x.
        outputs: size of y.
    """

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]
    compute: Compute

    def __init__(self, inputs: int, outputs: int, *, key: PRNGKeyArray):
        self.weight = jax.nn.initializers.glorot_uniform()(key, (inputs, outputs), jnp.float32)
        self.bias = jnp.zeros(outputs)
        self.compute = Compute()

    @property
    def outputs(self) -> int:
        """Size of y."""
        return self.bias.shape[-1]

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        """Map one sample."""
        return self.compute.product(x, self.weight) + self.bias

    def batch(self, x: Float[Array, "rows inputs"]) -> Float[Array, "rows outputs"]:
        """Map many samples, the same as mapping over them."""
        return self.compute.batch_product(x, self.weight) + self.bias[None]


def shortened(network: Network) -> Network:
    """The same network with weights as its products read them, for many passes without gradients.

    In bfloat16 the weights would be rounded again in every pass.
    """

    def is_linear(node: object) -> bool:
        return isinstance(node, Linear)

    def shorten(node: Any) -> Any:
        if not is_linear(node):
            return node
        return eqx.tree_at(lambda layer: layer.weight, node, node.compute.factor(node.weight))

    return jax.tree.map(shorten, network, is_leaf=is_linear)


class LayerNorm(eqx.Module):
    """Layer normalisation with learned scale and offset (Ba et al. 2016); epsilon 1e-6."""

    scale: Float[Array, " size"]
    offset: Float[Array, " size"]

    def __init__(self, size: int):
        self.scale = jnp.ones(size)
        self.offset = jnp.zeros(size)

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, " size"]:
        """Normalise one sample over its entries."""
        return _standardised(x) * self.scale + self.offset


@jax.custom_vjp
def _standardised(x: Float[Array, " size"]) -> Float[Array, " size"]:
    """x less its mean, over its standard deviation: y = (x - mean x) / √(var x + ε).

    Its gradient is written out, (g - mean g - y mean(g y)) / √(var x + ε), so that all four means
    are products: a CPU sums the rows of a matrix twice as fast when it multiplies them by ones.
    """
    return _standardised_forward(x)[0]


def _standardised_forward(
    x: Float[Array, " size"],
) -> tuple[Float[Array, " size"], tuple[Float[Array, " size"], Float[Array, ""]]]:
    centred = x - _mean(x)
    inverse = jax.lax.rsqrt(_mean(centred * centred) + LAYER_NORM_EPSILON)
    y = centred * inverse
    return y, (y, inverse)


def _standardised_backward(
    kept: tuple[Float[Array, " size"], Float[Array, ""]], gradient: Float[Array, " size"]
) -> tuple[Float[Array, " size"]]:
    y, inverse = kept
    return (inverse * (gradient - _mean(gradient) - y * _mean(gradient * y)),)


_standardised.defvjp(_standardised_forward, _standardised_backward)


def _mean(x: Float[Array, " size"]) -> Float[Array, ""]:
    return jnp.vdot(x, jnp.full(x.shape, 1 / x.size), precision=jax.lax.Precision.HIGHEST)
