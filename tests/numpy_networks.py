"""The networks of `sorl.nn`, written again in plain NumPy loops, for checking losses."""

from __future__ import annotations

import math

import numpy as np


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, scale, offset):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * scale + offset


def arrays(tree):
    """A module's parameters as float64 NumPy."""
    return np.asarray(tree, np.float64)


def mlp(module, x, head=None):
    """`module(x)` for one sample; `head` picks one of a stacked ensemble."""

    def get(leaf):
        leaf = arrays(leaf)
        return leaf if head is None else leaf[head]

    for i, layer in enumerate(module.layers[:-1]):
        x = gelu(x @ get(layer.weight) + get(layer.bias))
        if module.norms:
            x = layer_norm(x, get(module.norms[i].scale), get(module.norms[i].offset))
    return x @ get(module.layers[-1].weight) + get(module.layers[-1].bias)


def velocity(network, s, x, t, kappa):
    return mlp(network.mlp, np.concatenate([s, x, [t], [kappa]]))


def q_values(critic, s, a, *extra):
    heads = critic.mlps.layers[0].weight.shape[0]
    x = np.concatenate([s, a, extra])
    return np.array([mlp(critic.mlps, x, head)[0] for head in range(heads)])


def sample(network, s, noise, k):
    """π_k(s) from its noise."""
    x = noise
    for i in range(k):
        x = x + velocity(network, s, x, i / k, math.log2(k)) / k
    return np.clip(x, -1, 1)
