import os
import resource
import stat

import numpy as np
import pytest

from autoencoders.runtime import files
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
    with pytest.raises(ValueError, match="JSON"):
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


def test_a_file_is_read_if_it_fits_into_memory(tmp_path, monkeypatch):
    (tmp_path / "checkpoint.pt").write_bytes(b"x" * 1000)
    monkeypatch.setattr(files, "total_memory", lambda: 1000)
    assert len(read_bytes(tmp_path / "checkpoint.pt", "")) == 1000
    monkeypatch.setattr(files, "total_memory", lambda: 999)
    with pytest.raises(RunError, match="is not a file that a run wrote; delete it"):
        read_bytes(tmp_path / "checkpoint.pt", "delete it")


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


def test_a_locked_folder_is_refused_and_free_again_afterwards(tmp_path):
    with locked(tmp_path / "new") as folder, pytest.raises(UsageError, match=f"process {os.getpid()}"), locked(folder):
        pass
    with locked(folder):
        pass


def test_a_lock_that_is_a_link_or_a_folder_is_a_run_error(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "target")
    with pytest.raises(RunError, match=r"\.lock"), locked(tmp_path):
        pass
    assert (tmp_path / "target").read_text() == "mine"
