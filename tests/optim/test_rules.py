"""Ordered rules over parameter paths."""

import jax
import jax.numpy as jnp
import pytest

from wallwm_jax.optim import rules

TREE = {
    "video": {"blocks": {"kernel": jnp.zeros((2, 3, 4)), "bias": jnp.zeros((2, 4))}},
    "action": {"parts": (jnp.zeros(3), jnp.zeros(5))},
}


def test_first_match_wins_and_matches_whole_path():
    table = [("kernel", 0), ("video/.*/kernel", 1), ("video/.*", 2), (".*/1", 3), (".*", 4)]
    got = rules.match_rules(table, TREE)
    # "kernel" alone is a prefix-free fragment: it must not match a whole path.
    assert got == {"video": {"blocks": {"kernel": 1, "bias": 2}}, "action": {"parts": (4, 3)}}


def test_uncovered_paths_are_all_listed():
    with pytest.raises(ValueError) as error:
        rules.match_rules([(".*kernel", 1)], TREE, what="optimizer labels")
    message = str(error.value)
    assert message.startswith("optimizer labels: no rule matches")
    for path in ("video/blocks/bias", "action/parts/0", "action/parts/1"):
        assert path in message
    assert "\n" not in message and "blocks/kernel" not in message


def test_works_on_abstract_trees():
    abstract = jax.eval_shape(lambda: TREE)
    assert rules.match_rules([(".*", 7)], abstract)["video"]["blocks"]["bias"] == 7


def test_count_by_value():
    counts = rules.count_by_value([(".*kernel", "muon"), (".*", "adamw")], TREE)
    assert counts == {"muon": 24, "adamw": 8 + 3 + 5}
