"""Files: atomic writes, checked reads, and the lock of an output folder; without torch, for a quick `ae_pca.py`."""

import contextlib
import io
import json
import logging
import math
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from autoencoders.runtime.errors import RunError, UsageError

log = logging.getLogger(__name__)


def write_atomic(path: Path, *parts: bytes | memoryview) -> None:
    """Replace the file `path` by the concatenated `parts`; a reader sees the old file or the new one.

    File and folder are flushed to the disk, so that the new file survives a power cut. The temporary name is fixed:
    the caller holds the folder's lock, and a leftover of a killed process is replaced.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # a link there would be followed, and opening a pipe would wait
        with temporary.open("xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        taken = next((p for p in (temporary, path) if p.is_dir()), None)
        hint = f"delete the folder {taken}" if taken else "free some space or choose another --output-dir"
        raise RunError(f"{path}: cannot be written ({error.strerror}); {hint}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _flush_folder(folder: Path) -> None:
    """Flush the entries of a folder, which Windows does by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prepare_folder(folder: Path) -> Path:
    """Create `folder` and check that it is writable, before an hour of work depends on it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror}); choose another --output-dir") from error
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Create `folder` and lock it for this process; UsageError naming the process that holds the lock already."""
    path = prepare_folder(folder) / ".lock"
    try:
        lock = file_lock(path, timeout=0)
    except filelock.Timeout:
        holder = _holder(path) or "another process"
        raise UsageError(f"{folder}: is in use by {holder}; wait for it to end, or use another --output-dir") from None
    except OSError as error:
        hint = "delete it, or use another --output-dir"
        raise RunError(f"{path}: cannot be locked ({error.strerror}); {hint}") from error
    with lock:
        yield folder


def file_lock(path: Path, timeout: float = -1) -> contextlib.AbstractContextManager[object]:
    """Lock the file `path` until the context ends, waiting at most `timeout` seconds, forever if it is negative.

    Raises filelock.Timeout or OSError. The lock file stays there, because deleting it would be a race.
    """
    return filelock.FileLock(path, timeout, preserve_lock_file=True, on_acquired=_name_holder).acquire()


def _name_holder(descriptor: int) -> None:
    """Write who holds a lock into its file, from the second byte on: on Windows the first byte is what is locked."""
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"\nprocess {os.getpid()} on {platform.node()}\n".encode())


def _holder(path: Path) -> str:
    """Who holds the lock, as `_name_holder` wrote it; empty if that cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(1)
        return file.read(200).decode(errors="replace").strip()
    return ""


def read_bytes(path: Path, hint: str, most: float = math.inf) -> bytes:
    """The bytes, at most so many, of an existing file; `hint` ends the error message when they cannot be read.

    Only a regular file is read, never a pipe that does not end.
    """
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > most):
            raise RunError(f"{path}: is not a file that a run wrote; {hint}")
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); {hint}") from error


def write_json(path: Path, value: object) -> None:
    """Write a value of JSON types atomically; RunError for a number that is not finite."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise RunError(f"{path}: a result is not a finite number; check the images and the model") from error
    write_atomic(path, f"{text}\n".encode())


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """The JSON object in `path`; RunError naming the file for anything else."""
    try:
        value = json.loads(read_bytes(path, hint, 1e8))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: is not valid JSON; {hint}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: does not hold a JSON object; {hint}")
    return value


def write_npz(path: Path, **arrays: Any) -> None:
    """Write arrays by name, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def read_npz(path: Path, shapes: dict[str, tuple[int, ...]], hint: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, each of the shape given (-1 matches any length); never loads a pickle."""
    file = io.BytesIO(read_bytes(path, hint))
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged archive or header fails in more ways than can be listed
        raise RunError(f"{path}: is damaged ({type(error).__name__}); {hint}") from error
    for name, shape in shapes.items():
        found = arrays[name].shape if name in arrays else None
        if found is None or len(found) != len(shape) or any(s not in (-1, f) for s, f in zip(shape, found)):
            raise RunError(f"{path}: has no array {name!r} of shape {shape}; {hint}")
    return arrays


def read_n_components(path: Path, maximum: int, hint: str) -> int:
    """The integer in `path`, between 1 and `maximum`; UsageError for anything else."""
    text = read_bytes(path, hint)[:64].decode("ascii", errors="replace").strip()
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= maximum):
        raise UsageError(f"{path}: expected one integer between 1 and {maximum}, found {text[:20]!r}; {hint}")
    return int(text)


def total_memory() -> float:
    """Bytes of memory of this machine; infinite where the system does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
