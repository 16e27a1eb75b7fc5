"""Networks: multi-layer perceptron, action network, value network, critic ensemble.

Every module takes ONE sample, which callers vmap, and a batch by a method of that name, for losses:
where products are short, so are those of its gradient (`sorl.arithmetic`). Weights are stored
`[inputs, outputs]`, so that a mapped layer is a plain row-major matrix product.

Where an observation holds an image, a network begins with an encoder of its own
(`sorl.encoders`): `encode` makes features of an observation, which are the observation itself
where there is no image. Whoever calls a network many times for one observation encodes it once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sorl import encoders, kernels
from sorl.encoders import Encoder
from sorl.layers import LAYER_NORM_EPSILON, LayerNorm, Linear
from sorl.types import Spec

__all__ = [
    "LAYER_NORM_EPSILON",
    "MLP",
    "ActionNetwork",
    "Critic",
    "LayerNorm",
    "Linear",
    "ValueNetwork",
    "heads_apart",
]

Module = TypeVar("Module", bound=eqx.Module)


class MLP(eqx.Module):
    """Hidden layers of dense, GELU (tanh approximation), LayerNorm where enabled; then dense.

    Args:
        inputs: size of the input.
        hidden: sizes of the hidden layers, at least one.
        outputs: size of the output; nothing follows the last dense layer.
        layer_norm: whether a LayerNorm follows every activation.
    """

    layers: tuple[Linear, ...]
    norms: tuple[LayerNorm, ...]

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        layer_norm: bool,
        key: PRNGKeyArray,
    ):
        sizes = (inputs, *hidden, outputs)
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = tuple(
            Linear(fan_in, fan_out, key=k)
            for fan_in, fan_out, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )
        self.norms = tuple(LayerNorm(size) for size in hidden) if layer_norm else ()

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        """Map one sample."""
        for index, layer in enumerate(self.layers[:-1]):
            x = layer.compute.gelu(layer(x))
            if self.norms:
                x = self.norms[index](x)
        return self.layers[-1](x)

    def batch(
        self, x: Float[Array, "rows inputs"], *, fusing: bool = False
    ) -> Float[Array, "rows outputs"]:
        """Map many samples, the same as mapping over them.

        Args:
            x: the samples.
            fusing: whether what stands between two products of a network with LayerNorm may be one
                kernel. Critics ask for it, where it was measured.
        """
        for index, layer in enumerate(self.layers[:-1]):
            compute = layer.compute
            norm = self.norms[index] if self.norms else None
            if norm and fusing and compute.fused and kernels.fits(len(x), layer.outputs):
                product = compute.factor(compute.product(x, layer.weight))
                x = kernels.gelu_layer_norm(product, layer.bias, norm.scale, norm.offset)
                continue
            x = compute.gelu(layer.batch(x))
            if norm:
                x = jax.vmap(norm)(x)
        return self.layers[-1].batch(x)

    def recorded(
        self, x: Float[Array, "rows inputs"], offsets: Sequence[Float[Array, "rows _"]]
    ) -> tuple[Float[Array, "rows outputs"], list[Float[Array, "rows _"]]]:
        """Map many samples, and tell what every dense layer read; for networks without LayerNorm.

        Args:
            x: the samples.
            offsets: added to what each dense layer answers.

        Returns:
            The answers, and what each dense layer read.
        """
        assert not self.norms
        read = []
        for index, (layer, offset) in enumerate(zip(self.layers, offsets, strict=True)):
            if index:
                x = layer.compute.gelu(x)
            read.append(x)
            x = layer.batch(x) + offset
        return x, read


class ActionNetwork(eqx.Module):
    """f(s, x, scalars...): reads an observation and something of an action's size, answers alike.

    With x_t, t and κ it is the velocity of a shortcut flow; with x_t and t that of a flow or the
    noise in a diffusion; with noise alone a policy that acts in one pass. The scalars are read
    raw, beside s and x: no embedding.

    Args:
        spec: what s is, and entries of x and of the answer.
        hidden: sizes of the hidden layers.
        scalars: how many scalars are read.
    """

    mlp: MLP
    encoder: Encoder | None

    def __init__(self, spec: Spec, hidden: Sequence[int], *, scalars: int, key: PRNGKeyArray):
        self.encoder, features, key = encoders.begin(spec, key)
        inputs = features + spec.action_size + scalars
        self.mlp = MLP(inputs, hidden, spec.action_size, layer_norm=False, key=key)

    @property
    def action_size(self) -> int:
        """Entries of x and of the answer."""
        return self.mlp.layers[-1].bias.shape[-1]

    def __call__(
        self,
        observation: Float[Array, " observation_size"],
        x: Float[Array, " action_size"],
        *scalars: Float[Array, ""],
    ) -> Float[Array, " action_size"]:
        """The answer for one sample."""
        return self.answer(self.encode(observation), x, *scalars)

    def batch(
        self,
        observation: Float[Array, "rows observation_size"],
        x: Float[Array, "rows action_size"],
        *scalars: Float[Array, " rows"],
    ) -> Float[Array, "rows action_size"]:
        """The answers for many samples, the same as mapping over them."""
        return self.bind(observation)(x, *scalars)

    def encode(self, observation: Float[Array, " observation_size"]) -> Float[Array, " features"]:
        """What `answer` reads of an observation."""
        return encoders.encode(self.encoder, observation)

    def answer(
        self,
        features: Float[Array, " features"],
        x: Float[Array, " action_size"],
        *scalars: Float[Array, ""],
    ) -> Float[Array, " action_size"]:
        """The answer for one sample whose observation is encoded already."""
        return self.mlp(jnp.concatenate([features, x, *(value[None] for value in scalars)]))

    def answers(
        self,
        features: Float[Array, "rows features"],
        x: Float[Array, "rows action_size"],
        *scalars: Float[Array, " rows"],
    ) -> Float[Array, "rows action_size"]:
        """`answer` for many samples, the same as mapping over them."""
        columns = [value[:, None] for value in scalars]
        return self.mlp.batch(jnp.concatenate([features, x, *columns], axis=-1))

    def bind(
        self, observation: Float[Array, "*rows observation_size"]
    ) -> Callable[..., Float[Array, "*rows action_size"]]:
        """f(s, ·, ...) for one observation, or for rows of them, each with scalars of its own.

        They are encoded once, however often it is called.
        """
        if observation.ndim == 1:
            return functools.partial(self.answer, self.encode(observation))
        return functools.partial(self.answers, encoders.encode_batch(self.encoder, observation))


class ValueNetwork(eqx.Module):
    """V(s) with LayerNorm.

    Args:
        spec: what s is.
        hidden: sizes of the hidden layers.
    """

    mlp: MLP
    encoder: Encoder | None

    def __init__(self, spec: Spec, hidden: Sequence[int], *, key: PRNGKeyArray):
        self.encoder, features, key = encoders.begin(spec, key)
        self.mlp = MLP(features, hidden, 1, layer_norm=True, key=key)

    def __call__(self, observation: Float[Array, " observation_size"]) -> Float[Array, ""]:
        """V of one observation."""
        return self.mlp(encoders.encode(self.encoder, observation))[0]

    def batch(self, observation: Float[Array, "rows observation_size"]) -> Float[Array, " rows"]:
        """V of many observations, the same as mapping over them."""
        return self.mlp.batch(encoders.encode_batch(self.encoder, observation))[:, 0]


class Critic(eqx.Module):
    """An ensemble of Q networks with LayerNorm; all heads in one batched product.

    The heads share the encoder of an image. `heads_apart` makes networks of their own of them.

    Args:
        spec: what s is, and entries of a.
        extra_size: further raw scalars the heads read, such as the number of sampling steps.
        hidden: sizes of the hidden layers.
        heads: number of independent networks.
    """

    mlps: MLP | tuple[MLP, ...]
    encoder: Encoder | None

    def __init__(
        self,
        spec: Spec,
        extra_size: int,
        hidden: Sequence[int],
        *,
        heads: int,
        key: PRNGKeyArray,
    ):
        self.encoder, features, key = encoders.begin(spec, key)
        inputs = features + spec.action_size + extra_size

        def head(k: PRNGKeyArray) -> MLP:
            return MLP(inputs, hidden, 1, layer_norm=True, key=k)

        self.mlps = eqx.filter_vmap(head)(jax.random.split(key, heads))

    def __call__(
        self,
        observation: Float[Array, " observation_size"],
        action: Float[Array, " action_size"],
        *extra: Float[Array, ""],
    ) -> Float[Array, " heads"]:
        """Q of every head for one observation and action."""
        features = encoders.encode(self.encoder, observation)
        x = jnp.concatenate([features, action, *(value[None] for value in extra)])
        if isinstance(self.mlps, tuple):
            return jnp.concatenate([mlp(x) for mlp in self.mlps])
        return eqx.filter_vmap(lambda mlp: mlp(x)[0])(self.mlps)

    def batch(
        self,
        observation: Float[Array, "rows observation_size"],
        action: Float[Array, "rows action_size"],
        *extra: Float[Array, ""],
    ) -> Float[Array, "rows heads"]:
        """Q of every head for many rows, the same as mapping over them.

        The map over heads stands outside the map over rows, so that the rows of one head stay one
        matrix; the other way round every layer would transpose them. Every head reads a copy of
        the rows: reading the same ones, the first layers of all heads would be one product, whose
        answers and gradients had to be transposed.
        """
        if isinstance(self.mlps, tuple):
            return jax.vmap(lambda s, a: self(s, a, *extra))(observation, action)
        features = encoders.encode_batch(self.encoder, observation)
        columns = [jnp.broadcast_to(value, (len(action), 1)) for value in extra]
        x = jnp.concatenate([features, action, *columns], axis=-1)
        heads = jax.tree.leaves(self.mlps)[0].shape[0]
        copies = jnp.broadcast_to(x, (heads, *x.shape))

        def over_rows(mlp: MLP, x: Float[Array, "rows inputs"]) -> Float[Array, " rows"]:
            return mlp.batch(x, fusing=True)[:, 0]

        return eqx.filter_vmap(over_rows, out_axes=1)(self.mlps, copies)


def heads_apart(module: Module) -> Module:
    """The same module, every head of its critics a network with arrays of its own.

    For acting: XLA multiplies a few rows sooner by one matrix after the other than by a stack of
    them. The best of 32 candidates of 4 steps took 2.6 in place of 3.2 ms (4 x 512 units, two
    cores, `python -m benchmarks.acting`).
    """

    def is_critic(node: object) -> bool:
        return isinstance(node, Critic)

    def apart(node: Any) -> Any:
        if not is_critic(node) or isinstance(node.mlps, tuple):
            return node
        heads = jax.tree.leaves(node.mlps)[0].shape[0]
        mlps = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], node.mlps) for i in range(heads))
        return eqx.tree_at(lambda critic: critic.mlps, node, mlps)

    return jax.tree.map(apart, module, is_leaf=is_critic)
