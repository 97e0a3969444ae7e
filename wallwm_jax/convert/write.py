"""A folder that is there whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from wallwm_jax.convert.errors import ConvertError, brief


@contextlib.contextmanager
def new_folder(folder: Path | str) -> Iterator[Path]:
    """A scratch folder beside `folder` that takes its name when the block ends well.

    Raises:
      ConvertError: `folder` holds something already, or cannot be written.
    """
    folder = Path(folder).absolute()
    refuse_occupied(folder)
    scratch = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.partial"
    try:
        scratch.mkdir(parents=True)
        yield scratch
        os.rename(scratch, folder)
    except (OSError, SafetensorError) as error:
        raise ConvertError(
            f"{folder}: cannot be written ({brief(error)}); free the space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def refuse_occupied(folder: Path) -> None:
    """Raises ConvertError unless `folder` is free: absent, or empty."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        kind = "is not empty" if folder.is_dir() else "is a file"
        raise ConvertError(f"{folder}: {kind} and is not overwritten; name a new folder")
