"""The attention door and rotary positions."""

import functools
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.models import attention
from wallwm_jax.models.attention import Problem, attend, pick
from wallwm_jax.models.attention_tpu import MAX_BLOCK, block_size, splash
from wallwm_jax.models.rope import axis_angles, camera_pairs, grid_angles, grid_pairs, rotate


def heads(key: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(key), shape)


def by_hand(q, k, v, allowed):
    """Loops and a softmax per query: nothing shared with the implementation."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(*q.shape[:3]):
        keep = np.flatnonzero(allowed[b, t])
        scores = np.array([q[b, t, n] @ k[b, s, n] for s in keep]) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, t, n] = (weights[:, None] * v[b, keep, n]).sum(0) / weights.sum()
    return out


def test_segments_and_mask_against_loops():
    q, k, v = heads(0, 2, 6, 2, 4), heads(1, 2, 5, 2, 4), heads(2, 2, 5, 2, 4)
    qs = np.array([[1, 1, 2, 2, 3, 3], [1, 2, 2, 2, 1, 1]])
    ks = np.array([[1, 2, 2, 3, 1], [2, 2, 1, 1, 2]])
    mask = np.asarray(jax.random.bernoulli(jax.random.key(3), 0.6, (2, 1, 6, 5))).copy()
    mask[:, 0, :, :] |= np.arange(5) == 1  # keep some; the rest of a row may be empty
    allowed = (qs[:, :, None] == ks[:, None]) & mask[:, 0]
    got = attend(q, k, v, segments=(jnp.asarray(qs), jnp.asarray(ks)), mask=jnp.asarray(mask))
    rows = allowed.any(-1)
    want = by_hand(*(np.asarray(x) for x in (q, k, v)), np.where(rows[..., None], allowed, True))
    np.testing.assert_allclose(np.asarray(got)[rows], want[rows], rtol=1e-5, atol=1e-6)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("dtype, close", [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_agrees_with_jax_nn(dtype, close):
    q, k, v = (heads(i, 2, t, 2, 8).astype(dtype) for i, t in enumerate((6, 5, 5)))
    want = jax.nn.dot_product_attention(q, k, v, implementation="xla")
    got = jax.jit(attend)(q, k, v)
    assert got.dtype == dtype
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (got, want)), atol=close)


@pytest.fixture(scope="module")
def packed():
    """Three events side by side, queries and keys of unlike lengths, and each alone."""
    q, k, v = heads(0, 1, 150, 2, 16), heads(1, 1, 210, 2, 16), heads(2, 1, 210, 2, 16)
    ids = np.repeat([[1, 2, 3]], (40, 60, 50)), np.repeat([[1, 2, 3]], (100, 30, 80))
    ids = tuple(jnp.asarray(x[None]) for x in ids)
    alone = [
        attend(q[:, a:b], k[:, c:d], v[:, c:d])
        for (a, b), (c, d) in zip(
            [(0, 40), (40, 100), (100, 150)], [(0, 100), (100, 130), (130, 210)], strict=True
        )
    ]
    return (q, k, v), ids, jnp.concatenate(alone, axis=1)


@pytest.mark.parametrize("implementation", ["all heads at once", "one by one", "splash"])
def test_packed_events_see_nothing_of_each_other(packed, implementation, monkeypatch):
    (q, k, v), ids, alone = packed
    run = {
        "all heads at once": functools.partial(attend, site="at once"),
        "one by one": functools.partial(attend, site="one by one"),
        "splash": lambda *x, segments: splash(*x, segments, interpret=True),
    }[implementation]
    monkeypatch.setattr(attention, "LOOPED_FROM", 0 if implementation == "one by one" else 1e9)
    got = jax.jit(run)(q, k, v, segments=ids)
    np.testing.assert_allclose(got, alone, rtol=1e-5, atol=1e-6)


def close(got, want, most=3e-6):
    """max|got - want| / max|want| for every array."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.isfinite(a).all()
        assert np.abs(a - b).max() <= most * np.abs(b).max()


def test_one_head_after_another_is_the_same_with_its_gradients(monkeypatch):
    q, k, v = heads(0, 2, 9, 3, 8), heads(1, 2, 7, 3, 8), heads(2, 2, 7, 3, 8)
    mask = jax.random.bernoulli(jax.random.key(3), 0.7, (2, 1, 9, 7))

    def value_and_gradients():
        loss = lambda *x: jnp.sum(attend(*x, mask=mask) ** 2)  # noqa: E731
        traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(q, k, v)
        return str(traced.jaxpr), traced.lower().compile()(q, k, v)

    batched, want = value_and_gradients()
    monkeypatch.setattr(attention, "LOOPED_FROM", 0)
    looped, got = value_and_gradients()
    assert "scan" in looped and "scan" not in batched
    close(got, want)


SPLASH_CASES = {
    "self, odd length, one event": (2, 130, 130, 64, None),
    "cross, whole blocks": (1, 256, 128, 128, None),
    "cross, odd lengths, one event": (1, 130, 300, 64, None),
    "packed, keys padded with an id no query has": (2, 140, 200, 128, (3, -1)),
    "packed, queries padded with an id no key has": (1, 200, 140, 64, (0, 3)),
}


@pytest.mark.parametrize("case", SPLASH_CASES.values(), ids=SPLASH_CASES)
def test_splash_is_plain_attention_with_its_gradients(case):
    """The TPU kernel, run as plain operations: forward and backward, float32."""
    batch, queries, keys, head_dim, last = case
    q, k, v = (heads(i, batch, t, 2, head_dim) for i, t in enumerate((queries, keys, keys)))
    ids, counted = None, jnp.ones(queries)
    if last is not None:
        events = [np.sort(np.arange(t) % 3 + 1)[None].repeat(batch, 0) for t in (queries, keys)]
        for x, end in zip(events, last, strict=True):
            x[:, -20:] = end
        ids = tuple(jnp.asarray(x) for x in events)
        # Values of queries without keys are finite, unlike, and not counted.
        counted = jnp.asarray(np.isin(events[0][0], events[1][0]))

    def loss(run, *x):
        values = run(*x) * counted[None, :, None, None]
        return jnp.sum(values * jnp.arange(1.0, head_dim + 1)), values  # inf * 0 is nan

    def results(run):
        return jax.jit(jax.grad(functools.partial(loss, run), argnums=(0, 1, 2), has_aux=True))

    kernel = results(lambda *x: splash(*x, ids, interpret=True))
    close(kernel(q, k, v), results(functools.partial(attend, segments=ids))(q, k, v))


@pytest.mark.parametrize("length", [1, 128, 378, 2142, 4158, 4224, 12474])
def test_blocks_are_whole_and_waste_little(length):
    block = block_size(length)
    assert block % 128 == 0 and block <= MAX_BLOCK
    assert -length % block <= max(128, 0.1 * length)


SELF = dict(batch=64, queries=4158, keys=4158, heads=24, head_dim=128, dtype="bfloat16")
VIEWS = dict(SELF, batch=33 * 64, queries=378, keys=378)


@pytest.mark.parametrize(
    "platform, changes, picked, because",
    [
        ("cpu", {}, "xla", "no kernel for cpu"),
        ("tpu", {}, "splash", "kernel for tpu"),
        ("tpu", dict(segments=True), "splash", "kernel for tpu"),
        ("tpu", dict(VIEWS), "splash", "kernel for tpu"),
        ("tpu", dict(VIEWS, mask=True), "xla", "not a dense mask"),
        ("tpu", dict(keys=20), "xla", "less than one block"),
        ("tpu", dict(head_dim=12), "xla", "head_dim 12"),
        ("tpu", dict(head_dim=384, heads=1), "xla", "head_dim 384"),
        ("tpu", dict(shards=(48, 1)), "xla", "batch 64 does not divide over the mesh's 48"),
        ("tpu", dict(shards=(64, 5)), "xla", "heads 24 does not divide"),
        ("tpu", dict(dtype="float32"), "splash", "kernel for tpu"),
        ("gpu", {}, "cudnn", "kernel for gpu"),
        ("gpu", dict(keys=20, segments=True), "cudnn", "kernel for gpu"),
        ("gpu", dict(mask=True), "cudnn", "kernel for gpu"),
        ("gpu", dict(keys=21, segments=True), "xla", "even lengths"),
        ("gpu", dict(dtype="float32"), "xla", "not float32"),
        ("gpu", dict(head_dim=256), "xla", "head_dim 256"),
    ],
)
def test_auto_picks_by_platform_and_by_what_the_kernel_can_do(platform, changes, picked, because):
    choice = pick(Problem(**SELF | changes, platform=platform))
    assert choice.implementation == picked
    assert because in choice.reason


@pytest.mark.parametrize(
    "implementation, platform, changes, words",
    [
        ("flash", "tpu", {}, "'flash' is unknown.*splash"),
        ("cudnn", "gpu", dict(dtype="float32"), "'cudnn' cannot run.*not float32"),
        ("cudnn", "tpu", {}, "does not run on tpu"),
        ("splash", "cpu", {}, "does not run on cpu"),
        ("splash", "tpu", dict(mask=True), "'splash' cannot run.*dense mask"),
        ("splash", "tpu", dict(shards=(48, 1)), "batch 64 does not divide"),
    ],
)
def test_a_kernel_asked_for_that_cannot_run_is_one_line(implementation, platform, changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        pick(Problem(**SELF | changes, platform=platform), implementation)
    assert "\n" not in str(caught.value)


def test_the_choice_is_told_once_for_each_site_and_shape(caplog):
    attention._tell.cache_clear()
    q = heads(0, 1, 3, 1, 4)
    with caplog.at_level(logging.INFO, logger="absl"):
        for site in ("text", "text", "views"):
            jax.jit(lambda x, site=site: attend(x, x, x, site=site))(q)
    told = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in told] == ["text", "views"]
    assert "xla attention" in told[0] and "no kernel for cpu" in told[0]


def test_cudnn_lowers_for_nvidia_forward_and_backward(monkeypatch):
    """Lowered only: nothing runs, and neither a GPU nor cuDNN is needed."""
    cudnn = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(cudnn, lambda: 91000)
    monkeypatch.setattr(attention, "surroundings", lambda: ("gpu", (1, 1)))
    q = jax.ShapeDtypeStruct((2, 378, 4, 128), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((2, 378), jnp.int32)

    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def loss(q, k, v, ids):
        return attend(q, k, v, segments=(ids, ids)).astype(jnp.float32).sum()

    text = jax.jit(loss).trace(q, q, q, ids).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text


SHARDED = """
import functools
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
from wallwm_jax.models.attention import attend, surroundings
from wallwm_jax.models.attention_tpu import splash
from wallwm_jax.models.sequence_parallel import on_each_device
from wallwm_jax.parallel.mesh import RULES, make_mesh

def kernel(q, k, v, segments, mask):
    return splash(q, k, v, segments, interpret=True)

q, k, v = (jax.random.normal(jax.random.key(i), (4, 130, 2, 64)) for i in range(3))
ids = jnp.asarray(np.sort(np.arange(4 * 130).reshape(4, 130) % 3))
want = attend(q, k, v, segments=(ids, ids))
with jax.set_mesh(make_mesh(dict(data=2, fsdp=2, tensor=2))), nn.logical_axis_rules(RULES):
    assert surroundings() == ("cpu", (4, 2)), surroundings()
    got = jax.jit(functools.partial(on_each_device, kernel))(q, k, v, (ids, ids), None)
    assert str(got.sharding.spec) == "P(('data', 'fsdp'), None, 'tensor')", got.sharding
    plain = jax.jit(attend)(q, k, v, segments=(ids, ids))
for x in (got, plain):
    np.testing.assert_allclose(x, want, rtol=1e-5, atol=2e-6)
"""


def test_under_a_mesh_each_device_runs_the_kernel_on_what_it_holds():
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_rotation_keeps_norms_and_depends_on_differences_only():
    q, k = heads(0, 1, 1, 1, 12), heads(1, 1, 1, 1, 12)

    def product(a: int, b: int) -> float:
        turned = [rotate(x, axis_angles(jnp.full((1, 1), p), 6)) for x, p in ((q, a), (k, b))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert product(3, 1) == pytest.approx(product(12, 10), rel=1e-4)
    assert product(3, 1) != pytest.approx(product(3, 2), rel=1e-2)
    x = rotate(q, axis_angles(jnp.full((1, 1), 7), 6))
    assert float(jnp.linalg.norm(x)) == pytest.approx(float(jnp.linalg.norm(q)), rel=1e-6)


def test_rotation_turns_neighbouring_pairs():
    """(1, 0) turned by a right angle is (0, 1); Wan pairs channels 2i and 2i+1."""
    x = jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 1, 4)
    turned = rotate(x, jnp.full((1, 1, 2), jnp.pi / 2))
    np.testing.assert_allclose(turned.ravel(), [0, 1, -1, 0], atol=1e-6)


@pytest.mark.parametrize("pairs", [5, 12, 64])
def test_pairs_are_shared_out_completely(pairs):
    assert sum(grid_pairs(pairs)) == sum(camera_pairs(pairs)) == pairs
    assert grid_pairs(64) == (22, 21, 21)  # Wan: 44, 42, 42 of 128 channels


def test_grid_angles_restart_with_the_frame_index():
    angles = grid_angles(jnp.array([[0, 1, 0, 1]]), (2, 3), 12)
    np.testing.assert_array_equal(angles[:, :2], angles[:, 2:])
    assert angles.shape == (1, 4, 6, 12)
