"""The two ways a run can fail that are not our fault; each ends as one line on stderr."""


class Mistake(Exception):
    """What was asked for cannot be done; the message says what to change. Exit status 2."""


class Fault(Exception):
    """The world failed: a missing, damaged or unwritable file. Exit status 1."""
