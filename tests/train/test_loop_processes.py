"""The loop of the mini run: asked to stop, in several processes, and never compiling twice."""

import signal
from pathlib import Path

import pytest
from layout_run import trained
from mini_processes import await_steps, ended, lines, start, told
from mini_run import mini_run

from wallwm_jax.train.loop import train
from wallwm_jax.train.saved import latest_step


@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_saves_the_step_in_hand(tmp_path, count):
    """Sent to one process only: all of them save the same step and end with 0."""
    processes = start(count, tmp_path, "steps=100000", "save_every=100000", "slow=0.02")
    await_steps(tmp_path, 6, processes)
    processes[-1].send_signal(signal.SIGTERM)
    assert ended(processes, 60) == [0] * count, told(tmp_path)
    reached = len(lines(tmp_path))
    assert latest_step(tmp_path / "checkpoints") == reached >= 6
    assert f"after step {reached}" in told(tmp_path)
    resumed = train(mini_run(tmp_path, steps=reached + 3))
    assert resumed["resumed_from"] == reached
    whole = tmp_path / "whole"
    train(mini_run(whole, steps=reached + 3))
    assert [line["loss"] for line in lines(tmp_path)] == pytest.approx(
        [line["loss"] for line in lines(whole)], rel=1e-5
    )


def test_four_processes_give_the_losses_of_one(tmp_path):
    several, alone = tmp_path / "several", tmp_path / "alone"
    processes = start(4, several)
    assert ended(processes, 300) == [0] * 4, told(several)
    train(mini_run(alone))
    assert [x["step"] for x in lines(several)] == list(range(8))
    assert [x["loss"] for x in lines(several)] == pytest.approx(
        [x["loss"] for x in lines(alone)], rel=1e-5
    )


def kill_one(folder: Path, how: str) -> list[int]:
    """One of two fails: statuses of the others, which have to end by themselves.

    `how` is "SIGKILL" or "hang" (of its Python thread alone, while its heartbeat
    lives). Four processes, stopped ones and the coordinator are row R9 of
    `experiments.chaos`, with their seconds. Here the heartbeat's and the watchdog's
    patience are for a machine that may stand still for many seconds: shorter ones
    ended runs nobody had hurt.
    """
    words = ["steps=100000", "save_every=100000", "slow=0.02"]
    if how == "hang":
        words += ["limit=30", "hang=1:12"]
    processes = start(2, folder, *words)
    await_steps(folder, 8, processes)
    victim = processes[1]
    if how == "hang":
        await_steps(folder, 10, processes)
    else:
        victim.send_signal(signal.SIGKILL)
    others = [p for p in processes if p is not victim or how == "hang"]
    try:
        return ended(others, 120)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.mark.parametrize("how", ["SIGKILL", "hang"])
def test_when_one_of_several_fails_all_end(tmp_path, how):
    statuses = kill_one(tmp_path, how)
    assert all(status != 0 for status in statuses), told(tmp_path)
    if how == "hang":
        assert 75 in statuses and "batch 12" in told(tmp_path)
    else:
        assert "another process of this run is gone" in told(tmp_path)


def test_nothing_is_compiled_after_the_second_step(tmp_path):
    assert not trained(mini_run(tmp_path, steps=12, save_every=100, log_every=1))


def test_a_profile_and_tensorboard_on_request(tmp_path):
    from wallwm_jax.train.loop import Observe

    wish = Observe(tensorboard=True, profile_from=2, profile_steps=2)
    train(mini_run(tmp_path, observe=wish))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
