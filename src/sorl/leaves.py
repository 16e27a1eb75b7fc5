"""The arrays of a pytree by name: what checkpoints and policies write and read.

Everything that is no array (activation functions, sizes, flags) is code or configuration. It is
never written; a freshly built pytree of the same configuration supplies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Tree = TypeVar("Tree")


def is_array(leaf: Any) -> bool:
    """Whether `leaf` is an array or stands for one (`jax.ShapeDtypeStruct`)."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def named(tree: Any) -> dict[str, Any]:
    """The array leaves of `tree` by path, for example `actor.layers[0].weight`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves if is_array(leaf)}


def to_host(leaf: jax.Array | np.ndarray) -> np.ndarray:
    """The values of `leaf` in host memory, bit for bit; random keys as their integers."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(jax.device_get(leaf))


def describe(leaf: Any) -> str:
    """Dtype and shape, for example `float32[2, 512]`."""
    return f"{leaf.dtype}{list(leaf.shape)}"


def differences(saved: Mapping[str, str], like: Any) -> list[str]:
    """What keeps the arrays described by `saved` from filling `like`, a phrase each."""
    wanted = {name: describe(leaf) for name, leaf in named(like).items()}
    found: list[str] = []
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in saved:
            found.append(f"{name} is missing")
        elif name not in wanted:
            found.append(f"{name} is not expected")
        elif saved[name] != wanted[name]:
            found.append(f"{name} is {saved[name]} instead of {wanted[name]}")
    return found


def fill(like: Tree, values: Mapping[str, np.ndarray]) -> Tree:
    """`like` with its arrays replaced by `values`, on the devices where `like` has them.

    The caller has made sure, with `differences`, that names, dtypes and shapes agree.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _place(values[_name(path)], leaf) if is_array(leaf) else leaf, like
    )


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path).removeprefix(".") or "value"


def _place(value: np.ndarray, like: Any) -> jax.Array | np.ndarray:
    if isinstance(like, np.ndarray):
        return value
    # A copy: an array that borrows NumPy's memory must not be donated to a compiled program.
    array = jnp.array(value, copy=True)
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        array = jax.random.wrap_key_data(array, impl=_key_implementation(like.dtype))
    if isinstance(like, jax.Array) and like.committed:
        return jax.device_put(array, like.sharding)
    return array


def _key_implementation(dtype: Any) -> str:
    found: list[str] = []

    def look(key: jax.Array) -> jax.Array:
        found.append(str(jax.random.key_impl(key)))
        return key

    jax.eval_shape(look, jax.ShapeDtypeStruct((), dtype))
    return found[0]
