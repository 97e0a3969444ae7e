"""What a conversion table is: our leaves, their tensors, and the layout between.

One table serves both directions. A layout is an einops pattern "theirs -> ours",
so its inverse is the same pattern read from the right:

    Entry("head/out/kernel", "proj_out.weight", "o i -> i o")
    Entry("blocks/ffn/up/kernel", "blocks.{layer}.ffn.net.0.proj.weight", "o i -> i o")

"{layer}" marks leaves that are stacked over layers: axis 0 of ours counts what
is one tensor per layer with them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from einops import rearrange
from jaxtyping import Shaped

LAYER = "{layer}"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our leaves and where it comes from.

    Attributes:
      ours: path of the leaf, names joined by "/".
      theirs: name of the tensor; with LAYER in it, of one tensor per layer.
      layout: einops pattern from one tensor of theirs to one (layer) of ours;
        "" leaves it as it is.
      sizes: lengths of axes that the pattern splits, either way.
      aliases: further names under which a file may hold the same tensor again.
    """

    ours: str
    theirs: str
    layout: str = ""
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def stacked(self) -> bool:
        """Whether axis 0 of our leaf counts layers."""
        return LAYER in self.theirs

    def names(self, our_shape: tuple[int, ...]) -> list[str]:
        """Names of their tensors behind a leaf of this shape, layer by layer."""
        if not self.stacked:
            return [self.theirs]
        return [self.theirs.replace(LAYER, str(layer)) for layer in range(our_shape[0])]

    def all_names(self, our_shape: tuple[int, ...]) -> list[list[str]]:
        """For every layer the names that may hold its tensor, the main one first."""
        spellings = [
            dataclasses.replace(self, theirs=name).names(our_shape)
            for name in (self.theirs, *self.aliases)
        ]
        return [list(names) for names in zip(*spellings, strict=True)]

    def their_shape(self, our_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each of their tensors behind a leaf of this shape."""
        one = jax.ShapeDtypeStruct(our_shape[1:] if self.stacked else our_shape, np.float32)
        return jax.eval_shape(self.to_theirs, one).shape

    def to_ours(self, tensor: Shaped[np.ndarray, "*theirs"]) -> Shaped[np.ndarray, "*ours"]:
        """One of their tensors in our layout."""
        return rearrange(tensor, self.layout, **self.sizes) if self.layout else tensor

    def to_theirs(self, array: Any) -> Any:
        """Our leaf (one layer of it) in their layout."""
        if not self.layout:
            return array
        theirs, ours = self.layout.split("->")
        return rearrange(array, f"{ours} -> {theirs}", **self.sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of public model: how its config and its tensors map to a module of ours.

    Attributes:
      name: as config.json states it ("_class_name", or "architectures").
      weights: file name without suffix, "diffusion_pytorch_model" or "model".
      read_config: config.json's content, dtype -> our module. Raises
        `ConvertError` naming the key for what we do not implement.
      write_config: our module -> what config.json says beside the class name.
      example: our module -> positional arguments of `module.init` (arrays or
        ShapeDtypeStructs) that reach every parameter.
      table: our module -> its entries; every leaf has exactly one.
      complete_config: (config, shapes by tensor name) -> config, for releases
        whose config leaves to the tensors what the model is; runs first.
      library: whose config.json it is, "diffusers" or "transformers".
    """

    name: str
    weights: str
    read_config: Callable[[dict[str, Any], str], nn.Module]
    write_config: Callable[[nn.Module], dict[str, Any]]
    example: Callable[[nn.Module], tuple[Any, ...]]
    table: Callable[[nn.Module], list[Entry]]
    complete_config: (
        Callable[[dict[str, Any], Mapping[str, tuple[int, ...]]], dict[str, Any]] | None
    ) = None
    library: str = "diffusers"

    def shapes(self, module: nn.Module) -> Any:
        """Abstract parameters of the module, boxed with their logical axis names."""
        return jax.eval_shape(module.init, jax.random.key(0), *self.example(module))["params"]
