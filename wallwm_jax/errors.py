"""The errors that a person can put right."""


class UserError(RuntimeError):
    """One line: what is wrong, where, and what to do.

    Rooms derive their own (`StoreError`, `CheckpointError`, ...); entry points
    print them without a traceback.
    """
