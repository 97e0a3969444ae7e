"""The one error of this room."""

from wallwm_jax.errors import UserError


class ConvertError(UserError):
    """A folder of weights cannot be read or written as asked; one line."""


def some(names: list[str], limit: int = 3) -> str:
    """The first few of many names, and how many there are besides."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def brief(error: BaseException, limit: int = 200) -> str:
    """What an error of another library says, as part of one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + "..."
