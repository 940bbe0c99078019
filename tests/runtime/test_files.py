import errno
import io
import os
import resource
import stat

import numpy as np
import pytest

from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import (
    locked,
    prepare_folder,
    read_bytes,
    read_json,
    read_n_components,
    read_npz,
    write_atomic,
    write_json,
    write_npz,
)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "numbers.txt"
    write_atomic(path, b"old and longer")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["numbers.txt"]


def test_a_reader_that_opened_the_old_file_keeps_it(tmp_path):
    path = tmp_path / "numbers.txt"
    write_atomic(path, b"old")
    with path.open("rb") as reader:
        write_atomic(path, b"new")
        assert reader.read() == b"old"


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "numbers.txt"
    write_atomic(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a disk that fills up after a kilobyte
    try:
        with pytest.raises(RunError, match=r"numbers\.txt"):
            write_atomic(path, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["numbers.txt"]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "numbers.txt"
    write_atomic(path, b"old")

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["numbers.txt"]


def fail_on_folders(monkeypatch, name, code):
    """Let the function `name` of os fail with `code` for a folder, given by its path or its descriptor."""
    real = getattr(os, name)

    def function(target, *args):
        if stat.S_ISDIR(os.stat(target).st_mode):
            raise OSError(code, os.strerror(code))
        return real(target, *args)

    monkeypatch.setattr(os, name, function)


def test_a_folder_on_a_broken_disk_is_an_error(tmp_path, monkeypatch):
    fail_on_folders(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(RunError, match="Input/output error"):
        write_atomic(tmp_path / "file", b"new")


def test_a_link_or_a_pipe_at_the_temporary_name_is_replaced(tmp_path):
    folder, victim, leftover = tmp_path / "out", tmp_path / "victim", tmp_path / "out" / ".file.tmp"
    folder.mkdir()
    victim.write_text("mine")
    leftover.symlink_to(victim)
    write_atomic(folder / "file", b"new")
    assert victim.read_text() == "mine" and not (folder / "file").is_symlink()
    os.mkfifo(leftover)
    write_atomic(folder / "file", b"newer")
    assert (folder / "file").read_bytes() == b"newer" and os.listdir(folder) == ["file"]


@pytest.mark.parametrize("name", [".file.tmp", "file"])
def test_a_folder_at_the_name_of_a_file_is_an_error_that_says_to_delete_it(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(RunError, match=rf"file: cannot be written.*delete the folder .*/{name}$"):
        write_atomic(tmp_path / "file", b"new")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


def test_writing_where_no_folder_is_is_a_fault_that_names_the_file(tmp_path):
    with pytest.raises(RunError, match=r"gone/file\.txt"):
        write_atomic(tmp_path / "gone" / "file.txt", b"x")


def test_an_output_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    folder = prepare_folder(tmp_path / "a" / "b")
    assert folder.is_dir() and os.listdir(folder) == []
    assert prepare_folder(folder) == folder


def test_nothing_of_another_program_stands_in_the_way_of_the_check(tmp_path):
    (tmp_path / ".probe.tmp").mkdir()
    assert prepare_folder(tmp_path) == tmp_path and os.listdir(tmp_path) == [".probe.tmp"]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_an_output_folder_that_cannot_be_is_a_fault_that_names_it(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=place) as caught:
        prepare_folder(tmp_path / place)
    assert "--output-dir" in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_json_comes_back_as_it_went(tmp_path):
    value = {"a": [1, 2.5, None, True], "b": {"c": "ü"}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", "") == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_has_no_word_for_is_not_written(tmp_path, number):
    with pytest.raises(RunError, match="not a finite number"):
        write_json(tmp_path / "x.json", {"a": [number]})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_a_fault_with_its_name_and_remedy(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(RunError, match=r"x\.json.*train it again"):
        read_json(tmp_path / "x.json", "train it again")


def test_a_missing_file_is_a_fault_with_its_name_and_remedy(tmp_path):
    with pytest.raises(RunError, match=r"nowhere.*look elsewhere"):
        read_bytes(tmp_path / "nowhere", "look elsewhere")


@pytest.mark.parametrize("text", ["1", "154", "784\n", " 154 \r\n"])
def test_a_count_is_a_bare_integer(tmp_path, text):
    (tmp_path / "n.txt").write_text(text)
    assert read_n_components(tmp_path / "n.txt", 784, "") == int(text)


BAD_COUNTS = ["", "\n", "0", "785", "-3", "abc", "15.4", "1e2", "154 components", "1\n2", "9" * 5000, "٣", "\0", "\xff"]


@pytest.mark.parametrize("text", BAD_COUNTS, ids=[ascii(text[:20]) for text in BAD_COUNTS])
def test_anything_else_is_a_mistake_with_its_name_and_remedy(tmp_path, text):
    (tmp_path / "n.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"n\.txt.*run ae_pca\.py again"):
        read_n_components(tmp_path / "n.txt", 784, "run ae_pca.py again")


def test_no_flipped_bit_of_an_archive_is_read_as_another_number(tmp_path):
    path = tmp_path / "small.npz"
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4.0)}
    write_npz(path, **arrays)
    data, refused = path.read_bytes(), 0
    for place in range(0, 8 * len(data), 3):
        path.write_bytes(data[: place // 8] + bytes([data[place // 8] ^ (1 << place % 8)]) + data[place // 8 + 1 :])
        try:
            read = read_npz(path, {"a": (2, 3), "b": (4,)}, "make it again")
        except RunError:
            refused += 1
            continue
        assert all(np.array_equal(read[name], arrays[name]) for name in arrays)
    assert refused > len(data)


def test_a_file_larger_than_it_can_be_is_not_read(tmp_path):
    (tmp_path / "x.json").write_bytes(b"x" * 1000)
    assert len(read_bytes(tmp_path / "x.json", "", 1000)) == 1000
    with pytest.raises(RunError, match="is not a file that a run wrote; delete it"):
        read_bytes(tmp_path / "x.json", "delete it", 999)


def test_a_locked_folder_is_refused_and_free_again_afterwards(tmp_path):
    with locked(tmp_path / "new") as folder, pytest.raises(UsageError, match=f"process {os.getpid()}"), locked(folder):
        pass
    with locked(folder):
        pass


MAKE_ODD = {
    "a link": lambda path: path.symlink_to(path.with_name("target")),
    "a link to nothing": lambda path: path.symlink_to(path.with_name("nowhere")),
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", MAKE_ODD)
def test_a_lock_that_is_no_file_is_a_run_error_that_says_to_delete_it(tmp_path, kind):
    (tmp_path / "target").write_text("mine")
    MAKE_ODD[kind](tmp_path / ".lock")
    with pytest.raises(RunError, match=r"\.lock.*delete it"), locked(tmp_path):
        pass
    assert (tmp_path / "target").read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_the_holder_is_written_and_read_without_the_first_byte(tmp_path, monkeypatch):
    """Windows locks that byte: nobody else, nor the holder through another open file, can read or write it."""

    class Guarded(io.FileIO):
        def readinto(self, buffer):
            if self.tell() == 0:
                raise PermissionError(errno.EACCES, "Permission denied")
            return super().readinto(buffer)

    real_open = io.open

    def guarded_open(path, *args, **kwargs):
        if os.path.basename(path) == ".lock":
            return io.BufferedReader(Guarded(path))
        return real_open(path, *args, **kwargs)

    with locked(tmp_path):
        monkeypatch.setattr(io, "open", guarded_open)
        with pytest.raises(UsageError, match=f"in use by process {os.getpid()} on "), locked(tmp_path):
            pass
