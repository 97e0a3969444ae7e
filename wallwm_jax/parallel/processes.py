"""Several processes that train one model: starting them, and agreeing among them.

A process learns of its fellows from three settings, given as flags or in the
environment (WALLWM_PROCESSES, WALLWM_PROCESS_ID, WALLWM_COORDINATOR). Where a
scheduler starts the processes (TPU pods, SLURM, MPI, Kubernetes), "auto" leaves
all of it to `jax.distributed`. On one machine `launch` starts them all.
"""

import atexit
import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from wallwm_jax.errors import UserError

AUTO = "auto"
"""Number of processes that a scheduler knows."""


STATUS = re.compile(r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
"""How errors of the runtime begin."""


class ProcessError(UserError):
    """Settings of processes that do not fit each other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among its fellows.

    Attributes:
      count: processes in all; "auto" asks the scheduler.
      index: this one's number from 0; None when it is not one of several yet.
      coordinator: HOST:PORT of process 0.
      heartbeat_s: seconds after which a process that says nothing counts as dead
        and the others end, too.
      devices: CPU devices that this process simulates; 0 leaves it as it is.
    """

    count: int | str = 1
    index: int | None = None
    coordinator: str = ""
    heartbeat_s: int = 100
    devices: int = 0

    @classmethod
    def of(cls, given: dict[str, str | None], environment: dict[str, str], **more: int):
        """Reads flags, and the environment for those that were not given.

        Args:
          given: "processes", "process_id", "coordinator", as words or None.
          environment: as `os.environ`.
          more: the other attributes.

        Raises:
          ProcessError: no numbers, or numbers that do not fit each other.
        """
        names = ("processes", "process_id", "coordinator")
        words = {n: given.get(n) or environment.get(f"WALLWM_{n.upper()}", "") for n in names}
        count: int | str = words["processes"] or "1"
        index = words["process_id"] or None
        for name in ("processes", "process_id"):
            if words[name] and not words[name].isdigit() and words[name] != AUTO:
                raise ProcessError(f"--{name}={words[name]} is not a number; count from 0")
        count = AUTO if count == AUTO else int(count)
        found = cls(
            count=count,
            index=None if index is None else int(index),
            coordinator=words["coordinator"],
            **more,
        )
        found.check()
        return found

    def check(self) -> None:
        """Raises ProcessError when the settings do not fit each other."""
        if self.count == AUTO:
            if self.index is not None or self.coordinator:
                raise ProcessError(
                    "--processes=auto asks the scheduler; leave --process_id and --coordinator out"
                )
            return
        if self.count < 1:
            raise ProcessError(f"--processes={self.count}; give 1 or more")
        if (self.index is None) != (not self.coordinator):
            raise ProcessError(
                "--process_id and --coordinator=HOST:PORT belong together; give both, or neither to "
                "start all processes on this machine"
            )
        if self.index is not None and not 0 <= self.index < self.count:
            raise ProcessError(f"--process_id={self.index} of {self.count} processes; count from 0")

    @property
    def launches(self) -> bool:
        """Whether this process is to start the others and do nothing else."""
        return self.count != AUTO and self.count > 1 and self.index is None


def join(processes: Processes) -> None:
    """Makes this process one of several; call it before JAX looks for devices.

    From then on a fellow that dies ends this process as well (heartbeats of
    `jax.distributed`); nobody trains on without it.
    """
    if processes.devices:
        jax.config.update("jax_num_cpu_devices", processes.devices)
    if processes.count == 1:
        return
    # SIGTERM is ours (`train.signals`): a vote of all processes before every step.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    timeouts = dict(
        heartbeat_timeout_seconds=processes.heartbeat_s,
        shutdown_timeout_seconds=processes.heartbeat_s,
    )
    if processes.count == AUTO:
        jax.distributed.initialize(**timeouts)
        return
    # Reachable from other machines only if they are to take part.
    local = processes.coordinator.startswith(("127.0.0.1:", "localhost:"))
    jax.distributed.initialize(
        coordinator_address=processes.coordinator,
        coordinator_bind_address=processes.coordinator if local else None,
        num_processes=processes.count,
        process_id=processes.index,
        **timeouts,
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A failure inside ends this process at once, and so its fellows.

    `jax.distributed` would let it wait at the exit for the others, which wait in
    their next step for this one.

    Raises:
      ProcessError: in place of the error that JAX raises when a fellow is gone.
    """
    try:
        yield
    except BaseException as error:
        fine = isinstance(error, SystemExit) and not error.code
        if jax.process_count() > 1 and not fine:
            atexit.register(_end_at_once)  # the last one registered runs first
            if _is_about_fellows(error):
                raise ProcessError(
                    f"another process of this run is gone, or no longer answers ({_short(error)}); start all of "
                    "them again, the run continues from its last checkpoint"
                ) from error
        raise


def _is_about_fellows(error: BaseException) -> bool:
    """Whether the runtime says that a collective lost somebody."""
    text = str(error)
    # What is noticed while a step is dispatched comes as a ValueError, after a status word.
    dispatched = isinstance(error, ValueError) and STATUS.match(text)
    if not (dispatched or isinstance(error, jax.errors.JaxRuntimeError)):
        return False
    return any(word in text for word in ("Gloo", "NCCL", "coordination", "heartbeat", "peer"))


def _short(error: Exception) -> str:
    text = str(error).splitlines()[0]
    return text if len(text) <= 200 else f"{text[:200]}..."


def _end_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def launch(processes: Processes, command: Sequence[str], grace_s: int | float = 15) -> int:
    """Runs `command` as all processes of this machine, and waits for them.

    SIGTERM is handed on. When one ends with an error, the others have a heartbeat
    and `grace_s` to notice; then they are killed, stopped ones included.

    Args:
      processes: how many; the rest is put into their environment.
      command: program and arguments, the same for all.
      grace_s: see above.

    Returns:
      0, or the exit status of the process that failed first.
    """
    address = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            list(command),
            env=os.environ
            | {
                "WALLWM_PROCESSES": str(processes.count),
                "WALLWM_PROCESS_ID": str(index),
                "WALLWM_COORDINATOR": address,
            },
        )
        for index in range(int(processes.count))
    ]

    def hand_on(number: int, frame: object) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        return await_all(started, processes.heartbeat_s + grace_s)
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in started:
            if process.poll() is None:
                process.kill()


def await_all(started: Sequence[subprocess.Popen], patience_s: int | float) -> int:
    """Waits for processes; from the first failure on, at most `patience_s`.

    Returns:
      0, or the status of the first that failed, as a shell gives it.
    """
    failed, deadline = 0, float("inf")
    while True:
        statuses = [process.poll() for process in started]
        if not failed and (bad := [status for status in statuses if status]):
            failed, deadline = bad[0], time.monotonic() + patience_s
        if None not in statuses:
            return failed if failed >= 0 else 128 - failed
        if time.monotonic() > deadline:
            for process in started:
                process.kill()
        time.sleep(0.05)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def this_command() -> list[str]:
    """The command line of this process, to start it again."""
    return [sys.executable, *sys.orig_argv[1:]]


class Vote:
    """Whether any process wants something: one answer, the same on all of them.

    A tiny sum over all devices; with one process nothing is computed.
    """

    def __init__(self, mesh: Mesh):
        """Keeps the mesh that the steps run on."""
        self._alone = len({device.process_index for device in mesh.devices.flat}) == 1
        self._everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._here = len(self._everywhere.addressable_devices)
        self._sum: Callable[[Array], Array] = jax.jit(
            lambda votes: votes.sum(), out_shardings=NamedSharding(mesh, PartitionSpec())
        )

    @property
    def alone(self) -> bool:
        """Whether this process is the only one."""
        return self._alone

    def cast(self, wants: bool) -> "Array | bool":
        """Hands in this process's vote; `bool()` of the answer waits for the others'.

        Every process must cast as many votes as the others.
        """
        if self._alone:
            return wants
        mine = np.full(self._here, wants, np.int32)
        return self._sum(jax.make_array_from_process_local_data(self._everywhere, mine))
