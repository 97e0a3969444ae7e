"""A model with every kind of entry, and its public folder written by hand.

The tensors are made here by numpy alone, so that what `convert` reads can be
compared with what stands in the files.
"""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from wallwm_jax.convert.errors import ConvertError
from wallwm_jax.convert.table import LAYER, Entry, Family
from wallwm_jax.models.layers import named


class Toy(nn.Module):
    """Leaves that are whole, stacked, split into heads, scalar, tied, and always float32."""

    layers: int = 3
    width: int = 6
    heads: int = 2
    words: int = 6
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        dtype = jnp.dtype(self.param_dtype)
        param = lambda name, axes, shape, dtype=dtype: self.param(  # noqa: E731
            name, named(nn.initializers.normal(1.0), *axes), shape, dtype
        )
        layers, width = self.layers, self.width
        stem = param("stem", ("embed", "mlp"), (width, 4))
        split = (layers, width, self.heads, width // self.heads)
        param("query", ("layers", "embed", "heads", "head_dim"), split)
        param("gain", ("layers",), (layers,), jnp.float32)
        param("temperature", (), (), jnp.float32)
        param("words", ("vocabulary", "embed"), (self.words, width))
        return x @ stem


def read_config(config, dtype):
    sizes = {key: value for key, value in config.items() if not key.startswith("_")}
    if sizes.pop("style", "plain") != "plain":
        raise ConvertError(
            f"config.json: style is {config['style']!r}; only 'plain' is implemented"
        )
    return Toy(**sizes, param_dtype=dtype)


TABLE = [
    Entry("stem", "stem.weight", "o i -> i o"),
    Entry("query", f"blocks.{LAYER}.q.weight", "(n h) i -> i n h", {"n": 2}),
    Entry("gain", f"blocks.{LAYER}.gain"),
    Entry("temperature", "temperature"),
    Entry("words", "shared.weight", aliases=("copy.weight",)),
]

FAMILY = Family(
    name="Toy",
    weights="diffusion_pytorch_model",
    read_config=read_config,
    write_config=lambda module: {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(Toy)
        if field.name in ("layers", "width", "heads", "words")
    },
    example=lambda module: (jax.ShapeDtypeStruct((1, module.width), jnp.float32),),
    table=lambda module: TABLE,
)

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}


def tensors(dtype="F32", seed=0):
    """Random tensors of a folder of `Toy()`."""
    rng = np.random.default_rng(seed)
    make = lambda *shape: np.asarray(rng.normal(size=shape)).astype(DTYPES[dtype])  # noqa: E731
    made = {"stem.weight": make(4, 6), "temperature": make(), "shared.weight": make(6, 6)}
    for layer in range(3):
        made |= {f"blocks.{layer}.q.weight": make(6, 6), f"blocks.{layer}.gain": make()}
    return made


def write(folder, content, config=None, shards=1):
    """The folder as diffusers writes it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "Toy", **(config or {})}))
    stem, names = FAMILY.weights, list(content)
    if shards == 1:
        save_file(content, folder / f"{stem}.safetensors", metadata={"format": "pt"})
        return folder
    places = {}
    for i in range(shards):
        file = f"{stem}-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: content[name] for name in names[i::shards]}
        places |= dict.fromkeys(part, file)
        save_file(part, folder / file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder
