import argparse
import os
import subprocess
import sys

import pytest
from conftest import ROOT, is_one_error_line, run_script

import ae_cli
from ae_errors import Fault, Mistake


@pytest.mark.parametrize("script", ["ae_pca.py", "ae_train.py"])
def test_help_shows_every_flag_and_needs_no_torch(script):
    process = run_script("-X", "importtime", script, "--help")
    assert process.returncode == 0
    for flag in ("--output-dir", "--data-root", "--dataset", "--workers", "--seed"):
        assert flag in process.stdout
    imported = {line.split("|")[-1].strip() for line in process.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"torch", "torchvision", "matplotlib", "sklearn"}


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (Mistake("wrong\n  flag"), 2, "wrong flag"),
        (Fault("bad disk"), 1, "bad disk"),
        (MemoryError(), 1, "memory"),
        (OSError(28, "No space left on device", "x.png"), 1, "x.png: No space left on device"),
        (KeyboardInterrupt(), 130, "Ctrl-C"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_goes_wrong_outside_our_code_is_one_line_and_a_status(capsys, error, status, says):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        ae_cli.run(main)
    err = capsys.readouterr().err
    assert stop.value.code == status and is_one_error_line(err) and says in err


def test_a_bug_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        ae_cli.run(lambda: 1 // 0)


def test_a_reader_that_leaves_early_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    code = "import ae_cli; ae_cli.run(lambda: print('x' * 100_000))"
    with os.fdopen(write, "w") as pipe:
        process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 1 and process.stderr == ""


@pytest.mark.parametrize(("text", "value"), [("1", 1), (" 7 ", 7), ("2147483647", 2**31 - 1)])
def test_whole_numbers_are_taken(text, value):
    assert ae_cli.integer(1)(text) == value


@pytest.mark.parametrize("text", ["0", "-3", "abc", "1e9", "1.0", "", "2147483648", "9" * 5000, "nan"])
def test_other_numbers_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        ae_cli.integer(1)(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "-inf", "1e999", "x", ""])
def test_a_learning_rate_is_finite_and_above_zero(text):
    assert ae_cli.number(0, above=True)("1e-3") == 1e-3
    with pytest.raises(argparse.ArgumentTypeError):
        ae_cli.number(0, above=True)(text)


@pytest.mark.parametrize(("text", "value"), [("2500", (2500,)), ("128, 64", (128, 64)), ("", ()), ("  ", ())])
def test_widths_are_separated_by_commas_and_may_be_none(text, value):
    assert ae_cli.sizes(text) == value


@pytest.mark.parametrize("text", ["a,b", "0", "-5", "64,", ",", "64,,32", "64;32", "6.4"])
def test_other_widths_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        ae_cli.sizes(text)


def test_a_code_size_is_a_number_or_auto():
    assert ae_cli.code_size("auto") == "auto" and ae_cli.code_size("154") == 154
    with pytest.raises(argparse.ArgumentTypeError):
        ae_cli.code_size("Auto")
