"""Which tensor fills which leaf, checked both ways before anything is read or written."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from wallwm_jax.convert.errors import ConvertError, some
from wallwm_jax.convert.files import Spec
from wallwm_jax.convert.table import LAYER, Entry, Family


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter of ours: its table entry and its shape and dtype in the module."""

    entry: Entry
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Number of parameters."""
        return math.prod(self.shape)

    @property
    def names(self) -> list[str]:
        """Their tensors, layer by layer."""
        return self.entry.names(self.shape)

    @property
    def pattern(self) -> str:
        """Their tensors in one word: blocks.{0..29}.ffn.weight."""
        if not self.entry.stacked:
            return self.entry.theirs
        return self.entry.theirs.replace(LAYER, f"{{0..{self.shape[0] - 1}}}")


def leaves(family: Family, module: nn.Module) -> list[Leaf]:
    """Every parameter of a module with its entry, in the table's order.

    Raises:
      ValueError: the family's table does not cover the module exactly once.
    """
    shapes = flat(family.shapes(module))
    entries = family.table(module)
    named = [entry.ours for entry in entries]
    if sorted(named) != sorted(shapes):
        wrong = sorted(set(named) ^ shapes.keys()) or sorted(n for n in named if named.count(n) > 1)
        raise ValueError(f"{family.name}: the table and the module disagree on {some(wrong)}")
    return [Leaf(e, tuple(shapes[e.ours].shape), np.dtype(shapes[e.ours].dtype)) for e in entries]


def flat(params: Any) -> dict[str, Any]:
    """Parameters by path, "blocks/ffn/up/kernel"; boxes are taken off."""
    return traverse_util.flatten_dict(nn.meta.unbox(params), sep="/")


def nested(leaves_by_path: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `flat`."""
    return traverse_util.unflatten_dict(leaves_by_path, sep="/")


def check_tensors(where: str, found: list[Leaf], specs: dict[str, Spec]) -> None:
    """Every tensor consumed, every parameter filled, every shape as expected.

    Raises:
      ConvertError: one line about all that differs.
    """
    missing, wrong, known = [], [], set()
    for leaf in found:
        shape = leaf.entry.their_shape(leaf.shape)
        for names in leaf.entry.all_names(leaf.shape):
            present = [name for name in names if name in specs]
            missing += [] if present else [names[0]]
            known.update(present)
            wrong += [
                f"{name} is {list(specs[name].shape)} instead of {list(shape)}"
                for name in present
                if specs[name].shape != shape
            ]
    extra = sorted(specs.keys() - known)
    report(
        where, missing, wrong, extra, "tensors", "do config.json and the weights belong together?"
    )


def check_params(found: list[Leaf], params: dict[str, Any]) -> None:
    """As `check_tensors`, for parameters of ours that are to be written.

    Raises:
      ConvertError: one line about all that differs.
    """
    expected = {leaf.entry.ours: leaf for leaf in found}
    wrong = [
        f"{path} is {list(np.shape(params[path]))} instead of {list(leaf.shape)}"
        for path, leaf in expected.items()
        if path in params and np.shape(params[path]) != leaf.shape
    ]
    missing = [path for path in expected if path not in params]
    extra = sorted(params.keys() - expected.keys())
    report("params", missing, wrong, extra, "parameters", "pass the parameters of this module")


def report(
    where: str, missing: list[str], wrong: list[str], extra: list[str], what: str, advice: str
) -> None:
    """Raises ConvertError if there is anything to report, all of it in one line."""
    found = [
        f"{len(names)} {what} {state}: {some(names)}"
        for names, state in ((missing, "missing"), (wrong, "of wrong shape"), (extra, "too many"))
        if names
    ]
    if found:
        raise ConvertError(f"{where}: {'; '.join(found)}; {advice}")
