"""Arrays over the devices of several hosts: how they get there and back.

Several hosts train together after `jax.distributed.initialize` in each, as one program that all of
them run: `sorl.train` then spreads members over the devices of all. With one host nothing here does
more than JAX by itself.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jaxtyping import Array

Tree = TypeVar("Tree")


def place(tree: Tree, sharding: NamedSharding) -> Tree:
    """Put what every host has whole onto the devices of all.

    Args:
        tree: arrays, the same on every host; what lies on the devices of several already, as a
            snapshot's state does, stays.
        sharding: how.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


def fetch(array: Array) -> npt.NDArray[Any]:
    """An array on the host, also where its parts lie on others; all hosts must ask for it.

    What is to be saved of a training on several hosts is `jax.tree.map(fetch, snapshot.state)`.
    """
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
