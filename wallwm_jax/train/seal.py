"""Seals: which files a checkpoint step is made of, so that a damaged one is never believed.

Orbax restores most flipped bits without a word and takes an empty or half-copied
folder for the newest step. So each step carries a page that lists every other
file of it with size and CRC-32C, and the SHA-256 of the page itself:

    <step>/wallwm_seal.json    {"files": {path: [bytes, crc32c]}, "page_sha256": ...}

It is written into Orbax's unfinished folder, after the last file and before the
rename that commits the step (object stores, which cannot rename: before the
commit file). Hence no seal means no step: nothing that was committed lacks one,
whatever instant a run is killed at, and whoever copies a step copies its seal.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import google_crc32c
from etils import epath
from orbax import checkpoint as ocp

from wallwm_jax.errors import UserError
from wallwm_jax.events.manifest import sealed, unsealed

SEAL = "wallwm_seal.json"
FORMAT = {"format": "wallwm-checkpoint", "version": 1}
CHUNK = 1 << 24
"""Bytes of a file that are in memory at once."""

COMMIT_FILE = ocp.path.atomicity.COMMIT_SUCCESS_FILE

Entry = list[int]
"""[bytes, crc32c] of a file."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another model; one line."""


class DamagedError(CheckpointError):
    """A step is not what was saved; the message names its files."""


def folder_of(folder: epath.Path | Path | str) -> epath.Path:
    """A folder, on this machine (made absolute) or in a bucket (gs://...).

    Raises:
      CheckpointError: another kind of store, or what reads buckets is not installed.
    """
    if "://" not in str(folder):
        return epath.Path(folder).absolute()
    if not str(folder).startswith("gs://"):
        raise CheckpointError(f"checkpoints cannot lie in {folder}; name a disk or gs://bucket/...")
    if find_spec("gcsfs") is None:
        raise CheckpointError(
            f"{folder} is read with gcsfs, which is not installed: pip install gcsfs"
        )
    return epath.Path(folder)


def steps_in(folder: epath.Path) -> list[int]:
    """Numbers of the folders that look like steps, whole or not, in order.

    Object stores show a step while it is written; there only committed ones count, and
    a folder is gone with the last thing in it, be it between two looks.
    """
    try:
        paths = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    remote = "://" in str(folder)
    return sorted(
        int(path.name)
        for path in paths
        if path.name.isdecimal()
        and str(int(path.name)) == path.name
        and path.is_dir()
        and not (remote and not (path / COMMIT_FILE).exists())
    )


def sealing(base: type) -> type:
    """A kind of Orbax path whose steps are sealed as part of being committed.

    Args:
      base: an `ocp.path.atomicity` class; how the file system commits.
    """

    class Sealed(base):
        @classmethod
        def from_final(
            cls, final_path: epath.Path, *, checkpoint_metadata_store: Any = None, **options: Any
        ) -> "Sealed":
            store = checkpoint_metadata_store and _Unstamped(checkpoint_metadata_store)
            path = super().from_final(final_path, checkpoint_metadata_store=store, **options)
            path.metadata_store = store
            return path

        async def finalize(self) -> None:
            if self.get_final().name.isdecimal():  # a step; its items pass here too, before it
                if self.metadata_store is not None:  # writes in a thread of its own
                    await asyncio.to_thread(self.metadata_store.wait_until_finished)
                await asyncio.to_thread(write_seal, self.get(), str(self.get_final()))
            await super().finalize()

    return Sealed


class _Unstamped:
    """Orbax's metadata store, except that it does not note the time of the commit.

    That would change a file after it was sealed.
    """

    def __init__(self, store: Any):
        self.write, self.wait_until_finished = store.write, store.wait_until_finished

    def update(self, **commit_time: Any) -> None:
        """Notes nothing."""


def write_seal(folder: epath.Path, final: str) -> None:
    """Seals a step that lies in `folder` until it is committed under `final`.

    Files are read back: what the seal vouches for is what a reader will see.
    """
    names = sorted(set(_files(folder)) - {SEAL, COMMIT_FILE})
    with ThreadPoolExecutor(4) as threads:  # reading lets go of the interpreter
        entries = list(threads.map(_entry, (folder / name for name in names)))
    text = f"Checkpoint commit was successful to {final}".encode()  # as Orbax writes it, last
    files = dict(zip(names, entries, strict=True))
    files |= {COMMIT_FILE: [len(text), google_crc32c.value(text)]}
    page = json.dumps(sealed(FORMAT | {"files": files}), sort_keys=True, indent=0)
    (folder / SEAL).write_text(page)


def damage(
    step: epath.Path, parts: Sequence[str] = (), share: tuple[int, int] = (0, 1)
) -> list[str]:
    """What is wrong with the files of a step, one line each; empty when nothing is.

    Files that the seal does not list are not looked at: no reader opens them.

    Args:
      step: its folder.
      parts: look only at these items ("state", "meta", ...); () is all files.
      share: (i, n): only every n-th file from the i-th, for n processes that
        look together.
    """
    try:
        files = _read_seal(step / SEAL)
    except DamagedError as error:
        return [str(error)]
    names = [name for name in sorted(files) if not parts or name.split("/")[0] in parts]
    names = names[share[0] :: share[1]]
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda name: _difference(step, name, files[name]), names)
        return [line for line in found if line]


def refuse_damage(step: epath.Path, parts: Sequence[str] = ()) -> None:
    """Raises DamagedError unless the files of a step (or of these parts) are as saved."""
    if found := damage(step, parts):
        raise damaged(step, found)


def damaged(step: epath.Path, found: Sequence[str]) -> DamagedError:
    """The error for a step with this damage."""
    more = f"; and {len(found) - 3} more files" if len(found) > 3 else ""
    return DamagedError(
        f"checkpoint {step} is damaged: {'; '.join(found[:3])}{more}; "
        "use an earlier step or copy it again from where it is whole"
    )


def all_damaged(broken: Mapping[int, DamagedError]) -> DamagedError:
    """The error when no step can be used; tells of the newest."""
    others = f" (and so are steps {sorted(broken)[:-1]})" if len(broken) > 1 else ""
    return DamagedError(f"{broken[max(broken)]}{others}; or start anew in another --config.workdir")


def _read_seal(path: epath.Path) -> dict[str, Entry]:
    """The files that a seal lists; DamagedError's text names it and says what is wrong."""
    try:
        page = json.loads(path.read_text())
        unseal = unsealed(page)
        if {key: unseal.get(key) for key in FORMAT} != FORMAT:
            raise ValueError(f"it is {unseal.get('format')} version {unseal.get('version')}")
        return unseal["files"]
    except FileNotFoundError as error:
        raise DamagedError(f"{path.name} is missing (unfinished, or copied in part)") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path.name} cannot be read ({_line(error)})") from error


def _difference(step: epath.Path, name: str, saved: Entry) -> str | None:
    """How a file differs from what was saved, with its name."""
    try:
        size, crc = _entry(step / name)
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"
    if size != saved[0]:
        return f"{name} has {size} bytes and had {saved[0]}"
    if crc != saved[1]:
        return f"{name} has CRC-32C {crc:08x} and had {saved[1]:08x}"
    return None


def _entry(path: epath.Path) -> Entry:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size, crc = size + len(chunk), google_crc32c.extend(crc, chunk)
    return [size, crc]


def _files(folder: epath.Path, prefix: str = "") -> list[str]:
    """Paths of all files below a folder, relative to it, with forward slashes."""
    found = []
    for path in folder.iterdir():
        name = f"{prefix}{path.name}"
        found += _files(path, f"{name}/") if path.is_dir() else [name]
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
