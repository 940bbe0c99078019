"""The command line of every script: parser, argument types, logging, exit statuses, signals, tables.

Exit statuses: 0 success, 1 environment error, 2 usage error, 130 / 143 stopped by Ctrl-C / SIGTERM.
"""

import argparse
import contextlib
import csv
import difflib
import gc
import importlib.metadata
import importlib.util
import io
import logging
import math
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from autoencoders.runtime import processes
from autoencoders.runtime.checks import printable
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.signals import Stopped, terminate

VERSION = "1.0.0"
log = logging.getLogger("autoencoders")  # info: progress, hidden by --quiet; warning: always shown
NO_WORKERS = "--workers has no effect: the images are in memory"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with one-line errors and defaults in its help; takes --some_flag for --some-flag."""

    def __init__(self, description: str | None, dry_run: bool = False) -> None:
        super().__init__(description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
        versions = f"torch {importlib.metadata.version('torch')}, Python {platform.python_version()}"
        self.add_argument("--version", action="version", version=f"autoencoder suite {VERSION} ({versions})")
        self.add_argument("--quiet", action="store_true", help="print results and warnings only, no progress")
        if dry_run:
            self.add_argument("--dry-run", action="store_true", help="print what would be done and write nothing")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        parsed = super().parse_args([*map(self._respell, words[:end]), *words[end:]], namespace)
        log.setLevel(logging.WARNING if parsed.quiet else logging.INFO)
        return parsed

    def _respell(self, word: str) -> str:
        """The word, where a flag is written with dashes; an unknown flag is an error."""
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or " " in flag:
            return word
        if value == "--":  # argparse would read it as an empty list
            self.error(f"argument {flag}: expected a value, got '--'")
        dashed = flag.replace("_", "-")
        if dashed not in self._option_string_actions:
            names = [name[2:] for name in self._option_string_actions if name.startswith("--")]
            near = difflib.get_close_matches(dashed[2:], names, 1)
            self.error(f"unknown flag {flag}" + (f" (did you mean --{near[0]}?)" if near else ""))
        return dashed + equals + value

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


_running = False


def is_running() -> bool:
    """Whether this process is a script's, and not a program that imports us."""
    return _running


def is_verbose() -> bool:
    """Whether progress is shown: --quiet was not given."""
    return log.isEnabledFor(logging.INFO)


class ListAction(argparse.Action):
    """A list, whose items are separated by commas or blanks; `type` gets its text, with commas.

    A repeated flag replaces the list, or extends it if `extend`.
    """

    def __init__(self, *, type: Callable[[str], Any], extend: bool = False, **options: Any) -> None:
        super().__init__(nargs="+", **options)
        self.parse, self.extend = type, extend

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            parsed = self.parse(re.sub(r"\s*,\s*|\s+", ",", " ".join(values).strip()))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from error
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), *parsed) if self.extend else parsed)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Adds "(default: ...)" to the help of a flag that has a default and does not describe it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        described = "(default" in (action.help or "") or action.default is None or action.default is False
        return action.help if described else super()._get_help_string(action)


class _LineHandler(logging.StreamHandler[Any]):
    """One line per message; a warning is marked as one."""

    def format(self, record: logging.LogRecord) -> str:
        marked = "warning: " if record.levelno >= logging.WARNING else ""
        return marked + printable(record.getMessage())


def run(main: Callable[[], None], distributed: bool = False) -> None:
    """Run a script's `main`, on the main process alone unless `distributed`; an error becomes one line and a status."""
    if processes.torchrun_env("RANK") and not distributed:
        return
    global _running
    _running = True
    # Importing torch makes 200,000 objects, and none is garbage: to search them again and again takes a second.
    gc.set_threshold(100_000)
    signal.signal(signal.SIGTERM, terminate)
    _make_streams_robust()
    if processes.torchrun_env("RANK"):
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open as long as the process)
    logging.basicConfig(handlers=[_LineHandler()], force=True)
    try:
        main()
        sys.stdout.flush()
        if processes.size() > 1:  # gloo's threads may abort a Python that ends while they still run
            processes.shutdown()
            os._exit(0)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of `| head` at the end
        raise SystemExit(1) from None
    except (Exception, KeyboardInterrupt) as error:
        message, status = _explain(error)
        if not message:
            sys.stderr = sys.__stderr__  # a bug prints its traceback also in a silenced process
            raise
        _fail(message, status)
    finally:
        _running = False
        gc.freeze()  # or Python searches all objects for garbage again at its end


def _explain(error: BaseException) -> tuple[str, int]:
    """The message and exit status of an expected error; an empty message for a bug, which keeps its traceback."""
    if isinstance(error, Stopped | UsageError | RunError):
        return str(error), error.status
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C", 130
    if processes.peer_is_gone(error):
        return "another process of this run has died; the same command with --resume continues the run", 1
    # PyTorch's out-of-memory error of the CPU is a plain RuntimeError.
    no_memory = re.search(
        "out of memory|can't allocate|not enough memory|size calculation overflowed|to map segment", str(error)
    )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError | ImportError) and no_memory):
        return "out of memory; use a smaller model, batch size or image set", 1
    if isinstance(error, OSError):
        name = error.filename or ("" if _stdout_works() else "standard output")
        where = f"{name}: " if name else ""
        return f"{where}{error.strerror or error}; check the disk and its permissions", 1
    return "", 1


def _fail(message: str, status: int) -> NoReturn:
    if processes.torchrun_env("RANK") and processes.size() == 1:
        # Before `setup` all processes meet the same error: let the main one print it, and torchrun end the others.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(30)
    where = f" (rank {processes.rank()} on {platform.node()})" if processes.rank() else ""
    with contextlib.suppress(OSError):  # where stderr takes nothing the status still counts
        stream = sys.__stderr__ if processes.rank() else sys.stderr
        print(f"error: {printable(message)}{where}", file=stream, flush=True)
    if processes.size() > 1:  # an ordinary exit would wait for pending collectives
        sys.stdout.flush()
        os._exit(status)
    raise SystemExit(status)


def _stdout_works() -> bool:
    """Whether stdout takes an empty line. If not, all of it is dropped, or Python would complain again at the end."""
    try:
        print(flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _make_streams_robust() -> None:
    """Escape characters that a stream cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def path(text: str) -> Path:
    """An argparse type: a path, where `~` is the home folder; empty text, as of an unset shell variable, is refused."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a file or folder")
    if not text.isprintable():  # it is printed, in messages and results
        raise argparse.ArgumentTypeError(f"{text!r} holds characters that cannot be shown; rename it")
    if (expanded := os.path.expanduser(text))[0] == "~":
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such user; write ./~ for a name with a tilde")
    return Path(expanded)


def number(
    minimum: float, maximum: float = math.inf, exclusive: bool = False, kind: Any = float
) -> Callable[[str], Any]:
    """An argparse type: a finite number from `minimum` (or above it, if `exclusive`) to `maximum`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {name}, got {text!r}") from None
        if not minimum <= value <= maximum or value == math.inf or (exclusive and value == minimum):
            most = " and finite" if maximum == math.inf else f" and at most {maximum:.10g}"
            allowed = f"{'above' if exclusive else 'at least'} {minimum:g}{most}"
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text}")
        return value

    return parse


def integer(minimum: int, maximum: int = 2**31 - 1) -> Callable[[str], int]:
    """An argparse type: an integer from `minimum` to `maximum`."""
    return number(minimum, maximum, kind=int)


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """An argparse type: one of `names`."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return parse


def items(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """An argparse type: comma-separated items, each of the type `kind`."""
    return lambda text: tuple(kind(part.strip()) for part in text.split(","))


def sizes(text: str) -> tuple[int, ...]:
    """An argparse type: comma-separated layer widths; the empty text means no hidden layer."""
    return items(integer(1))(text) if text.strip() else ()


def code_size(text: str) -> int | str:
    """An argparse type: a positive integer, or `auto` for the number of components that PCA needs."""
    return text if text == "auto" else integer(1)(text)


def check_installed(flag: str, packages: Sequence[str]) -> None:
    """UsageError, with the command that installs them, unless the packages that `flag` needs are installed."""
    specs = {name: importlib.util.find_spec(name) for name in packages}
    # One without origin is a mere folder of that name, such as wandb leaves behind.
    if missing := [name for name, spec in specs.items() if spec is None or spec.origin is None]:
        names = " ".join(missing)
        raise UsageError(f"{flag}: not installed: {names}; python -m pip install {names}")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """A text table: the first column left-aligned, the others right-aligned; or the same as Markdown."""
    if markdown:
        lines = [header, ["---"] * len(header), *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in (header, *rows)
    )


def format_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as a CSV file: a header with all their columns, then one line per row."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
