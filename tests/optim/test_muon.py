"""Muon as a transformation: axes as data, agreement with optax's own Muon."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from wallwm_jax.optim.muon import MatrixAxes, from_matrices, scale_by_muon, to_matrices

WHOLE = MatrixAxes(rows=(-3,), cols=(-2, -1))
PER_HEAD = MatrixAxes(rows=(-3,), cols=(-1,))
OUTPUT = MatrixAxes(rows=(-3, -2), cols=(-1,))
RULES = [("query", WHOLE), ("out", OUTPUT), (".*", MatrixAxes())]


def tree(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {
        "plain": draw(12, 20),
        "stacked": draw(3, 20, 12),
        "query": draw(3, 16, 4, 6),
        "out": draw(3, 4, 6, 16),
    }


@pytest.mark.parametrize(
    "shape, axes, folded",
    [
        ((5, 7), MatrixAxes(), (5, 7)),
        ((3, 5, 7), MatrixAxes(), (3, 5, 7)),
        ((3, 16, 4, 6), WHOLE, (3, 16, 24)),
        ((16, 4, 6), WHOLE, (16, 24)),
        ((3, 16, 4, 6), PER_HEAD, (3, 4, 16, 6)),
        ((3, 4, 6, 16), OUTPUT, (3, 24, 16)),
        ((2, 3, 4), MatrixAxes(rows=(2,), cols=(0,)), (3, 4, 2)),
    ],
)
def test_fold_round_trip(shape, axes, folded):
    x = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    matrices = to_matrices(x, axes)
    assert matrices.shape == folded and axes.matrix_shape(shape) == folded[-2:]
    np.testing.assert_array_equal(from_matrices(matrices, axes, shape), x)


def test_fold_takes_the_named_axes():
    x = np.random.default_rng(0).normal(size=(3, 16, 4, 6)).astype(np.float32)
    heads = to_matrices(jnp.asarray(x), PER_HEAD)
    np.testing.assert_array_equal(heads[1, 2], x[1, :, 2, :])
    whole = to_matrices(jnp.asarray(x), WHOLE)
    np.testing.assert_array_equal(whole[1], x[1].reshape(16, 24))


@pytest.mark.parametrize("nesterov", [True, False])
def test_agrees_with_optax(nesterov):
    ours = optax.chain(
        scale_by_muon(RULES, nesterov=nesterov),
        optax.scale(-0.02),
    )
    dims = {
        "plain": MuonDimensionNumbers(0, 1),
        "stacked": MuonDimensionNumbers(1, 2),
        "query": MuonDimensionNumbers(1, (2, 3)),
        "out": MuonDimensionNumbers((1, 2), 3),
    }
    theirs = optax.contrib.muon(
        0.02,
        beta=0.95,
        nesterov=nesterov,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=dims,
    )
    params = tree()
    states = ours.init(params), theirs.init(params)
    step_ours, step_theirs = jax.jit(ours.update), jax.jit(theirs.update)
    # Several steps: the first one alone would not show a wrong bias correction.
    for step in range(1, 5):
        grads = tree(step)
        updates, mine = step_ours(grads, states[0], params)
        wanted, other = step_theirs(grads, states[1], params)
        states = mine, other
        for name in params:
            np.testing.assert_allclose(updates[name], wanted[name], atol=2e-5, err_msg=name)


def test_update_is_per_layer_and_per_head():
    grads = tree(3)
    tx = scale_by_muon([("query", PER_HEAD), ("out", OUTPUT), (".*", MatrixAxes())])
    updates, _ = jax.jit(tx.update)(grads, tx.init(grads))
    single = scale_by_muon()
    update_single = jax.jit(single.update)
    for layer in range(3):
        for head in range(4):
            part = {"w": grads["query"][layer, :, head]}
            alone, _ = update_single(part, single.init(part))
            got = updates["query"][layer, :, head]
            np.testing.assert_allclose(got, alone["w"], atol=2e-5)


def test_size_of_updates():
    """Root mean square like AdamW's, whatever the shape; zero for a zero gradient."""
    tx = scale_by_muon(RULES)
    update = jax.jit(tx.update)
    state = tx.init(tree())
    for name, leaf in update(tree(4), state)[0].items():
        assert 0.12 < float(jnp.sqrt(jnp.mean(leaf**2))) < 0.25, name
    still, after = update(jax.tree.map(jnp.zeros_like, tree()), state)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves((still, after.mu)))


def test_dtypes_of_state_and_updates():
    tx = scale_by_muon(RULES, momentum_dtype=jnp.bfloat16, compute_dtype=jnp.bfloat16)
    state = jax.eval_shape(tx.init, tree())
    updates, after = jax.eval_shape(tx.update, tree(), state)
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, after)
    assert after.mu["plain"].dtype == jnp.bfloat16 and updates["plain"].dtype == jnp.float32


@pytest.mark.parametrize("axes", [WHOLE, MatrixAxes(rows=(0,), cols=(-2,)), MatrixAxes(rows=())])
def test_axes_that_do_not_fit_name_the_path(axes):
    with pytest.raises(ValueError, match=r"a/kernel \(4, 5\)"):
        scale_by_muon([(".*", axes)]).init({"a": {"kernel": jnp.zeros((4, 5))}})
