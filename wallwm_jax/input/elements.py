"""Grain underneath the loader: batches read ahead by a thread or by processes.

Workers are processes of our own, each with a Grain iterator inside, not Grain's
`mp_prefetch`. A worker of that one which is killed or stopped in the middle of
a message leaves a reader in this process that waits for ever: the message
cannot end, and the pipe is not at its end either, because this process keeps
the writing end too. (The same holds for the locks they share, and their
semaphores outlive a killed run.) Here a worker and this process share one
connection and nothing else: each holds one end, so the end of either is seen
by the other, in the middle of a message too. No lock, no semaphore, no shared
memory. However a worker is lost, the run ends with one line and nothing is left.
"""

import dataclasses
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import connection, util

import grain
import numpy as np

from wallwm_jax.errors import UserError
from wallwm_jax.input.source import BatchSource, PackedSource, stack

WORKER_NAME = "loader-worker"
"""How the names of worker processes begin."""

START_S = 120
"""Seconds that workers have at least for their first batches: they import everything first."""

RELEASE_S = 5
"""Seconds that the system has to take a killed worker away."""


class LoaderError(UserError):
    """Worker processes of the loader died, hang, or failed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefetch:
    """How far the loader works ahead; none of it changes a batch (see `make_loader`)."""

    workers: int
    batches: int
    timeout_s: int | float


@dataclasses.dataclass(frozen=True)
class _Share:
    """What one worker reads: elements `first`, `first + step`, ... of a source."""

    source: PackedSource | BatchSource
    rows: int | None
    ahead: int
    first: int = 0
    step: int = 1

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """The elements, read ahead by one thread."""
        dataset = grain.MapDataset.source(self.source)
        if self.rows is not None:
            dataset = dataset.batch(self.rows, batch_fn=stack)
        # A batch is the unit that is dealt to workers in turn: their number
        # cannot change what is in it.
        if self.step > 1:
            dataset = dataset[self.first :: self.step]
        return iter(
            dataset.to_iter_dataset(
                grain.ReadOptions(num_threads=1, prefetch_buffer_size=self.ahead)
            )
        )


class Elements:
    """An iterator of batch dicts with a watchdog on worker processes.

    Attributes:
      timeout_s: longest wait for workers; None without workers.
    """

    def __init__(self, source: PackedSource | BatchSource, rows: int | None, prefetch: Prefetch):
        """Starts at element 0 of `source`; `rows` elements make a batch (None: one does)."""
        count = prefetch.workers
        self.timeout_s = prefetch.timeout_s if count else None
        self._taken, self._closed = 0, False
        self._workers = [
            _Worker(_Share(source, rows, prefetch.batches, i, count), i) for i in range(count)
        ]
        self._iterator = None if count else _Share(source, rows, prefetch.batches).read()
        # Also at exit, before Python joins its child processes: it would wait for a stopped
        # one for ever. And for a loader that was dropped and not closed.
        self._end = util.Finalize(self, _end_all, args=(self._workers,), exitpriority=1)

    def next(self) -> dict[str, np.ndarray]:
        """The next element.

        Raises:
          LoaderError: a worker died, or the one in turn did not answer in time.
          UserError: what reading the element raised, wherever it was read.
        """
        if self._closed:
            raise LoaderError("the loader's workers were ended; start the run again")
        if self._iterator is not None:
            return next(self._iterator)
        try:
            return self._from_workers()
        except UserError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise LoaderError(_told(error)) from error

    def _from_workers(self) -> dict[str, np.ndarray]:
        count = len(self._workers)
        limit = max(self.timeout_s, START_S) if self._taken < count else self.timeout_s
        try:
            element = self._workers[self._taken % count].next(limit)
        except queue.Empty:
            raise LoaderError(
                f"no batch from the loader's workers for {limit:g} s: {_states(self._workers)}; "
                "start the run again, with more seconds to wait or with 0 workers to find out why"
            ) from None
        self._taken += 1
        return element

    def close(self) -> None:
        """Ends worker processes and threads, dead, stopped or well, within `RELEASE_S`."""
        if self._closed:
            return
        self._closed = True
        self._end()
        deadline = time.monotonic() + RELEASE_S
        for worker in self._workers:
            worker.wait(deadline)
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


class _Worker(threading.Thread):
    """One worker process, and the thread that alone talks to it.

    Whatever may wait for ever on the process happens in this thread, so that
    somebody else can stop waiting: starting it, handing it its share, which may
    be larger than a pipe holds, and reading. A daemon: it must not keep a run
    from ending.
    """

    def __init__(self, share: _Share, index: int):
        super().__init__(name=f"loader-reader-{index}", daemon=True)
        context = multiprocessing.get_context("spawn")
        self._share, self._ended = share, False
        self._ours, self._theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(self._theirs,), daemon=True, name=f"{WORKER_NAME}-{index}"
        )
        self._asked, self._answers = queue.SimpleQueue(), queue.SimpleQueue()
        for _ in range(share.ahead):
            self._asked.put(True)
        self.start()

    def next(self, timeout_s: int | float) -> dict[str, np.ndarray]:
        """The worker's next element; queue.Empty when it does not come in time."""
        self._asked.put(True)
        element, error = self._answers.get(timeout=timeout_s)
        if error is not None:
            raise error
        return element

    def end(self) -> None:
        """Kills the process, which ends the thread too. Waits for nothing.

        Nothing milder ends a stopped process, and a worker only reads: there is
        nothing that it could leave half done.
        """
        self._ended = True
        if self.process.pid is not None:
            self.process.kill()
        self._asked.put(False)

    def wait(self, deadline: float) -> None:
        """Waits until thread and process are gone, no longer than to a `time.monotonic()`."""
        self.join(max(0.0, deadline - time.monotonic()))
        if self.process.pid is not None:
            self.process.join(max(0.0, deadline - time.monotonic()))

    def run(self) -> None:
        """Reads ahead as far as was asked for, until ended."""
        try:
            self._start_process()
            self._talk()
        except Exception as error:
            self._answers.put((None, error))
        finally:
            self._ours.close()

    def _start_process(self) -> None:
        try:
            self.process.start()
        finally:
            # While this process holds their end as well, a lost worker's message has no end.
            self._theirs.close()
        if self._ended:  # before there was anything to kill
            self.process.kill()

    def _talk(self) -> None:
        try:
            self._ours.send(self._share)
            self._share = None
            # One more than was asked for is under way, so that one side packs while the other
            # unpacks. Asking bounds what is read ahead: a pipe may hold many small batches.
            self._ours.send(True)
            while self._asked.get():
                self._ours.send(True)
                self._answers.put(self._ours.recv())
        except (EOFError, OSError):
            self.process.join(RELEASE_S)
            raise LoaderError(_ended(self.process.exitcode)) from None


def _end_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()


def _work(pipe: connection.Connection) -> None:
    """A worker's life: sends what it reads, as it is asked for, and what goes wrong."""
    # A scheduler signals the whole group; the run still needs batches until it has saved.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        elements = pipe.recv().read()
        while pipe.recv():
            pipe.send((next(elements), None))
    except Exception as error:
        _send_error(pipe, error)
        # Stays until it is killed: nobody could ask a process that is gone for its reason.
        threading.Event().wait()


def _send_error(pipe: connection.Connection, error: Exception) -> None:
    try:
        pipe.send((None, error))
    except OSError:  # nobody is there to hear it
        os._exit(1)
    except Exception:  # no pickle can be made of it
        pipe.send((None, LoaderError(_told(error))))


def _end_with_parent() -> None:
    """Ends this worker when the training process is gone, however it went."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _states(workers: list[_Worker]) -> str:
    """What the workers are doing, as far as the system tells."""
    told = {"T": "is stopped", "t": "is traced", "D": "waits for a disk", "Z": "is dead"}
    found = []
    for worker in workers:
        try:
            with open(f"/proc/{worker.process.pid}/stat") as file:
                state = file.read().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state in told:
            found.append(f"process {worker.process.pid} {told[state]}")
    return ", ".join(found) or "one hangs"


def _ended(code: int | None) -> str:
    """One line for a worker that is gone; `code` is its exit code, None when it is not known."""
    why = ": killed, out of memory?" if code == -9 else ""
    return (
        f"a worker process of the loader ended (exit code {code}{why}); start the run again, "
        "with fewer workers if memory is short"
    )


def _told(error: Exception) -> str:
    """One line for an error that is not made for users."""
    text = str(error).splitlines()[0] if str(error) else ""
    return (
        f"the loader failed ({type(error).__name__}: {text}); run with 0 workers to find out where"
    )
