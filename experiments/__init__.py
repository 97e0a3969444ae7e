"""Thin entry points: flags, build, call. Run them from the repository's root."""
