"""A hidden layer's GELU and LayerNorm in one pass through memory, for GPUs and bfloat16 products.

Where products are this fast, a hidden layer's time is that of reading and writing what lies between
two products. XLA reads it several times; the kernels here read the product once, and the one of the
gradient computes the layer anew in place of reading what the first one would have kept:

    a = h + b,  g = gelu(a),  y = (g - mean g) / √(var g + ε),  o = y · scale + offset

    dy = d · scale,  dg = (dy - mean dy - y mean(dy y)) / √(var g + ε),  dh = dg gelu'(a)
    db = Σ dh,  dscale = Σ d y,  doffset = Σ d                               sums over all rows

h, o, their gradients dh and d: bfloat16, `[rows, size]`, as products give and read them; everything
else, and everything within, is float32. `plain` and `plain_gradient` are the same in JAX, which a
program for other devices gets. Ours.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from sorl.arithmetic import gelu_and_slope
from sorl.layers import LAYER_NORM_EPSILON

SLAB = 4
"""Rows that a program of the GPU holds in registers at once."""

SLABS = 4
"""Slabs that a program of the gradient sums over."""

WARPS = 4
"""Groups of 32 threads of a program."""

Rows = BFloat16[Array, "rows size"]
Vector = Float[Array, " size"]


def fits(rows: int, size: int) -> bool:
    """Whether the kernels can be used: whole blocks of rows, and a power of two of entries."""
    return rows % (SLAB * SLABS) == 0 and 32 <= size <= 4096 and size & (size - 1) == 0


def usable(batch_devices: int) -> bool:
    """Whether training may use the kernels.

    XLA cannot divide a kernel's rows among the devices that share a batch: each would compute all
    of them. And it makes kernels of this kind for NVIDIA's GPUs since Ampere alone.
    """
    gpus = [device for device in jax.devices() if device.platform == "gpu"]
    return batch_devices == 1 and bool(gpus) and all(_since_ampere(gpu) for gpu in gpus)


def _since_ampere(gpu: Any) -> bool:
    major = str(getattr(gpu, "compute_capability", "")).split(".")[0]
    return major.isdigit() and int(major) >= 8


@jax.custom_vjp
def gelu_layer_norm(h: Rows, bias: Vector, scale: Vector, offset: Vector) -> Rows:
    """o of the module's text, by the kernels where a GPU computes.

    Args:
        h: what the product gave; `fits` says which shapes are possible.
        bias: of the dense layer.
        scale: of the LayerNorm.
        offset: of the LayerNorm.
    """
    return jax.lax.platform_dependent(h, bias, scale, offset, cuda=_on_gpu, default=plain)


def _forward(
    h: Rows, bias: Vector, scale: Vector, offset: Vector
) -> tuple[Rows, tuple[Rows, Vector, Vector]]:
    return gelu_layer_norm(h, bias, scale, offset), (h, bias, scale)


def _backward(kept: tuple[Rows, Vector, Vector], d: Rows) -> tuple[Rows, Vector, Vector, Vector]:
    return jax.lax.platform_dependent(*kept, d, cuda=_gradient_on_gpu, default=plain_gradient)


gelu_layer_norm.defvjp(_forward, _backward)


def plain(h: Rows, bias: Vector, scale: Vector, offset: Vector) -> Rows:
    """What `gelu_layer_norm` is."""
    y, _, _ = _normalised(h.astype(jnp.float32) + bias[None])
    return (y * scale[None] + offset[None]).astype(jnp.bfloat16)


def plain_gradient(
    h: Rows, bias: Vector, scale: Vector, d: Rows
) -> tuple[Rows, Vector, Vector, Vector]:
    """(dh, db, dscale, doffset) of its gradient d."""
    dh, parts = _slab_gradient(h, bias, scale, d)
    return dh, *parts


def _normalised(
    a: Float[Array, "rows size"],
) -> tuple[Float[Array, "rows size"], Float[Array, "rows 1"], Float[Array, "rows size"]]:
    """y, 1 / √(var g + ε) and gelu'(a)."""
    g, slope = gelu_and_slope(a)
    centred = g - _mean(g)
    inverse = jax.lax.rsqrt(_mean(centred * centred) + LAYER_NORM_EPSILON)
    return centred * inverse, inverse, slope


def _mean(x: Float[Array, "rows size"]) -> Float[Array, "rows 1"]:
    return jnp.sum(x, axis=-1, keepdims=True) * (1 / x.shape[-1])


def _slab_gradient(
    h: Rows, bias: Vector, scale: Vector, d: Rows
) -> tuple[Rows, tuple[Vector, Vector, Vector]]:
    """dh of some rows, and their parts of the other three."""
    y, inverse, slope = _normalised(h.astype(jnp.float32) + bias[None])
    d = d.astype(jnp.float32)
    dy = d * scale[None]
    dg = inverse * (dy - _mean(dy) - y * _mean(dy * y))
    dh = (dg * slope).astype(jnp.bfloat16)
    # Of what was rounded: the bias moves as the weights do.
    db = jnp.sum(dh.astype(jnp.float32), axis=0)
    return dh, (db, jnp.sum(d * y, axis=0), jnp.sum(d, axis=0))


def _kernel(h: Any, bias: Any, scale: Any, offset: Any, o: Any) -> None:
    o[...] = plain(h[...], bias[...], scale[...], offset[...])


def _gradient_kernel(
    h: Any, bias: Any, scale: Any, d: Any, dh: Any, db: Any, dscale: Any, doffset: Any
) -> None:
    from jax.experimental import pallas as pl

    def slab(place: Any, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        rows = pl.ds(place * SLAB, SLAB)
        dh[rows, :], parts = _slab_gradient(h[rows, :], bias[...], scale[...], d[rows, :])
        return tuple(sum_ + part for sum_, part in zip(sums, parts, strict=True))

    zero = jnp.zeros(bias.shape, jnp.float32)
    db[0, :], dscale[0, :], doffset[0, :] = jax.lax.fori_loop(0, SLABS, slab, (zero,) * 3)


def _on_gpu(
    h: Rows, bias: Vector, scale: Vector, offset: Vector, *, interpret: bool = False
) -> Rows:
    # Here, since whoever only acts needs neither.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    rows, size = h.shape
    vector = pl.BlockSpec((size,), lambda place: (0,))
    slab = pl.BlockSpec((SLAB, size), lambda place: (place, 0))
    return pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct(h.shape, jnp.bfloat16),
        grid=(rows // SLAB,),
        in_specs=[slab, vector, vector, vector],
        out_specs=slab,
        interpret=interpret,
        name="gelu_layer_norm",
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
    )(h, bias, scale, offset)


def _gradient_on_gpu(
    h: Rows, bias: Vector, scale: Vector, d: Rows, *, interpret: bool = False
) -> tuple[Rows, Vector, Vector, Vector]:
    # Here, since whoever only acts needs neither.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    rows, size = h.shape
    blocks = rows // (SLAB * SLABS)
    vector = pl.BlockSpec((size,), lambda place: (0,))
    block = pl.BlockSpec((SLAB * SLABS, size), lambda place: (place, 0))
    part = pl.BlockSpec((1, size), lambda place: (place, 0))
    parts = jax.ShapeDtypeStruct((blocks, size), jnp.float32)
    dh, *sums = pl.pallas_call(
        _gradient_kernel,
        out_shape=(jax.ShapeDtypeStruct(h.shape, jnp.bfloat16), parts, parts, parts),
        grid=(blocks,),
        in_specs=[block, vector, vector, block],
        out_specs=(block, part, part, part),
        interpret=interpret,
        name="gelu_layer_norm_gradient",
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
    )(h, bias, scale, d)
    db, dscale, doffset = (jnp.sum(one, axis=0) for one in sums)
    return dh, db, dscale, doffset
