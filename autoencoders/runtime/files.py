"""Files: written whole or not at all, and checked where they enter.

Everything the suite writes goes through `write_atomic`. Nothing here needs torch, so that the light commands start
fast.
"""

import contextlib
import io
import json
import os
import platform
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import numpy as np

from autoencoders.runtime import processes
from autoencoders.runtime.errors import Fault, Mistake

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has no such lock: two runs in one folder are not noticed there
    fcntl = None


_LARGEST_FILE = 8_000_000_000  # bytes
_LEFT_BEHIND = 60.0  # seconds after which a temporary file is nobody's
_TEMPORARY = ".ae-unfinished-"


def write_atomic(path: Path, *parts: bytes | memoryview) -> None:
    """Replace `path` by `parts`, one after the other, so that a reader sees the old file or the new one, never a part.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and are renamed over
    the old file; the folder is flushed too, so that the rename outlives a power cut.
    """
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY, suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner may read
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise Fault(f"{path}: cannot be written ({error.strerror}); make room or pick another --output-dir") from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder, and its rename is already durable
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prepare_folder(folder: Path) -> Path:
    """Make `folder` and prove that it can be written, before an hour of work depends on it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise Fault(f"{folder}: cannot be written ({error.strerror}); pick another --output-dir") from error
    return folder


def hold_folder(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold `folder`, made if need be, for this run: of several processes the first does so for all."""
    return lock_folder(prepare_folder(folder)) if processes.is_first() else contextlib.nullcontext()


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; a Mistake names the process that holds it already.

    The lock is the kernel's, on the file `.lock`: it ends with the process that holds it, however that dies.
    """
    path = folder / ".lock"
    while True:
        file = _open_lock(path)
        _take(file, folder)
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its last holder has removed the file between our opening and our locking it
    with file:
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        try:
            for leftover in folder.glob(f"{_TEMPORARY}*.tmp"):  # of a write that was killed half-way
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - leftover.stat().st_mtime > _LEFT_BEHIND:
                        leftover.unlink()
            yield
        finally:
            path.unlink(missing_ok=True)


def _open_lock(path: Path) -> TextIO:
    """The lock file, made if need be; never the target of a link that somebody put in its place."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644), "r+")
    except OSError as error:
        raise Fault(f"{path}: cannot be locked ({error.strerror}); remove it, or use another --output-dir") from error


def _take(file: TextIO, folder: Path) -> None:
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        file.close()
        raise Mistake(f"{folder}: is in use by {holder}; wait for it to end, or use another --output-dir") from None


def read_bytes(path: Path, remedy: str) -> bytes:
    """The bytes of a file that must be there; `remedy` ends the error when they cannot be read.

    Only an ordinary file of a size that a run can have is read: not a pipe that never ends, nor a hole of a terabyte.
    """
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > _LARGEST_FILE):
            raise Fault(f"{path}: is not a file that a run wrote; {remedy}")
        return path.read_bytes()
    except OSError as error:
        raise Fault(f"{path}: cannot be read ({error.strerror}); {remedy}") from error


def write_json(path: Path, value: object) -> None:
    """Write a value of JSON types, in one piece or not at all; ValueError over a number that is not finite."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in `path`; anything else is a Fault that names the file."""
    try:
        value = json.loads(read_bytes(path, remedy))
    except (ValueError, RecursionError) as error:
        raise Fault(f"{path}: is not valid JSON; {remedy}") from error
    if not isinstance(value, dict):
        raise Fault(f"{path}: does not hold a JSON object; {remedy}")
    return value


def write_npz(path: Path, **arrays: Any) -> None:
    """Write arrays by name, in one piece or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def read_npz(path: Path, shapes: dict[str, tuple[int, ...]], remedy: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz written by `write_npz`, each of the shape stated (-1: any); no pickle is ever loaded."""
    try:
        file = io.BytesIO(read_bytes(path, remedy))
        check_archive(file)
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Fault:
        raise
    except Exception as error:  # a damaged archive or header fails in more ways than NumPy's authors can list
        raise Fault(f"{path}: is damaged ({type(error).__name__}); {remedy}") from error
    for name, shape in shapes.items():
        found = arrays[name].shape if name in arrays else None
        if found is None or len(found) != len(shape) or any(s not in (-1, f) for s, f in zip(shape, found)):
            raise Fault(f"{path}: has no array {name!r} of shape {shape}; {remedy}")
    return arrays


def check_archive(file: io.BytesIO) -> None:
    """ValueError or BadZipFile unless every member of a zip archive is stored plain and passes its own CRC-32.

    Plain members cannot unpack to more than the file; and who reads a member may stop before its checksum.
    """
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed, which no file of ours is")
        if (broken := archive.testzip()) is not None:
            raise ValueError(f"its part {broken} fails its checksum")
    file.seek(0)


def read_count(path: Path, largest: int, remedy: str) -> int:
    """The bare integer in `path`, between 1 and `largest`; anything else is the user's to mend."""
    text = read_bytes(path, remedy)[:64].decode("ascii", errors="replace").strip()
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= largest):
        raise Mistake(f"{path}: expected one integer between 1 and {largest}, found {text[:20]!r}; {remedy}")
    return int(text)
