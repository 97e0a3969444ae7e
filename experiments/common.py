"""What every entry point shares: the config flag, and errors as one line."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from wallwm_jax.errors import UserError

EXPECTED = (UserError, ValueError, OSError, FloatingPointError)
"""What a user can put right; anything else is ours and keeps its traceback."""

UNKNOWN_KEY = (flags.Error, KeyError, AttributeError, TypeError)
"""How ml_collections refuses a key or a value on the command line."""


def run(main: Callable[[ConfigDict], None], argv: list[str] | None = None) -> None:
    """Runs `main(config)`; what a user can put right ends in one line and status 1.

    `--config=FILE` and `--config.key=value` are ml_collections' flags; a key
    the file does not have is refused. Set WALLWM_TRACEBACK=1 to see where an
    error came from.
    """
    with one_line_errors(*EXPECTED, *UNKNOWN_KEY, what="option refused: "):
        # Overrides are already looked up while the flag is defined.
        config = config_flags.DEFINE_config_file(
            "config", "configs/metaworld.py", "experiment file"
        )
        flags.FLAGS(argv or sys.argv)
    if not flags.FLAGS["verbosity"].present:
        quiet()
    app.run(lambda _: _guarded(main, config.value), argv=[sys.argv[0]])


def make_folder(folder: Path, option: str) -> None:
    """Creates a folder for results.

    Raises:
      UserError: it cannot be made or written; the message names `option`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # a fellow process may have been quicker
    except OSError as error:
        raise UserError(
            f"cannot write into {folder} ({error.strerror}); choose another folder with {option}"
        ) from error


def key_values(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words as a dictionary.

    Raises:
      UserError: another word; the message names `option`.
    """
    if wrong := [pair for pair in pairs if not pair.partition("=")[0] or "=" not in pair]:
        raise UserError(f"{option} {wrong[0]!r} is not KEY=VALUE; write e.g. control_hz=10")
    return dict(pair.split("=", 1) for pair in pairs)


def quiet() -> None:
    """Shows warnings only: Orbax tells dozens of lines per save."""
    logging.set_verbosity(logging.WARNING)


def _guarded(main: Callable[[ConfigDict], None], config: ConfigDict) -> None:
    with one_line_errors(*EXPECTED):
        main(config)


class one_line_errors:  # noqa: N801  reads as a statement
    """Context that turns expected errors into one line on stderr and exit status 1."""

    def __init__(self, *expected: type[BaseException], what: str = ""):
        self.expected, self.what = expected, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, self.expected) and not os.environ.get("WALLWM_TRACEBACK"):
            while error.args and isinstance(error.args[0], BaseException):
                error = error.args[0]  # ml_collections wraps its hint in another exception
            text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
            print(f"error: {self.what}{' '.join(text.split())}", file=sys.stderr)
            sys.stderr.flush()
            raise SystemExit(1)
