"""What happens to loaders whose workers are lost: one scenario a run, its findings as JSON.

Run by `test_workers`, in a process group of its own, so that a scenario that
hangs can be ended as a whole. A run ends itself before that, with its stacks.
"""

import array
import contextlib
import faulthandler
import fcntl
import json
import os
import pathlib
import signal
import sys
import termios
import threading
import time
from multiprocessing import active_children

import numpy as np
from synthetic_events import loader_settings

from wallwm_jax.errors import UserError
from wallwm_jax.input import elements
from wallwm_jax.input.elements import Elements, Prefetch
from wallwm_jax.input.latents import open_latents
from wallwm_jax.input.loader import make_loader

MORE_THAN_A_PIPE_HOLDS = 8_000_000
"""Bytes. Pipes and sockets take 64 to 416 KiB, so a worker stops in the middle of writing this."""


class Large:
    """Batches that no pipe holds; `ballast` does the same to the source itself."""

    def __init__(self, ballast: int = 0):
        self._ballast = np.zeros(ballast, np.uint8)

    def __len__(self) -> int:
        return sys.maxsize // 4

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return {"x": np.full(MORE_THAN_A_PIPE_HOLDS, i % 251, np.uint8)}


class Unsendable(Exception):
    """An error that no pickle can be made of."""

    def __reduce__(self):
        raise TypeError("not to be sent")


class Failing(Large):
    """The worker fails as it is told, at the second element."""

    def __init__(self, how: str):
        super().__init__()
        self._how = how
        if how == "source":
            self._lock = threading.Lock()  # which no other process can have

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if i and self._how == "error":
            raise Unsendable("the disk\nis full")
        if i == 2 and self._how == "early":  # asked for before it is wanted
            raise UserError("element 2 is bad")
        if i and self._how == "exit":
            os._exit(3)
        return {"x": np.full(3, i)}


def start(source, timeout_s: int = 2) -> Elements:
    return Elements(source, None, Prefetch(workers=1, batches=1, timeout_s=timeout_s))


def together(calls: list) -> list:
    """Results of functions called at once: starting a worker takes seconds."""
    results = [None] * len(calls)

    def call(i: int) -> None:
        results[i] = calls[i]()

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(calls))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return results


def lost(loader) -> dict:
    """How long a loader takes to say that its worker is lost, and what it says."""
    begin = time.monotonic()
    try:
        while time.monotonic() < begin + 100:
            loader.next() if isinstance(loader, Elements) else next(loader)
    except UserError as error:
        return {"seconds": time.monotonic() - begin, "line": str(error)}
    return {"seconds": 100, "line": ""}


def seconds(call) -> float:
    begin = time.monotonic()
    call()
    return time.monotonic() - begin


def shared_memory() -> list[str]:
    """What this process and its children have in shared memory, by name."""
    found = []
    for pid in (os.getpid(), *(child.pid for child in active_children())):
        found += pathlib.Path(f"/proc/{pid}/maps").read_text().split()
        for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed by now
                found.append(os.readlink(link))
    return sorted({name for name in found if name.startswith("/dev/shm/")})


def wait_for(condition) -> None:
    while not condition():
        time.sleep(0.02)


def in_the_middle_of_a_message(made: Elements) -> bool:
    """Whether the worker has written what is not read yet; of a `Large` batch it is a part."""
    worker, waiting = made._workers[0], array.array("i", [0])
    if not worker._answers.qsize():  # the message before this one is not read yet
        return False
    fcntl.ioctl(worker._ours.fileno(), termios.FIONREAD, waiting)
    return waiting[0] > 0


def rounds(folder: str, count: str) -> dict:
    """Loaders lose their workers, all at once, in each of two ways."""
    latents = open_latents(folder)
    settings = loader_settings(latents)
    report = {}
    for how in (signal.SIGKILL, signal.SIGSTOP):
        loaders = [
            make_loader(latents, seed=0, workers=1, buffered=1, timeout_s=3, **settings)
            for _ in range(int(count))
        ]
        together([loader.__next__ for loader in loaders])
        workers, held = len(active_children()), shared_memory()
        for child in active_children():
            os.kill(child.pid, how)
        told = [lost(loader) for loader in loaders]
        report[how.name] = {
            "workers": workers, "held": held, "rounds": told, "left": len(active_children())
        }  # fmt: skip
    return report


def half_messages() -> dict:
    """Workers are lost in the middle of a message; then their loaders go on, or are closed."""
    cases = [(how, then) for how in ("SIGKILL", "SIGSTOP") for then in ("next", "close")]
    cases += [("SIGSTOP", "drop"), ("SIGSTOP", "exit")]
    made = [start(Large()) for _ in cases]
    together([one.next for one in made])
    report = {}
    for how, then in cases:
        one = made.pop(0)
        wait_for(lambda one=one: in_the_middle_of_a_message(one))
        worker = one._workers[0].process
        os.kill(worker.pid, getattr(signal, how))
        if then == "next":
            report[f"{how} {then}"] = lost(one)
        elif then == "close":
            report[f"{how} {then}"] = {"seconds": seconds(one.close), "line": ""}
        elif then == "drop":
            del one
            report[f"{how} {then}"] = {"seconds": seconds(lambda: worker.join(20)), "line": ""}
        else:
            kept.append(one)  # closed by nobody, until Python ends
    report["left"] = len(active_children())
    return report


def before_it_read_its_share() -> dict:
    """Workers are lost while they are handed a source that no pipe holds."""
    elements.START_S = 2
    report = {}
    for how in ("SIGKILL", "SIGSTOP"):
        made = start(Large(ballast=MORE_THAN_A_PIPE_HOLDS))
        wait_for(active_children)
        os.kill(active_children()[0].pid, getattr(signal, how))
        report[how] = lost(made)
    report["left"] = len(active_children())
    return report


def failures() -> dict:
    """Workers fail in ways that cannot be told as they are, or before anybody asks."""
    kinds = ("source", "error", "exit")
    early = start(Failing("early"))
    told = together([lambda kind=kind: lost(start(Failing(kind), timeout_s=60)) for kind in kinds])
    report = dict(zip(kinds, told, strict=True))
    early.next()
    wait_for(lambda: in_the_middle_of_a_message(early))
    early._workers[0].process.join(4)  # time to go, and to take its reason along
    return report | {"early": lost(early), "left": len(active_children())}


def one_event(folder: str, track: str, truncated: str = "") -> dict:
    """A worker meets an event that cannot be read: no such track, or a shard cut meanwhile."""
    latents = open_latents(folder)
    settings = loader_settings(latents)
    latents = open_latents(folder)  # has no shard open yet
    if truncated:
        path = pathlib.Path(folder) / truncated
        path.write_bytes(path.read_bytes()[:-4000])
    with make_loader(latents, seed=0, workers=1, track=track, **settings) as loader:
        begin = time.monotonic()
        try:
            [next(loader) for _ in range(20)]
        except UserError as error:
            told = {"kind": type(error).__name__, "line": str(error)}
    return told | {"seconds": time.monotonic() - begin, "left": len(active_children())}


kept: list[Elements] = []

if __name__ == "__main__":
    faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
    known = (rounds, half_messages, before_it_read_its_share, failures, one_event)
    scenario = {function.__name__: function for function in known}[sys.argv[1]]
    print(json.dumps(scenario(*sys.argv[3:])), flush=True)
