"""The training loop: one readable page.

    restore or initialise -> for each batch: step, log, save -> wait for the writer

Order matters and is the reason why a killed run continues with equal losses:
the loader's position is saved together with the state it leads to, and log
lines past the restored step are dropped before new ones are written.

Several processes run this same page. They read different rows of one global
batch, agree before every step whether to stop, and save together; the first of
them writes the logs.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from wallwm_jax.input.batch import Batch, BatchDims
from wallwm_jax.input.loader import Loader
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.parallel.compiler_options import compiled, options_for
from wallwm_jax.parallel.mesh import activate, batch_sharding, replicated
from wallwm_jax.parallel.processes import Vote
from wallwm_jax.train.agreement import refuse_indivisible
from wallwm_jax.train.checkpoint import Checkpoints
from wallwm_jax.train.goodput import Goodput, GoodputLog
from wallwm_jax.train.metrics import MetricsLog, Recorder
from wallwm_jax.train.objectives import ObjectiveConfig
from wallwm_jax.train.pretrained import Sources
from wallwm_jax.train.signals import Stopped, StopSignal
from wallwm_jax.train.stages import Stage
from wallwm_jax.train.state import TrainState, init_state, parameter_counts, state_shapes
from wallwm_jax.train.step import train_step
from wallwm_jax.train.tracing import Tracing
from wallwm_jax.train.utilisation import peak_flops, step_flops
from wallwm_jax.train.watchdog import Watchdog
from wallwm_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a run puts up with.

    Attributes:
      nonfinite: updates in a row that may be skipped because they are not finite.
      step_s: longest wait for a batch, a step or a checkpoint, in seconds.
      first_step_s: the same where something is compiled or restored.
      heartbeat_s: see `parallel.processes`.
    """

    nonfinite: int = 10
    step_s: int | float = 600
    first_step_s: int | float = 3600
    heartbeat_s: int = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observe:
    """What is recorded beside metrics.jsonl.

    Attributes:
      tensorboard: also write TensorBoard scalars, to `tensorboard/`.
      profile_from, profile_steps: steps that are traced for xprof, to `profile/`;
        0 steps trace nothing.
    """

    tensorboard: bool = False
    profile_from: int = 10
    profile_steps: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a training run is made of.

    Attributes:
      folder: metrics.jsonl and other logs are written here, on a disk.
      checkpoints: steps are written here; gs:// too.
      codec: the fitted codec, None where it is inherited.
      sources: folders that parameters come from.
      inherited: parameters of the stage this one starts from, or None.
      meta: stored with every checkpoint; meta["model"] identifies the model.
      steps, save_every, log_every: counted in updates.
      accumulate: micro-batches per update.
      async_collectives: compiles with `parallel.compiler_options`, on TPU.
      began: when work on this run began, by `time.monotonic`; None is now.
    """

    folder: Path
    checkpoints: epath.Path
    name: str
    stage: Stage
    denoiser: Denoiser
    objective: ObjectiveConfig
    optimizer: optax.GradientTransformation
    schedule: Callable
    loader: Loader
    dims: BatchDims
    mesh: Mesh
    codec: Params | None
    sources: Sources
    inherited: Params | None
    meta: dict[str, Any]
    seed: int
    steps: int
    ema: float
    save_every: int
    log_every: int
    accumulate: int = 1
    async_collectives: bool = True
    limits: Limits = Limits()
    observe: Observe = Observe()
    began: float | None = None


def train(run: Run) -> dict[str, Any]:
    """Trains to the last step, from wherever the run was left.

    Returns:
      {"params": {part: n}, "steps": n, "seconds": this call's, "resumed_from": step}.

    Raises:
      CheckpointError: the folder holds another model's checkpoints.
      NonFiniteError: too many updates in a row were not finite; the state from
        before them stays.
      Stopped: SIGTERM came; what was done is saved, and the exit status is 0.
    """
    started = time.monotonic()
    goodput = Goodput(run.began)
    run.folder.mkdir(parents=True, exist_ok=True)
    elsewhere = tuple(slot for slot in run.sources if slot != "video")
    with (
        Watchdog(run.folder, process=jax.process_index()) as watchdog,
        StopSignal() as stop,
        activate(run.mesh),
        Checkpoints(run.checkpoints, every=run.save_every, leave_out=elsewhere) as checkpoints,
    ):
        watchdog.beat("the beginning of the run", run.limits.first_step_s)
        # Alone, a process that has taken no step may go at once; fellows would miss it.
        stop.leave_at_once(jax.process_count() == 1)
        shapes = shapes_of(run)
        refuse_indivisible(shapes)
        counts = parameter_counts(shapes.params | shapes.frozen)
        goodput.enter("restore")
        restored = checkpoints.restore(shapes, run.meta)
        if restored is None:
            goodput.enter("init")
            state = _begin(run, shapes)
        else:
            state = restored.state
            state = state.replace(frozen=state.frozen | _from_folders(run))
            run.loader.set_state(restored.data)
        goodput.enter("init")
        first = int(state.step)
        writes = jax.process_index() == 0
        with MetricsLog(run.folder / "metrics.jsonl", keep_below=first, writes=writes) as log:
            tools = _Tools(run, checkpoints, log, goodput, watchdog, stop)
            _iterate(tools, state, _Steps(run, shapes), first)
    return {
        "params": counts,
        "steps": run.steps,
        "resumed_from": first,
        "seconds": time.monotonic() - started,
    }


def shapes_of(run: Run) -> TrainState:
    """Shape, dtype and sharding of everything in the run's state."""
    return state_shapes(
        run.denoiser, run.optimizer, run.stage.trains, run.codec, run.dims, run.mesh
    )


def initial_state(run: Run) -> tuple[TrainState, TrainState]:
    """A fresh state with inherited parts in place, and its shardings."""
    shapes = shapes_of(run)
    return _begin(run, shapes), jax.tree.map(lambda x: x.sharding, shapes)


def _begin(run: Run, shapes: TrainState) -> TrainState:
    """A fresh state in the places of its shapes."""
    earlier = {} if run.inherited is None else run.inherited
    fitted = {} if run.codec is None else {"codec": run.codec}
    given = fitted | {name: earlier[name] for name in shapes.frozen if name in earlier}
    wan = None
    if "video" in run.sources and run.stage.starts_from is None:
        wan = run.sources["video"].load(run.mesh)
    return init_state(
        run.denoiser,
        run.optimizer,
        shapes,
        run.dims,
        jax.random.key(run.seed),
        given=given | _from_folders(run),
        wan=wan,
    )


def _from_folders(run: Run) -> Params:
    """Frozen parts that no checkpoint holds."""
    return {"text": run.sources["text"].load(run.mesh)} if "text" in run.sources else {}


class _Steps:
    """The step, compiled ahead for every shape of batch that comes.

    A compiled program refuses other shapes and places, so nothing is ever
    compiled again unseen.
    """

    def __init__(self, run: Run, shapes: TrainState):
        parts = (run.denoiser, run.stage, run.objective, run.optimizer, run.schedule)
        places = jax.tree.map(lambda x: x.sharding, shapes)
        self._jitted = jax.jit(
            partial(train_step, *parts, run.ema, run.seed, accumulate=run.accumulate),
            in_shardings=(places, batch_sharding(run.mesh)),
            out_shardings=(places, replicated(run.mesh)),
            donate_argnums=0,
        )
        kind = run.mesh.devices.flat[0].device_kind
        self._options = options_for(kind) if run.async_collectives else {}
        self._compiled: dict[tuple, Callable] = {}

    def knows(self, batch: Batch) -> bool:
        """Whether batches of this shape have come before."""
        return _shape(batch) in self._compiled

    def compile(self, state: TrainState, batch: Batch) -> None:
        """Compiles for the shape of this batch."""
        lowered = self._jitted.lower(state, batch)
        self._compiled[_shape(batch)] = compiled(lowered, self._options)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        """Dispatches one step."""
        return self._compiled[_shape(batch)](state, batch)


def _shape(batch: Batch) -> tuple:
    return tuple(x.shape for x in jax.tree.leaves(batch))


def _flops(run: Run, batch: Batch) -> float | None:
    """Operations of a step; None where the devices' peak is not known, which they go with."""
    if _peak(run) is None:
        return None
    towers, trains = run.denoiser, run.stage.trains
    return step_flops(
        towers.video_config,
        towers.action_config,
        trains,
        towers.token_grid(batch.latents.shape),
        batch,
        draws=1 if "video" in trains else run.objective.action_draws,
    )


def _peak(run: Run) -> float | None:
    return peak_flops(run.mesh.devices.flat[0].device_kind, run.mesh.size)


@dataclasses.dataclass(frozen=True)
class _Tools:
    """What the loop works with."""

    run: Run
    checkpoints: Checkpoints
    log: MetricsLog
    goodput: Goodput
    watchdog: Watchdog
    stop: StopSignal

    def now(self, part: str, what: str, *, slow: bool = False) -> None:
        """The loop begins to wait for something: where time goes, and how long it may take."""
        limits = self.run.limits
        self.goodput.enter(part)
        self.watchdog.beat(what, limits.first_step_s if slow else limits.step_s)


def _iterate(tools: _Tools, state: TrainState, steps: _Steps, first: int) -> None:
    """Steps from the state's own step to the run's last one.

    Raises:
      Stopped: SIGTERM came to this process or a fellow; the state is saved.
    """
    run, vote = tools.run, Vote(tools.run.mesh)
    sharding = batch_sharding(run.mesh)
    leave: Any = False
    with _recording(tools, first) as (recorder, spent, tracing):
        for number in range(first, run.steps):
            again = number < tools.log.logged
            tools.now("lost" if again else "data", f"batch {number}")
            recorder.begin()
            began = time.monotonic()
            batch = global_batch(next(run.loader), sharding)
            waited = time.monotonic() - began
            if not steps.knows(batch):
                tools.now("compile", f"the compilation of step {number}", slow=True)
                steps.compile(state, batch)
                recorder.begin()
            tools.now("lost" if again else "step", f"step {number}", slow=number == first)
            tools.stop.leave_at_once(False)
            tracing.at(number)
            state, metrics = steps(state, batch)
            recorder.add(metrics, waited, _flops(run, batch))
            # The votes of the step before have arrived with its figures.
            leaving, leave = bool(leave), vote.cast(tools.stop.asked)
            leaving |= vote.alone and leave
            due = leaving or (number + 1) % run.save_every == 0 or number + 1 == run.steps
            if due or recorder.pending >= run.log_every:
                recorder.hand_on(number + 1)
                spent(number + 1)
            if due:
                # The iterator is read after the step that used its batch, so a
                # restored pair (state, position) repeats or skips nothing.
                tools.now("save", f"the checkpoint of step {number + 1}", slow=True)
                position, last = run.loader.get_state(), leaving or number + 1 == run.steps
                tools.checkpoints.save(state, position, run.meta, force=last)
            if leaving and number + 1 < run.steps:
                tools.checkpoints.settle()
                raise Stopped(number + 1)
        tools.now("save", "the last checkpoint", slow=True)
        tools.checkpoints.settle()


@contextlib.contextmanager
def _recording(
    tools: _Tools, first: int
) -> Iterator[tuple[Recorder, Callable[[int], None], Tracing]]:
    """The recorder, the goodput log and the profiler, closed whatever happens."""
    run, chief = tools.run, jax.process_index() == 0
    bar = tqdm(
        total=run.steps,
        initial=first,
        desc=run.name,
        unit="step",
        mininterval=1.0,
        smoothing=0.05,
        disable=not chief,
    )
    spent = GoodputLog(run.folder / "goodput.jsonl", tools.goodput) if chief else None
    wish = run.observe
    tracing = Tracing(run.folder / "profile", max(wish.profile_from, first), wish.profile_steps)
    with contextlib.ExitStack() as stack:
        stack.callback(run.loader.close)
        stack.callback(bar.close)
        stack.callback(tracing.close)
        writer = None
        if run.observe.tensorboard and chief:
            # Imports torch where that is installed: seconds that other runs need not wait.
            from tensorboardX import SummaryWriter

            writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=first)
            stack.callback(writer.close)
        reached = [first]

        def note(step: int, last: bool = False) -> None:
            reached[0] = step
            if spent is not None:
                spent.write(step, last=last)

        recorder = Recorder(
            tools.log, bar, limit=run.limits.nonfinite, writer=writer, peak=_peak(run)
        )
        stack.callback(lambda: note(reached[0], last=True))
        try:
            yield recorder, note, tracing
        except Stopped as stopped:
            words = (
                f"stopped by SIGTERM after step {stopped.step}: saved; the same command continues"
            )
            if chief:
                print(words, file=sys.stderr, flush=True)
            raise


def global_batch(batch: Batch, sharding: jax.sharding.NamedSharding) -> Batch:
    """This process's rows of a batch as global arrays over the mesh."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )
