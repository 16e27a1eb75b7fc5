"""The gradient of a loss through an Euler path, with one product a layer for all steps.

Backpropagation through k steps that share their weights adds up k gradients of every weight:

    ∂L/∂W_l = Σ_i H_il^T G_il,   i = 0..k-1

H_il: what layer l read at step i, `[rows, inputs]`; G_il: the gradient with respect to what it
answered, `[rows, outputs]`. Written as it stands that is k products of `rows` terms each and k - 1
sums of matrices as large as W. Here the rows of all steps stand below each other and the sum is one
product of k · rows terms. The G_il are the gradients with respect to offsets, all zero, that are
added to the answers of the layers.

Ours; the result is that of plain differentiation, up to the order of the sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sorl.layers import Linear
from sorl.nn import ActionNetwork

Offsets = list[Float[Array, "rows _"]]


def path_value_and_gradient(
    loss: Callable[[Float[Array, "rows action_size"]], Float[Array, ""]],
    network: ActionNetwork,
    observation: Float[Array, "rows observation_size"],
    noise: Float[Array, "rows action_size"],
    *,
    steps: int,
) -> tuple[Float[Array, ""], ActionNetwork]:
    """A loss of where `sorl.flows.euler_path` ends, and its gradient with respect to the network.

    Args:
        loss: from the ends of all paths to the loss.
        network: v, which reads t and κ; its MLP may be `sorl.layers.shortened`.
        observation: s of every path.
        noise: where the paths begin.
        steps: k; all are differentiated through.

    Returns:
        The loss and the gradient, in float32.
    """
    layers = network.mlp.layers
    rows = len(noise)

    def encode(network: ActionNetwork) -> Float[Array, "rows features"]:
        return jax.vmap(network.encode)(observation)

    def along(
        offsets: list[Offsets], features: Float[Array, "rows features"]
    ) -> tuple[Float[Array, ""], list[list[Array]]]:
        x, read = noise, []
        level = jnp.full((rows, 1), math.log2(steps))
        for i in range(steps):
            time = jnp.full((rows, 1), i / steps)
            entry = jnp.concatenate([features, x, time, level], axis=-1)
            velocity, inputs = network.mlp.recorded(entry, offsets[i])
            x = x + velocity / steps
            read.append(inputs)
        return loss(x), read

    features, to_encoder = eqx.filter_vjp(encode, network)
    offsets = [[jnp.zeros((rows, layer.outputs)) for layer in layers] for _ in range(steps)]
    (value, read), (answered, to_features) = jax.value_and_grad(along, (0, 1), has_aux=True)(
        offsets, features
    )
    (gradient,) = to_encoder(to_features)

    def of_layer(index: int) -> Linear:
        compute = layers[index].compute
        # Shortened before they are put together, where products read shorter numbers.
        inputs, outputs = (
            jnp.concatenate([compute.factor(step[index]) for step in of_steps])
            for of_steps in (read, answered)
        )
        weight = compute.weight_gradient(inputs, outputs)
        bias = jnp.sum(outputs, axis=0, dtype=jnp.float32)
        return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layers[index], (weight, bias))

    return value, eqx.tree_at(
        lambda network: network.mlp.layers,
        gradient,
        tuple(of_layer(index) for index in range(len(layers))),
    )
