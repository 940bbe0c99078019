"""Command-line habits that every script shares: argument types, one-line errors, exit statuses.

Exit statuses: 0 all is well, 1 a fault of the world, 2 a mistake in what was asked for, 130 / 143 stopped
by Ctrl-C / SIGTERM. Only the standard library is imported here, so that `--help` answers at once.
"""

import argparse
import contextlib
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from autoencoders.runtime import processes
from autoencoders.runtime.errors import Fault, Mistake

VERSION = "1.0.0"  # of the suite; said nowhere else


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and which takes --some_flag for --some-flag."""

    quiet = False  # whether the last command line that was read has asked for it

    def __init__(self, description: str | None, dry_run: bool = True) -> None:
        super().__init__(
            description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.add_argument("--version", action=_Version, nargs=0, help="print the versions, and end")
        self.add_argument("--quiet", action="store_true", help="say nothing of the progress, only results and warnings")
        if dry_run:
            self.add_argument("--dry-run", action="store_true", help="print what would be done, and touch nothing")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        spelt = []
        for text in sys.argv[1:] if args is None else args:
            flag, equals, value = text.partition("=")
            if flag.startswith("--") and value == "--":  # argparse would take it for a list of nothing
                self.error(f"argument {flag}: expected a value, got '--'")
            spelt.append(flag.replace("_", "-") + equals + value if flag.startswith("--") else text)
        parsed = super().parse_args(spelt, namespace)
        Parser.quiet = parsed.quiet
        return parsed

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see {self.prog} --help", status=2)


class _Version(argparse.Action):
    """Print the versions; they are only looked up when somebody asks."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"autoencoder suite {VERSION} (torch {version('torch')}, Python {platform.python_version()})")
        raise SystemExit(0)


def note(text: str) -> None:
    """One line on stderr about what is being done; --quiet leaves it out."""
    if not Parser.quiet:
        print(text, file=sys.stderr)


def warn(text: str) -> None:
    """One line on stderr about what the person should know."""
    print(f"warning: {' '.join(text.split())}", file=sys.stderr, flush=True)


def fail(message: str, status: int) -> NoReturn:
    """One line on stderr, then the exit status."""
    message, status = processes.last_words(message, status)
    line = " ".join(message.split())
    with contextlib.suppress(OSError, ValueError):  # nobody may be listening any more; the status still counts
        print(f"error: {line}", file=sys.stderr, flush=True)
    if processes.size() > 1:  # an ordinary exit would wait for what is still under way between the processes
        sys.stdout.flush()
        os._exit(status)
    raise SystemExit(status)


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`, turning what can go wrong outside of our code into one line and a status."""
    signal.signal(signal.SIGTERM, _terminate)
    _settle_streams()
    processes.hush("LOCAL_RANK")
    try:
        main()
        sys.stdout.flush()
        processes.leave()
    except Stopped as stopped:
        fail(str(stopped), stopped.status)
    except Mistake as error:
        fail(str(error), status=2)
    except Fault as error:
        fail(str(error), status=1)
    except (MemoryError, RuntimeError) as error:
        if processes.broken(error):
            fail("another process of this run has ended; the same command with --resume goes on", status=1)
        # torch's own two errors of this kind are RuntimeErrors; any other one is a bug, and shows its traceback.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        fail("out of memory; use a smaller model, batch or image set", status=1)
    except BrokenPipeError:
        # The reader of our output has left (`| head`); Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        fail(f"{error.filename or 'file'}: {error.strerror or error}; check the disk and its permissions", status=1)
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C", status=130)


def _settle_streams() -> None:
    """Let a closed stream swallow what is said, and a name that a stream cannot spell be written in escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (it lives as long as the process)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Ctrl-C while the libraries are still being imported is one line too."""
    if issubclass(kind, KeyboardInterrupt):
        print("error: stopped by Ctrl-C", file=sys.stderr)
    else:
        sys.stderr = sys.__stderr__  # a bug is heard of, also in a process that is otherwise silent
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _hook


def integer(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """An argparse type: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}, got {text}")
        return value

    return parse


def number(least: float, most: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite number from `least` (or `above` it) to `most`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
        if not math.isfinite(value) or value > most or value < least or (above and value == least):
            upper = "" if most == math.inf else f" and at most {most:g}"
            raise argparse.ArgumentTypeError(
                f"must be finite, {'above' if above else 'at least'} {least:g}{upper}, got {text}"
            )
        return value

    return parse


def sizes(text: str) -> tuple[int, ...]:
    """An argparse type: comma-separated layer widths; the empty text is no hidden layer."""
    return tuple(integer(1)(part.strip()) for part in text.split(",")) if text.strip() else ()


def code_size(text: str) -> int | str:
    """An argparse type: a whole number, or `auto` for what the PCA says."""
    return text if text == "auto" else integer(1)(text)


def dataset(text: str) -> str:
    """An argparse type: the name of a known image set, or the path of one's own."""
    from autoencoders.data.sets import DATASETS

    if text not in DATASETS and not os.path.exists(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither one of {', '.join(DATASETS)} nor a folder or .npy file")
    return text


# fmt: off
def add_data_flags(parser: argparse._ActionsContainer, stream: bool = False) -> None:
    """The flags that say which images a script works on; `data_flags` is what `sets.load_images` takes of them."""
    shown = "(default: %(default)s)"
    parser.add_argument("--dataset", type=dataset, default="mnist", metavar="SET",
                        help="mnist, fashion-mnist, kmnist, digits, auto (mnist when it can be had, else digits), "
                        "a folder of pictures whose sub-folders are the labels, or a .npy file of (N, H, W) uint8 "
                        f"{shown}")
    parser.add_argument("--data-root", type=Path, default=Path("data"),
                        help=f"where the known sets are, or are downloaded to {shown}")
    parser.add_argument("--image-size", type=integer(4, 128), default=28, metavar="N",
                        help=f"pixels along the side of the squares that images are resized to {shown}")
    parser.add_argument("--test-fraction", type=number(0, 0.9, above=True), metavar="X",
                        help="share of one's own images set aside to test on (default: 0.1, or a folder's own train "
                        "and test)")
    parser.add_argument("--split-seed", type=integer(0), default=0, metavar="N",
                        help=f"draws the order of one's own images, and so those set aside {shown}")
    if stream:
        parser.add_argument("--stream", choices=("auto", "on", "off"), default="auto",
                            help="leave one's own images in their file and read them as they are needed; auto does so "
                            f"where they would take more than a quarter of the memory {shown}")
# fmt: on


def data_flags(args: argparse.Namespace) -> dict[str, Any]:
    """What `sets.load_images` takes of a command line."""
    return {"source": args.dataset, "root": args.data_root, "image_size": args.image_size,
            "test_fraction": args.test_fraction, "split_seed": args.split_seed,
            "stream": getattr(args, "stream", "off")}  # fmt: skip


def duration(seconds: float) -> str:
    """A time as a person says it."""
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min"
        if minutes
        else f"{seconds:.0f} s"
    )


class Stopped(Exception):
    """The run was asked to stop and has saved its place; `status` is 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Signals:
    """From `listen` on, the first SIGINT or SIGTERM is only noted, in `received`; the second ends the process."""

    def __init__(self) -> None:
        self.received = 0
        self.process = os.getpid()

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def restore(self) -> None:
        """From here on a signal ends the process at once, as before `listen`."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _terminate)

    def _note(self, number: int, frame: object) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number
        if os.getpid() != self.process:  # a DataLoader's worker, which ends with us
            return
        with contextlib.suppress(OSError):  # Ctrl-C ends the reader of our stderr too (`2>&1 | tee`)
            os.write(2, b"stopping after this step; once more to leave at once\n")


def _terminate(number: int, frame: object) -> NoReturn:
    raise Stopped("stopped by SIGTERM", 128 + number)


@contextlib.contextmanager
def progress(images: int, epochs: int, log_interval: int | None) -> Iterator[Callable[[int, int, int, Any], None]]:
    """What a training over so many images and epochs calls after each step: a bar on stderr (in a terminal or notebook
    only), and every `log_interval` steps a line on stdout with the batch's loss and the share of the epoch done."""
    from tqdm.auto import tqdm

    looks = "{desc} {percentage:3.0f}%|{bar}| {rate_noinv_fmt}{postfix}, {remaining} left"
    silent = True if Parser.quiet else None  # None is silent unless somebody can watch
    with tqdm(total=epochs * images, unit=" images", unit_scale=True, leave=False, bar_format=looks, dynamic_ncols=True,
              disable=silent) as bar:  # fmt: skip
        read = 0.0

        def on_step(epoch: int, step: int, steps: int, loss: Any) -> None:
            nonlocal read
            place = round((epoch - 1 + step / steps) * images)
            if not read:  # a resumed run has come this far at another time
                bar.initial = bar.n = place - images // steps
            if not bar.disable and time.monotonic() - read > 1:  # reading a loss makes a GPU wait: not every step
                bar.set_description(f"epoch {epoch}/{epochs}", refresh=False)
                bar.set_postfix_str(f"loss {loss.item():.4f}", refresh=False)
                read = time.monotonic()
            bar.update(place - bar.n)
            if step == steps:
                bar.clear()  # the line about the epoch comes next
            if log_interval and not Parser.quiet and step % log_interval == 0:
                tqdm.write(f"Epoch {epoch}, step {step}/{steps} ({step / steps:.0%}): batch loss {loss.item():.4f}")

        yield on_step
