"""The optimizer of a run, held to what every optax transformation must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wallwm_jax.optim.build import make_optimizer
from wallwm_jax.optim.muon import MatrixAxes
from wallwm_jax.optim.schedules import warmup_constant

LABELS = [
    ("codec/.*", "frozen"),
    (".*/(table|bias|scale)", "adamw"),
    (".*/kernel", "muon"),
]
AXES = [
    (".*/query/kernel", MatrixAxes(rows=(-3,), cols=(-2, -1))),
    (".*", MatrixAxes()),
]


def params(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {
        "codec": {"kernel": draw(4, 4)},
        "video": {
            "query": {"kernel": draw(2, 8, 2, 4), "bias": draw(2, 2, 4)},
            "up": {"kernel": draw(2, 8, 12)},
            "text": {"table": draw(10, 8)},
        },
    }


def build(**changes):
    options = dict(schedule=warmup_constant(0), learning_rate=0.01, matrix_axes=AXES)
    return make_optimizer(LABELS, **(options | changes))


VARIANTS = {
    "muon": dict(weight_decay=0.1),
    "adamw": dict(algorithm="adamw", adamw_learning_rate=1e-3),
    "bfloat16": dict(muon_compute_dtype=jnp.bfloat16, muon_coefficients="minimax"),
    "unclipped": dict(clip_norm=None, muon_nesterov=False),
}
variants = pytest.mark.parametrize("variant", VARIANTS)


@variants
def test_abstract_init_equals_real_init(variant):
    tx = build(**VARIANTS[variant])
    abstract = jax.eval_shape(tx.init, jax.eval_shape(params))
    real = tx.init(params())
    assert jax.tree.structure(abstract) == jax.tree.structure(real)
    assert [x.shape for x in jax.tree.leaves(abstract)] == [x.shape for x in jax.tree.leaves(real)]


@variants
def test_update_compiles_once_and_keeps_its_state_type(variant):
    tx = build(**VARIANTS[variant])
    traces = []

    @jax.jit
    def step(weights, state, grads):
        traces.append(1)
        updates, state = tx.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state

    weights, state = params(), tx.init(params())
    for seed in range(3):
        weights, state = step(weights, state, params(seed))
    assert len(traces) == 1
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((weights, state)))


@variants
def test_state_follows_parameters(variant):
    """Each buffer is reached by tree_map_params together with its own parameter."""
    tx = build(**VARIANTS[variant])
    state = tx.init(params())
    shapes = jax.tree.map(lambda p: str(p.shape), params())
    reached = []

    def visit(buffer, shape):
        if not isinstance(buffer, optax.MaskedNode):
            reached.append((str(buffer.shape), shape))
        return shape

    optax.tree_utils.tree_map_params(
        tx, visit, state, shapes, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )
    assert all(buffer == parameter for buffer, parameter in reached)
    # Muon keeps one buffer per parameter, Adam two; the frozen kernel has none.
    want = 8 if variant == "adamw" else 2 + 2 * 2
    assert len(reached) == want


def updates_of(tx, grads=None, weights=None):
    weights = params() if weights is None else weights
    grads = params(1) if grads is None else grads
    return jax.jit(tx.update)(grads, tx.init(weights), weights)[0]


def test_frozen_leaves_stay_and_do_not_count_in_the_norm():
    grads = params(1)
    loud = grads | {"codec": {"kernel": jnp.full((4, 4), jnp.inf)}}
    tx = build(algorithm="adamw", eps=1.0)  # a large eps lets the gradient's scale through
    calm, noisy = updates_of(tx, grads), updates_of(tx, loud)
    np.testing.assert_array_equal(calm["codec"]["kernel"], 0)
    jax.tree.map(np.testing.assert_array_equal, calm, noisy)


def test_clip_uses_the_global_norm_of_all_trained_leaves():
    tx = build(algorithm="adamw", eps=1e6, learning_rate=1e6, clip_norm=1.0)
    # Adam's first update is g/(|g| + eps), about g/eps: what comes out is the clipped gradient.
    updates = updates_of(tx)
    assert float(optax.tree.norm(updates)) == pytest.approx(1.0, rel=1e-3)


def test_groups_have_their_own_peaks_under_one_schedule():
    half = lambda count: 0.5
    one = updates_of(build(learning_rate=0.01, adamw_learning_rate=0.004))
    two = updates_of(build(schedule=half, learning_rate=0.02, adamw_learning_rate=0.004))
    video, other = one["video"], two["video"]
    np.testing.assert_allclose(video["up"]["kernel"], other["up"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(video["text"]["table"], 2 * other["text"]["table"], rtol=1e-6)
    # Adam's first update is the sign of the gradient times the learning rate.
    np.testing.assert_allclose(np.abs(video["text"]["table"]), 0.004, rtol=1e-3)


def test_decay_pulls_kernels_only():
    zeros = jax.tree.map(jnp.zeros_like, params())
    updates = updates_of(build(learning_rate=0.1, weight_decay=0.5), grads=zeros)["video"]
    weights = params()["video"]
    np.testing.assert_allclose(updates["up"]["kernel"], -0.05 * weights["up"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(
        updates["query"]["kernel"], -0.05 * weights["query"]["kernel"], rtol=1e-5
    )
    assert not np.any(updates["query"]["bias"]) and not np.any(updates["text"]["table"])


@pytest.mark.parametrize("algorithm", ["muon", "adamw"])
def test_reaches_a_least_squares_target(algorithm):
    target = params(5)
    loss = lambda w: optax.tree.norm(
        jax.tree.map(jnp.subtract, w["video"], target["video"]), squared=True
    )
    decaying = lambda count: 1 - count / 300
    tx = build(algorithm=algorithm, schedule=decaying, learning_rate=0.2, adamw_learning_rate=0.05)

    def step(carry, _):
        weights, state = carry
        updates, state = tx.update(jax.grad(loss)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (params(), tx.init(params())), length=300)
    assert loss(weights) < 0.01 * loss(params())
    np.testing.assert_array_equal(weights["codec"]["kernel"], params()["codec"]["kernel"])


def test_uncovered_paths_are_listed_on_init():
    weights = params() | {"action": {"gate": jnp.zeros(3)}}
    with pytest.raises(ValueError, match="optimizer labels: no rule matches action/gate;"):
        build().init(weights)


def test_unknown_label_is_refused():
    with pytest.raises(ValueError, match="'adam' of rule '.*': unknown"):
        make_optimizer([(".*", "adam")], schedule=warmup_constant(0), learning_rate=1.0)
