"""Ordered rules over parameter paths: the one way to say things about leaves.

Freezing, Muon or AdamW, weight decay, matrix axes (and, in `parallel`, the
sharding) are all lists of `(regex, value)`. A parameter's path is its keys
joined by "/", such as "action/blocks/ffn/up/kernel". The FIRST rule whose regex
matches the WHOLE path gives the value, so specific rules stand above general
ones, and a list usually ends with `(".*", default)`.

Full coverage is required: a new module that no rule mentions is reported by
path instead of silently receiving some default treatment.
"""

import collections
import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax

Value = TypeVar("Value")
Rules = Sequence[tuple[str, Value]]


def path_name(key_path: tuple[Any, ...]) -> str:
    """JAX key path -> "a/b/0/c" (dict keys, attribute names, sequence indices)."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def find_rule(rules: Rules[Value], path: str) -> tuple[str, Value] | None:
    """The first `(regex, value)` whose regex matches all of `path`, or None."""
    for pattern, value in rules:
        if re.fullmatch(pattern, path):
            return pattern, value
    return None


def match_rules(rules: Rules[Value], tree: Any, *, what: str = "parameter") -> Any:
    """Resolves ordered rules to one value per leaf.

    Args:
      rules: `(regex, value)` in order of precedence. A value must be a pytree
        leaf other than None (None disappears from trees).
      tree: parameters, or anything with their structure; leaves are not read,
        so tracers and ShapeDtypeStructs do.
      what: names the rules in the error message ("optimizer labels", ...).

    Returns:
      A tree with the structure of `tree` whose leaves are rule values.

    Raises:
      ValueError: some path is matched by no rule; all of them are listed.
    """
    missing = []

    def value_of(key_path, _):
        path = path_name(key_path)
        found = find_rule(rules, path)
        if found is None:
            missing.append(path)
            return None
        return found[1]

    values = jax.tree_util.tree_map_with_path(value_of, tree)
    if missing:
        raise ValueError(
            f"{what}: no rule matches {', '.join(missing)}; add a (regex, value) "
            f"that matches the whole path, or end the rules with ('.*', default)"
        )
    return values


def count_by_value(rules: Rules[Value], tree: Any, *, what: str = "parameter") -> dict[Value, int]:
    """Number of scalars under each rule value, for logs: {"muon": 41_000_000, ...}.

    Raises ValueError as `match_rules` does.
    """
    values = match_rules(rules, tree, what=what)
    counts: dict[Value, int] = collections.defaultdict(int)
    for value, leaf in zip(jax.tree.leaves(values), jax.tree.leaves(tree), strict=True):
        counts[value] += math.prod(leaf.shape)
    return dict(counts)
