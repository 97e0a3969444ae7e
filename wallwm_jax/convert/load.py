"""Public weights -> module and parameters, streamed leaf by leaf.

    headers   every check that needs no data: files, names, shapes, config
    data      one leaf at a time, cast and laid out straight into its sharding

so host memory holds the parameters themselves and at most one leaf more.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Shaped

from wallwm_jax.convert.errors import ConvertError, brief, some
from wallwm_jax.convert.families import SOURCES
from wallwm_jax.convert.files import Weights, find_weights, read_config_file
from wallwm_jax.convert.plan import Leaf, check_tensors, flat, leaves, nested
from wallwm_jax.convert.table import Family
from wallwm_jax.types import Params

DTYPES = ("float32", "bfloat16")

Shardings = Params | Sharding | Callable[[Any], Any] | None
"""A tree like the parameters, one sharding for all, or a function that makes
the tree from the abstract parameters (boxed with their logical axis names)."""


def load_pretrained(
    folder: Path | str, *, dtype: str = "float32", shardings: Shardings = None
) -> tuple[nn.Module, Params]:
    """Loads a model in the layout of diffusers, transformers or Wan's release.

    Args:
      folder: holds config.json and safetensors, one file or shards with an index.
      dtype: "float32" or "bfloat16", of the module's parameters and activations;
        what the module keeps in float32 (norms, tables) stays so.
      shardings: where the parameters go; None is the default device.

    Returns:
      The module and its parameters, plain nested dicts.

    Raises:
      ConvertError: anything about the folder that is not as it should be.
      ValueError: an unknown dtype.
    """
    folder = Path(folder)
    config = read_config_file(folder)
    return load_family(family_in(folder, config), folder, config, dtype=dtype, shardings=shardings)


def family_in(folder: Path, config: dict[str, Any]) -> Family:
    """The family that config.json names.

    Raises:
      ConvertError: none, or one that is not implemented.
    """
    name = config.get("_class_name")
    if name is None and isinstance(config.get("architectures"), list):
        name = next(iter(config["architectures"]), None)
    path = folder / "config.json"
    if name is None:
        raise ConvertError(
            f"{path}: has neither _class_name nor architectures, so the model is unknown; "
            "copy the config of the original folder"
        )
    if not isinstance(name, str) or name not in SOURCES:
        raise ConvertError(
            f"{path}: the model is {name!r}, which is not implemented; known are {', '.join(SOURCES)}"
        )
    return SOURCES[name]


def load_family(
    family: Family,
    folder: Path,
    config: dict[str, Any],
    *,
    dtype: str = "float32",
    shardings: Shardings = None,
) -> tuple[nn.Module, Params]:
    """`load_pretrained` for a known family; arguments and errors as there."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; use one of {DTYPES}")
    with Weights(find_weights(folder, family.weights)) as weights:
        module, found = described(family, folder, config, dtype, weights)
        targets = place(family, module, found, shardings)
        return module, nested(
            {leaf.entry.ours: _fill(weights, leaf, targets[leaf.entry.ours]) for leaf in found}
        )


def described(
    family: Family, folder: Path, config: dict[str, Any], dtype: str, weights: Weights
) -> tuple[nn.Module, list[Leaf]]:
    """The module and leaves of a folder whose headers are read, all of them checked.

    Raises:
      ConvertError: config or headers are not as they should be.
    """
    if family.complete_config is not None:
        shapes = {name: spec.shape for name, spec in weights.specs.items()}
        config = family.complete_config(config, shapes)
    module, found = build(family, config, dtype, folder)
    check_tensors(str(folder), found, weights.specs)
    return module, found


def build(
    family: Family, config: dict[str, Any], dtype: str, folder: Path
) -> tuple[nn.Module, list[Leaf]]:
    """The module of a config and its leaves.

    Raises:
      ConvertError: the config asks for what is not implemented, or makes no module.
    """
    try:
        module = family.read_config(config, dtype)
        return module, leaves(family, module)
    except ConvertError as error:
        raise ConvertError(f"{folder}: {error}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # Sizes that are no sizes (a text, a zero, an odd head width) fail wherever they are used.
        raise ConvertError(
            f"{folder / 'config.json'}: its values make no {family.name} "
            f"({type(error).__name__}: {brief(error)}); copy the original config"
        ) from error


def place(
    family: Family, module: nn.Module, found: list[Leaf], shardings: Shardings
) -> dict[str, Sharding | None]:
    """Where each leaf goes, by path.

    Raises:
      ValueError: a tree of shardings that does not fit the parameters.
    """
    paths = [leaf.entry.ours for leaf in found]
    if shardings is None or isinstance(shardings, Sharding):
        return dict.fromkeys(paths, shardings)
    targets = flat(shardings(family.shapes(module)) if callable(shardings) else shardings)
    if targets.keys() != set(paths):
        raise ValueError(
            f"shardings do not fit the parameters at {some(sorted(targets.keys() ^ set(paths)))}; "
            "make the tree from the abstract parameters (pass a function)"
        )
    return targets


def _fill(weights: Weights, leaf: Leaf, sharding: Sharding | None) -> jax.Array:
    """One leaf, from its tensors to its devices."""
    names = _present(weights, leaf)
    if sharding is None:
        array = jax.device_put(_layers(weights, leaf, names))
    else:
        # Devices that need the same layers share what was read for the first.
        @functools.lru_cache(maxsize=1)
        def layers(start: int, stop: int) -> Shaped[np.ndarray, "..."]:
            return _layers(weights, leaf, names[start:stop])

        def piece(index: tuple[slice, ...]) -> Shaped[np.ndarray, "..."]:
            if not leaf.entry.stacked:
                return layers(0, 1)[(*index, ...)]
            start, stop, _ = index[0].indices(leaf.shape[0])
            return layers(start, stop)[(slice(None), *index[1:])]

        array = jax.make_array_from_callback(leaf.shape, sharding, piece)
    # Before the next leaf is read, so that two never lie on the host.
    return jax.block_until_ready(array)


def _layers(weights: Weights, leaf: Leaf, names: list[str]) -> Shaped[np.ndarray, "..."]:
    """A leaf on the host: the layers that `names` hold, or all of one that is not stacked."""
    if not leaf.entry.stacked:
        out = np.empty(leaf.shape, leaf.dtype)
        _copy(weights, leaf, names[0], out)
        return out
    out = np.empty((len(names), *leaf.shape[1:]), leaf.dtype)
    for row, name in enumerate(names):
        _copy(weights, leaf, name, out[row, ...])
    return out


def _copy(weights: Weights, leaf: Leaf, name: str, out: Shaped[np.ndarray, "..."]) -> None:
    """One of their tensors into its place; the assignment casts without a copy."""
    if leaf.entry.layout:
        out[...] = leaf.entry.to_ours(weights.read(name))
        return
    for rows, part in weights.parts(name):
        out[rows] = part


def _present(weights: Weights, leaf: Leaf) -> list[str]:
    """The tensor of every layer, under the name that the files use.

    Raises:
      ConvertError: the files hold it under two names with unlike content.
    """
    chosen = []
    for names in leaf.entry.all_names(leaf.shape):
        first, *others = [name for name in names if name in weights.specs]
        chosen.append(first)
        for other in others:
            pairs = zip(weights.parts(first), weights.parts(other), strict=True)
            if not all(np.array_equal(a, b, equal_nan=True) for (_, a), (_, b) in pairs):
                raise ConvertError(
                    f"{weights.specs[other].file}: {other} must be the same as {first} and is not; "
                    "this model ties them, save it again from its library"
                )
    return chosen
