"""Keeps Orbax's tracebacks of a failed save off the screen: its caller says it in one line."""

import logging
import re
from types import TracebackType

from absl import logging as absl_logging


class OneReport(logging.Filter):
    """While open, drops log records with which Orbax's threads repeat an error.

    One full disk makes about a thousand lines: every array's thread, and every
    thread that waits for it, logs the traceback that the caller gets as well.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a traceback out of Orbax."""
        return not (record.exc_info and "/orbax/checkpoint/" in record.pathname)

    def __enter__(self) -> "OneReport":
        absl_logging.get_absl_logger().addFilter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        absl_logging.get_absl_logger().removeFilter(self)


def what_it_says(error: Exception) -> str:
    """An error as one line, without the specification and source locations tensorstore adds."""
    text = " ".join(str(error).split())
    return re.split(r" \[(?:source|tensorstore_spec)", text)[0] or type(error).__name__
