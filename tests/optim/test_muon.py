"""Muon as a transformation: axes as data, agreement with optax's own Muon."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers

from wallwm_jax.optim import exchange
from wallwm_jax.optim.matrices import MatrixAxes, from_matrices, to_matrices
from wallwm_jax.optim.muon import muon_plan, scale_by_muon
from wallwm_jax.optim.plan import PlanError

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


def test_fused_parts_are_matrices_of_their_own():
    """[in, 3 out] with parts is three [in, out]."""
    rng = np.random.default_rng(5)
    query, key, value = (jnp.asarray(rng.normal(size=(2, 12, 20)), jnp.float32) for _ in range(3))
    fused = {"w": jnp.concatenate([query, key, value], -1)}
    apart = {"query": query, "key": key, "value": value}
    parts = scale_by_muon([(".*", MatrixAxes(parts=((-1, 3),)))])
    single = scale_by_muon()
    got, _ = parts.update(fused, parts.init(fused))
    want, _ = single.update(apart, single.init(apart))
    np.testing.assert_allclose(got["w"], jnp.concatenate([want[k] for k in apart], -1), atol=2e-5)


def test_parts_round_trip_and_refusal():
    axes = MatrixAxes(rows=(0,), cols=(1,), parts=((0, 2), (1, 3)))
    x = jnp.arange(8 * 15, dtype=jnp.float32).reshape(8, 15)
    matrices = to_matrices(x, axes)
    assert matrices.shape == (2, 3, 4, 5)
    np.testing.assert_array_equal(matrices[1, 2], x[4:, 10:])
    np.testing.assert_array_equal(from_matrices(matrices, axes, x.shape), x)
    with pytest.raises(ValueError, match="qkv .*axis 1 of 16 does not divide into 3"):
        scale_by_muon([(".*", axes)]).init({"qkv": jnp.zeros((8, 16))})


def test_many_matrices_in_batches_are_the_same(monkeypatch):
    """One owner's matrices, all at once, one by one and in a loop with a rest."""
    grads = {"w": jnp.asarray(np.random.default_rng(6).normal(size=(7, 8, 12)), jnp.float32)}
    results = []
    for at_once, unrolled in ((10**6, 8), (96, 8), (2 * 96, 2)):
        monkeypatch.setattr(exchange, "AT_ONCE", at_once)
        monkeypatch.setattr(exchange, "UNROLLED", unrolled)
        tx = scale_by_muon()
        compiled = jax.jit(tx.update).lower(grads, tx.init(grads)).compile()
        results.append((compiled(grads, tx.init(grads))[0]["w"], " while(" in compiled.as_text()))
    assert [looped for _, looped in results] == [False, False, True]
    for got, _ in results[1:]:
        np.testing.assert_allclose(got, results[0][0], atol=2e-5)


def test_a_mesh_needs_specs_of_all_its_leaves():
    mesh = Mesh(np.array(jax.devices()[:1] * 8), ("fsdp",))  # only its shape is read
    with pytest.raises(PlanError, match="needs the parameters' specs"):
        muon_plan(tree(), RULES, mesh=mesh)
    with pytest.raises(PlanError, match=r"no spec for parameter out \(3, 4, 6, 16\)"):
        muon_plan(tree(), RULES, mesh=mesh, specs={"plain": P(), "query": P()})
    by_path = lambda path, leaf: P(None, "fsdp") if path == "query" else P()
    plan, leaves = muon_plan(tree(), RULES, mesh=mesh, specs=by_path)
    cut = {leaf.path: cuts for leaf, cuts in zip(leaves, plan.specs, strict=True)}
    assert cut["query"] == ((), ("fsdp",), (), ()) and not any(cut["stacked"])


def test_small_gradients_keep_their_bits_in_bfloat16():
    """bfloat16 gradients: the momentum is summed in float32."""
    grads = {"w": jnp.full((4, 4), 1.0, jnp.bfloat16)}
    tx = scale_by_muon(momentum_dtype=jnp.float32)
    _, state = tx.update(grads, tx.init(grads))
    np.testing.assert_array_equal(state.mu["w"], np.float32(1 - 0.95))


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
