"""Sums of arrays: what was in memory when a step was saved, in 64 bits per array.

The seal of a step vouches for its files. What happens between memory and the
files (a wrong copy from a device, a reassembled shard) is seen by these sums,
taken where the array lies and compared after it was restored:

    sum_k = SUM_i  mix_k(bits_i, i)   mod 2^32,    k = 0, 1

over all elements, i the row-major index in the *global* array. mix_k is a
bijection of the bits for a fixed i, so one changed element always changes both
sums; and since addition modulo 2^32 does not care for order, the sums are the
same on every mesh, on the host, and however the array is cut.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

MIXES = (
    # Odd factors of the index and of two rounds: those of MurmurHash3's finaliser
    # with the golden ratio, and those of Wellons' "lowbias32".
    (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35),
    (0x7FEB352D, 0x7FEB352D, 0x846CA68B),
)

CHUNK = 1 << 18
"""Elements that are mixed at once on the host; their temporaries stay in cache."""

UNSIGNED = {1: "uint8", 2: "uint16", 4: "uint32"}

Record = dict[str, Any]
"""JSON: {"shape", "dtype", "sum": 16 hexadecimal digits, "finite": bool}."""


def describe(tree: Any) -> dict[str, Record]:
    """Name, shape, dtype, sum and finiteness of every array of a tree.

    Args:
      tree: of device arrays (summed where they lie) or of numpy arrays (on the
        host).

    Raises:
      ValueError: an array has elements of another size than 1, 2 or 4 bytes.
    """
    leaves = named(tree)
    for name, leaf in leaves.items():
        if np.dtype(leaf.dtype).itemsize not in UNSIGNED:
            raise ValueError(f"{name} is {leaf.dtype}; checkpoints hold elements of 1 to 4 bytes")
    device = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, jax.Array)}
    found = jax.device_get(_sums_on_device(device)) if device else {}
    found |= {name: _sums_on_host(leaf) for name, leaf in leaves.items() if name not in device}
    return {
        name: shape_record(leaf)
        | {"sum": "".join(f"{int(s):08x}" for s in found[name][0]), "finite": bool(found[name][1])}
        for name, leaf in leaves.items()
    }


def shape_record(leaf: Any) -> Record:
    """Shape and dtype of an array or of a ShapeDtypeStruct."""
    return {"shape": list(leaf.shape), "dtype": np.dtype(leaf.dtype).name}


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path: {"params/video/blocks/kernel": leaf}."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}


@jax.jit
def _sums_on_device(leaves: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
    return {name: _sums(leaf) for name, leaf in leaves.items()}


@jax.jit  # inside the other: arrays of one shape are traced once
def _sums(x: Shaped[Array, "..."]) -> tuple[UInt32[Array, "2"], Array]:
    """Both sums of an array, and whether all of it is finite."""
    index, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        # Indices beyond 2^32 wrap around, here and on the host.
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
        stride *= x.shape[axis]
    plain = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    bits = jax.lax.bitcast_convert_type(plain, UNSIGNED[plain.dtype.itemsize]).astype(jnp.uint32)
    sums = [jnp.sum(_mix(bits, index, mix), dtype=jnp.uint32) for mix in MIXES]
    finite = jnp.all(jnp.isfinite(x)) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.array(True)
    return jnp.stack(sums), finite


def _sums_on_host(x: Shaped[np.ndarray, "..."]) -> tuple[list[int], bool]:
    """As `_sums`, in chunks."""
    flat = np.ascontiguousarray(x).reshape(-1)
    sums, finite = [0] * len(MIXES), True
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        index = np.arange(start, start + part.size).astype(np.uint32)
        bits = part.view(UNSIGNED[part.dtype.itemsize]).astype(np.uint32)
        for k, mix in enumerate(MIXES):
            sums[k] = (sums[k] + int(_mix(bits, index, mix).sum(dtype=np.uint32))) % 2**32
        if jnp.issubdtype(part.dtype, jnp.floating):
            finite = finite and bool(np.isfinite(part).all())
    return sums, finite


def _mix(
    bits: UInt32[Any, "..."], index: UInt32[Any, "..."], factors: tuple[int, int, int]
) -> UInt32[Any, "..."]:
    """A bijection of `bits` for each index: xor with odd multiples, shifts, odd factors."""
    of_index, first, second = (np.uint32(factor) for factor in factors)
    mixed = bits ^ ((index + np.uint32(1)) * of_index)
    mixed = (mixed ^ (mixed >> np.uint32(16))) * first
    mixed = (mixed ^ (mixed >> np.uint32(13))) * second
    return mixed ^ (mixed >> np.uint32(16))
