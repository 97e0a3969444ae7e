"""Module and parameters -> a folder that diffusers or transformers opens.

The tables of loading, read from the right; shard by shard, so that the host
holds one shard besides the parameters.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from safetensors.numpy import save_file

from wallwm_jax.convert.errors import ConvertError
from wallwm_jax.convert.families import FAMILY_OF
from wallwm_jax.convert.plan import Leaf, check_params, flat, leaves
from wallwm_jax.convert.table import Family
from wallwm_jax.convert.write import new_folder
from wallwm_jax.types import Params

METADATA = {"format": "pt"}
"""The libraries refuse files that do not say this."""

WRITTEN = ("float64", "float32", "float16", "bfloat16")


def save_pretrained(
    module: nn.Module, params: Params, folder: Path | str, *, max_shard_bytes: int = 5 * 2**30
) -> None:
    """Writes config.json and safetensors, in each parameter's own dtype.

    Args:
      module: of a family in `FAMILIES`.
      params: its parameters, boxed or plain, jax or numpy arrays; must be
        readable by this process as a whole.
      folder: new, or empty; made in one go, nothing half-written is left.
      max_shard_bytes: above this the tensors go into several files with an index.

    Raises:
      ConvertError: params do not fit the module, or the folder cannot be written.
      ValueError: a module of no family, or max_shard_bytes below 1.
    """
    save_family(family_of(module), module, params, folder, max_shard_bytes=max_shard_bytes)


def family_of(module: nn.Module) -> Family:
    """How a module is written.

    Raises:
      ValueError: it belongs to no family.
    """
    if type(module) not in FAMILY_OF:
        raise ValueError(
            f"{type(module).__name__} belongs to no public family; "
            f"pass one of {', '.join(kind.__name__ for kind in FAMILY_OF)}"
        )
    return FAMILY_OF[type(module)]


def save_family(
    family: Family,
    module: nn.Module,
    params: Params,
    folder: Path | str,
    *,
    max_shard_bytes: int = 5 * 2**30,
) -> None:
    """`save_pretrained` for a known family; arguments and errors as there."""
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; it must be positive")
    found, arrays = leaves(family, module), flat(params)
    check_params(found, arrays)
    for path, array in arrays.items():
        if np.dtype(array.dtype).name not in WRITTEN:
            raise ConvertError(
                f"params: {path} is {array.dtype}; cast it to one of {', '.join(WRITTEN)}"
            )
    shards = split(found, arrays, max_shard_bytes)
    with new_folder(folder) as scratch:
        write_json(scratch / "config.json", config_of(family, module))
        files = file_names(family.weights, len(shards))
        for file, tensors in zip(files, _contents(found, arrays, shards), strict=True):
            save_file(tensors, scratch / file, metadata=METADATA)
        if len(shards) > 1:
            write_json(
                scratch / f"{family.weights}.safetensors.index.json",
                {
                    "metadata": {"total_size": sum(_bytes(arrays, leaf) for leaf in found)},
                    "weight_map": {
                        name: file
                        for file, names in zip(files, shards, strict=True)
                        for name in names
                    },
                },
            )


def config_of(family: Family, module: nn.Module) -> dict[str, Any]:
    """What config.json says, the family's name included."""
    if family.library == "transformers":
        return {"architectures": [family.name], **family.write_config(module)}
    return {"_class_name": family.name, **family.write_config(module)}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object with sorted keys."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def file_names(stem: str, count: int) -> list[str]:
    """Names of the files, as both libraries write them."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def split(found: list[Leaf], arrays: dict[str, Any], limit: int) -> list[list[str]]:
    """Names of their tensors by shard, in the table's order; a shard holds one at least."""
    shards: list[list[str]] = [[]]
    size = 0
    for leaf in found:
        each = _bytes(arrays, leaf) // max(len(leaf.names), 1)
        for name in leaf.names:
            if shards[-1] and size + each > limit:
                shards.append([])
                size = 0
            shards[-1].append(name)
            size += each
    return shards


def _bytes(arrays: dict[str, Any], leaf: Leaf) -> int:
    array = arrays[leaf.entry.ours]
    return array.size * np.dtype(array.dtype).itemsize


def _contents(
    found: list[Leaf], arrays: dict[str, Any], shards: list[list[str]]
) -> Iterator[dict[str, np.ndarray]]:
    """The tensors of each shard in turn."""
    tensors = _tensors(found, arrays)
    for names in shards:
        yield {name: next(tensors) for name in names}


def _tensors(found: list[Leaf], arrays: dict[str, Any]) -> Iterator[np.ndarray]:
    """Their tensors in the table's order, dense; one leaf is on the host at a time."""
    for leaf in found:
        whole = np.asarray(arrays[leaf.entry.ours])
        layers = whole if leaf.entry.stacked else whole[None]
        for layer in layers:
            yield np.ascontiguousarray(leaf.entry.to_theirs(layer)).reshape(
                leaf.entry.their_shape(leaf.shape)
            )
