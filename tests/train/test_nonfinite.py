"""An update that is not finite leaves everything as it was; too many of them end the run."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mini_run import DIMS, MiniDenoiser, MiniLoader, mini_loss, mini_run

from wallwm_jax.input.batch import Batch
from wallwm_jax.parallel.mesh import activate
from wallwm_jax.train.loop import Limits, initial_state, train
from wallwm_jax.train.metrics import NonFiniteError
from wallwm_jax.train.saved import latest_step
from wallwm_jax.train.stages import Stage
from wallwm_jax.train.step import train_step


def poisoned_gradient(*args):
    """A finite loss whose gradient is not: the square root at zero."""
    loss, parts = mini_loss(*args)
    return loss + jnp.sqrt(0 * args[2]["video"]["kernel"].sum()), parts


def explodes() -> optax.GradientTransformation:
    """Finite gradients in, infinite updates and buffers out, from the second update on."""
    return optax.GradientTransformation(
        lambda params: {"count": jnp.zeros(()), "buffer": params},
        lambda g, s, _=None: (
            jax.tree.map(lambda x: jnp.where(s["count"] < 1, x, jnp.inf), g),
            {"count": s["count"] + 1, "buffer": jax.tree.map(lambda x: x / 0, g)},
        ),
    )


def one_step(run, **changes):
    """The run's jitted step."""
    run = dataclasses.replace(run, **changes)
    parts = (run.denoiser, run.stage, run.objective, run.optimizer, run.schedule, run.ema, run.seed)
    return jax.jit(partial(train_step, *parts))


def same(a, b) -> bool:
    """Equal bit by bit."""
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("what", ["loss", "gradient", "update"])
def test_nothing_but_counters_moves(tmp_path, what):
    changes = {
        "loss": {},
        "gradient": dict(stage=Stage(trains=("video", "action"), objective=poisoned_gradient)),
        "update": dict(optimizer=explodes()),
    }[what]
    run = mini_run(tmp_path, **changes)
    batch = Batch.fake(DIMS, seed=0)
    with activate(run.mesh):
        state, _ = initial_state(run)
        step = one_step(run)
        if what == "loss":
            state, _ = step(state, batch)
            batch = batch.replace(latents=np.full_like(batch.latents, np.inf))
        elif what == "update":
            state, metrics = step(state, batch)
            assert int(metrics["skipped_total"]) == 0 and int(state.opt_state["count"]) == 1
        before = int(state.step)
        after, metrics = step(state, batch)
    for part in ("params", "opt_state", "ema"):
        assert same(getattr(state, part), getattr(after, part)), part
    assert int(after.step) == before + 1
    assert (int(after.skipped), int(after.skipped_in_row)) == (1, 1)
    figures = {"loss": "loss", "gradient": "grad_norm", "update": "update_norm"}
    assert not np.isfinite(metrics[figures[what]])


def test_a_skipped_batch_is_as_if_the_update_had_not_been(tmp_path):
    """Schedules, optimizer and average go on as if only the good batches had come."""
    run = mini_run(tmp_path)
    step = one_step(run)
    good = [Batch.fake(DIMS, seed=n) for n in range(3)]
    bad = good[0].replace(actions=np.full_like(good[0].actions, np.nan))
    with activate(run.mesh):
        first, _ = initial_state(run)
        after, state = [], first
        for batch in (good[0], bad, bad, good[1]):
            state, metrics = step(state, batch)
            after.append((state, metrics))
        # The same noise for the last batch, which follows from the step.
        other = after[0][0].replace(step=jnp.int32(3), skipped=jnp.int32(2))
        expected, figures = step(other, good[1])
    assert same(expected.params, state.params) and same(expected.opt_state, state.opt_state)
    assert same(expected.ema, state.ema) and same(figures["lr"], metrics["lr"])
    assert [int(m["skipped_in_row"]) for _, m in after] == [0, 1, 2, 0]
    assert [int(m["skipped_total"]) for _, m in after] == [0, 1, 2, 2]
    assert float(metrics["lr"]) == pytest.approx(0.5)  # the second update that was taken


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_on_over_some_and_ends_over_many(tmp_path):
    run = mini_run(tmp_path, limits=Limits(nonfinite=2))
    run.loader.poisoned = (1, 4, 5, 6)
    with pytest.raises(NonFiniteError, match="last 3 updates up to step 6.*as at step 4") as caught:
        train(run)
    assert "\n" not in str(caught.value)
    log = lines(tmp_path)
    assert [line["skipped_total"] for line in log[:5]] == [0, 1, 1, 1, 2]
    assert latest_step(tmp_path / "checkpoints") == 4
    # The data is mended: the same command continues from the last good state.
    train(mini_run(tmp_path, limits=Limits(nonfinite=2)))
    log = lines(tmp_path)
    assert [line["step"] for line in log] == list(range(8))
    assert np.isfinite([line["loss"] for line in log[2:]]).all()
    assert log[-1]["skipped_total"] == 1


def test_the_mini_run_is_what_these_tests_think(tmp_path):
    """Its loss depends on the batch, and its data can be poisoned."""
    loader = MiniLoader((0, 1), poisoned=(1,))
    first, second = (jax.tree.map(jnp.asarray, next(loader)) for _ in range(2))
    assert np.isfinite(first.latents).all() and np.isnan(second.latents).all()
    params = MiniDenoiser().init(jax.random.key(0), None, None)
    params["video"]["kernel"] = params["video"]["kernel"].value
    value = [mini_loss(None, None, params, b, jax.random.key(0))[0] for b in (first, second)]
    assert np.isfinite(value[0]) and np.isnan(value[1])
