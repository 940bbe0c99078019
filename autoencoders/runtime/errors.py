"""The two errors that end a script with one line on stderr; any other exception is a bug and keeps its traceback."""


class UsageError(ValueError):
    """The request cannot be carried out as given; the message says what to change. In Python it is a ValueError."""

    status = 2  # of the script


class RunError(Exception):
    """The environment failed: a missing, damaged or unwritable file, or diverged training."""

    status = 1
