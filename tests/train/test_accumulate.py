"""Micro-batches add up to the whole batch, however unlike they are."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mini_run import DIMS, MiniDenoiser, mini_run, quiet_loss

from wallwm_jax.flow.losses import masked_mean, reduce_mean
from wallwm_jax.input.batch import Batch
from wallwm_jax.parallel.mesh import activate, make_mesh
from wallwm_jax.train.accumulate import (
    AccumulateError,
    accumulated_gradients,
    check_divides,
    micro_batches,
)
from wallwm_jax.train.objectives import counted_actions, counted_cells, counted_elements
from wallwm_jax.train.stages import Stage
from wallwm_jax.train.step import train_step


def uneven() -> Batch:
    """Sequences that hold very different amounts, some of them nothing."""
    batch = Batch.fake(DIMS, seed=3)
    keep = np.array([0, 6, 1, 2, 0, 5, 3, 0])[:, None]
    frames = np.arange(DIMS.frames)[None] < keep
    steps = np.arange(DIMS.actions)[None] < 3 * keep[::-1]
    return batch.replace(
        frame_segment=np.where(frames, batch.frame_segment, 0),
        visible=batch.visible & frames[:, None, :, None, None],
        action_segment=np.where(steps, batch.action_segment, 0),
    )


@pytest.fixture(scope="module")
def params():
    made = MiniDenoiser().init(jax.random.key(0), None, None)
    made["video"]["kernel"] = made["video"]["kernel"].value
    return made


def objective(params, batch, key):
    return quiet_loss(None, None, params, batch, key)


def close(a, b, rtol=1e-5) -> bool:
    return all(
        np.allclose(x, y, rtol=rtol, atol=1e-7)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_gradients_are_those_of_the_whole_batch(params, parts):
    batch, key = jax.tree.map(jnp.asarray, uneven()), jax.random.key(0)
    whole = jax.value_and_grad(objective, has_aux=True)(params, batch, key)
    counts = partial(counted_elements, MiniDenoiser())
    cut = jax.jit(partial(accumulated_gradients, objective, counts, parts=parts))
    assert close(whole, cut(params, batch=batch, key=key))
    # What would be wrong: the plain mean of the micro-batches' means.
    dealt = micro_batches(batch, parts)
    each = [jax.tree.map(lambda x: x[m], dealt) for m in range(parts)]  # noqa: B023
    means = [jax.grad(lambda p, b: objective(p, b, key)[0])(params, b) for b in each]
    mean = jax.tree.map(lambda *g: sum(g) / parts, *means)
    assert not close(whole[1], mean, rtol=1e-2)


def test_every_sequence_is_in_one_micro_batch():
    batch = jax.tree.map(jnp.asarray, Batch.fake(DIMS, seed=0))
    dealt = micro_batches(batch, 4)
    for whole, cut in zip(jax.tree.leaves(batch), jax.tree.leaves(dealt), strict=True):
        assert cut.shape == (4, 2, *whole.shape[1:])
        for row in range(DIMS.sequences):
            np.testing.assert_array_equal(cut[row % 4, row // 4], whole[row])


def test_counts_are_the_elements_the_losses_are_means_over(rng=np.random.default_rng(0)):
    """Of random errors, the weighted micro-batch means give the mean over all."""
    batch = jax.tree.map(jnp.asarray, uneven())
    errors = {
        "loss_video": (batch.latents, lambda b: counted_cells(b, "clean")),
        "loss_action": (batch.actions, counted_actions),
    }
    for name, (like, mask) in errors.items():
        error = jnp.asarray(rng.random(like.shape), jnp.float32)
        whole = reduce_mean(masked_mean(error, mask(batch)))
        total, parts = 0.0, 0.0
        for rows in (slice(0, 1), slice(1, 4), slice(4, 8)):
            part = jax.tree.map(lambda x: x[rows], batch)  # noqa: B023
            n = counted_elements(MiniDenoiser(), part)[name]
            total, parts = total + n, parts + n * reduce_mean(masked_mean(error[rows], mask(part)))
        np.testing.assert_allclose(parts / total, whole, rtol=1e-5)


def test_the_step_accumulates_and_says_the_same(tmp_path):
    run = mini_run(tmp_path, stage=Stage(trains=("video", "action"), objective=quiet_loss))
    parts = (run.denoiser, run.stage, run.objective, run.optimizer, run.schedule, run.ema, run.seed)
    from wallwm_jax.train.loop import initial_state

    with activate(run.mesh):
        state, _ = initial_state(run)
        one, figures = jax.jit(partial(train_step, *parts))(state, uneven())
        four, others = jax.jit(partial(train_step, *parts, accumulate=4))(state, uneven())
    assert close(one.params, four.params, 1e-4) and close(figures, others, 1e-4)


def test_parts_without_a_count_are_refused(params):
    batch, key = jax.tree.map(jnp.asarray, Batch.fake(DIMS, seed=0)), jax.random.key(0)
    with pytest.raises(ValueError, match="loss_action"):
        accumulated_gradients(
            objective, lambda b: {"loss_video": jnp.float32(1)}, params, batch, key, 2
        )


def test_what_does_not_divide_is_one_line():
    mesh = make_mesh({"fsdp": -1}, jax.devices()[:1])
    check_divides([DIMS], 4, mesh)
    for parts, words in ((3, "multiple of 3"), (0, "1 or more")):
        with pytest.raises(AccumulateError, match=words) as caught:
            check_divides([DIMS], parts, mesh)
        assert "\n" not in str(caught.value)
