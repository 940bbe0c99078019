"""Ctrl-C and SIGTERM: a training records the first and saves; elsewhere they end the process with one line."""

import contextlib
import os
import signal
import threading
from typing import NoReturn


class Stopped(Exception):
    """The process was asked to stop; exit status 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def terminate(number: int, frame: object) -> NoReturn:
    """A handler of SIGTERM: raise Stopped."""
    raise Stopped("stopped by SIGTERM", 128 + number)


class Signals:
    """After `listen`, the first SIGINT or SIGTERM is recorded in `received`; the second ends the process."""

    received = 0

    def listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python gives signals to the main thread alone
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._record)

    def restore(self) -> None:
        """From here on a signal ends the process at once, as before `listen`."""
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, terminate)

    def _record(self, number: int, frame: object) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number
        with contextlib.suppress(OSError):  # Ctrl-C may have ended the reader of stderr too (`2>&1 | tee`)
            os.write(2, b"finishing this step, then saving; press Ctrl-C again to quit now\n")
