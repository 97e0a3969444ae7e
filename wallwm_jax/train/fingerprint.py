"""Which files these are: one SHA-256 over a folder of weights, computed once.

A digest is kept beside size and time of every file it was made from; while
those stay, so does the digest, and 11 GB are not read again at every start.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from wallwm_jax.events.manifest import file_sha256
from wallwm_jax.files import write_json

Fingerprint = dict[str, Any]
"""JSON: {"folder", "sha256", "files": {name: [bytes, modified in ns]}}."""


def fingerprint(
    folder: Path, files: Mapping[str, Path], known: Iterable[Fingerprint] = ()
) -> Fingerprint:
    """SHA-256 over names and contents of files.

    Args:
      folder: whose they are.
      files: name -> file.
      known: earlier answers; one of the same folder whose files have equal
        sizes and times is taken as it is.
    """
    stats = {name: file.stat() for name, file in sorted(files.items())}
    stamps = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    for record in known:
        # The folder too: unpacked archives give unlike files equal times.
        if (record.get("folder"), record.get("files")) == (str(folder), stamps):
            return {"folder": str(folder), "sha256": record["sha256"], "files": stamps}
    digest = hashlib.sha256()
    total = sum(size for size, _ in stamps.values())
    with (
        ThreadPoolExecutor(4) as threads,  # hashing lets go of the interpreter
        tqdm(
            total=total, desc=f"hash {folder.name}", unit="B", unit_scale=True, delay=2, leave=False
        ) as bar,
    ):
        hashes = threads.map(file_sha256, (files[name] for name in stamps))
        for (name, (size, _)), sha256 in zip(stamps.items(), hashes, strict=True):
            digest.update(f"{name} {sha256}\n".encode())
            bar.update(size)
    return {"folder": str(folder), "sha256": digest.hexdigest(), "files": stamps}


def read_known(path: Path) -> dict[str, Fingerprint]:
    """What `write_known` wrote; a file that is not there or damaged knows nothing."""
    with contextlib.suppress(OSError, ValueError):
        page = json.loads(path.read_text())
        if isinstance(page, dict) and all(isinstance(record, dict) for record in page.values()):
            return page
    return {}


def write_known(path: Path, known: dict[str, Fingerprint]) -> None:
    """Keeps fingerprints, by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, known, sort_keys=True)
