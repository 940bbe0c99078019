import argparse
import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from functools import partial

import pytest
import torch
from conftest import ROOT, TRAIN, call_script, is_one_error_line, only_warnings, run_script

import ae_eval
import ae_export
import ae_generate
import ae_pca
import ae_reproduce
import ae_search
import ae_train
import mnist_sae_train
from autoencoders.recipes import RECIPES, SETTINGS
from autoencoders.runtime import cli, signals
from autoencoders.runtime.errors import RunError, UsageError
from benchmarks import code_sizes, nodes, parallel, streaming


@pytest.mark.parametrize("script", ["ae_pca.py", "ae_train.py"])
def test_help_shows_every_flag_and_needs_no_torch(script):
    process = run_script("-X", "importtime", script, "--help")
    assert process.returncode == 0
    for flag in ("--output-dir", "--data-root", "--dataset", "--image-size", "--seed"):
        assert flag in process.stdout
    imported = {line.split("|")[-1].strip() for line in process.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"torch", "torchvision", "matplotlib", "sklearn"}


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (UsageError("wrong\n  flag"), 2, "wrong flag"),
        (RunError("bad disk"), 1, "bad disk"),
        (MemoryError(), 1, "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), 1, "memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "memory"),
        (signals.Stopped("stopped; saved", 143), 143, "saved"),
        (OSError(28, "No space left on device", "x.png"), 1, "x.png: No space left on device"),
        (KeyboardInterrupt(), 130, "Ctrl-C"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_goes_wrong_outside_our_code_is_one_line_and_a_status(capsys, error, status, says):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    err = capsys.readouterr().err
    assert stop.value.code == status and is_one_error_line(err) and says in err


def test_a_bug_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 // 0)


@pytest.mark.parametrize("text", ["an illegal memory access was encountered", "refer to a single memory location"])
def test_an_error_about_memory_that_is_not_used_up_keeps_its_traceback(text):
    def main():
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=text):
        cli.run(main)


def run_code(code, **options):
    """The finished process that ran this Python text, with our package."""
    command = [sys.executable, "-c", f"import os, sys\nfrom autoencoders.runtime import cli\n{code}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, text=True, env=environment, **options)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="writes to /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_stdout_is_named(monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:
        process = run_code("cli.run(lambda: print('x'))", stdout=full, stderr=subprocess.PIPE)
    assert process.returncode == 1 and is_one_error_line(process.stderr)
    assert process.stderr.startswith("error: standard output: No space left")


def test_a_reader_that_leaves_early_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    code = "from autoencoders.runtime import cli; cli.run(lambda: print('x' * 100_000))"
    with os.fdopen(write, "w") as pipe:
        process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 1 and process.stderr == ""


@pytest.mark.parametrize(("text", "value"), [("1", 1), (" 7 ", 7), ("2147483647", 2**31 - 1)])
def test_whole_numbers_are_taken(text, value):
    assert cli.integer(1)(text) == value


@pytest.mark.parametrize("text", ["0", "-3", "abc", "1e9", "1.0", "", "2147483648", "9" * 5000, "nan"])
def test_other_numbers_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        cli.integer(1)(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "-inf", "1e999", "x", ""])
def test_a_learning_rate_is_finite_and_above_zero(text):
    assert cli.number(0, exclusive=True)("1e-3") == 1e-3
    with pytest.raises(argparse.ArgumentTypeError):
        cli.number(0, exclusive=True)(text)


@pytest.mark.parametrize(("text", "value"), [("2500", (2500,)), ("128, 64", (128, 64)), ("", ()), ("  ", ())])
def test_widths_are_separated_by_commas_and_may_be_none(text, value):
    assert cli.sizes(text) == value


@pytest.mark.parametrize("text", ["a,b", "0", "-5", "64,", ",", "64,,32", "64;32", "6.4"])
def test_other_widths_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        cli.sizes(text)


def test_a_path_may_begin_at_home_and_is_not_empty(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [str(cli.path(text)) for text in ("~/out", "out", "a~b")] == ["/home/me/out", "out", "a~b"]
    with pytest.raises(argparse.ArgumentTypeError, match="no such user"):
        cli.path("~nobody-of-this-name/out")
    for text in ("", " "):
        with pytest.raises(argparse.ArgumentTypeError, match="empty"):
            cli.path(text)


def test_a_code_size_is_a_number_or_auto():
    assert cli.code_size("auto") == "auto" and cli.code_size("154") == 154
    with pytest.raises(argparse.ArgumentTypeError):
        cli.code_size("Auto")


SCRIPTS = {
    "ae_pca.py": ae_pca,
    "ae_train.py": ae_train,
    "mnist_sae_train.py": mnist_sae_train,
    "ae_generate.py": ae_generate,
    "ae_eval.py": ae_eval,
    "ae_export.py": ae_export,
    "ae_search.py": ae_search,
    "ae_reproduce.py": ae_reproduce,
}
GIVEN = {
    "lifetime_sparsity": "0.5",
    "image_size": "28",
    "test_fraction": "0.5",
    "code_size": "7",
    "hidden_sizes": "5,6",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_of_every_script_may_be_spelt_with_underscores(script):
    parser = SCRIPTS[script].parser()
    needed = ["--run", "x"] if script in ("ae_generate.py", "ae_eval.py", "ae_export.py") else []
    for action in parser._actions:
        dashed = max(action.option_strings, key=len)
        if "-" not in dashed.strip("-") or not action.option_strings:
            continue
        value = GIVEN.get(action.dest, str((*(action.choices or ()), 3)[0]))
        spelt = "--" + dashed.strip("-").replace("-", "_")
        one, other = ([flag, value] if action.nargs != 0 else [flag] for flag in (dashed, spelt))
        assert parser.parse_args(needed + one) == parser.parse_args(needed + other), spelt
        if action.nargs != 0:
            assert parser.parse_args([*needed, f"{spelt}={value}"]) == parser.parse_args(needed + one)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_empty_path_is_refused_by_every_flag_of_every_script(script, capsys):
    paths = [a for a in SCRIPTS[script].parser()._actions if a.dest in ("run", "output_dir", "data_root", "input")]
    assert paths
    for action in paths:
        status, _, err = call_script(capsys, SCRIPTS[script].main, action.option_strings[0], "")
        assert status == 2 and is_one_error_line(err) and action.option_strings[0] in err and "empty" in err


LISTS = [
    (ae_train, "--hidden-sizes", "500,250", (500, 250)),
    (ae_train, "--tracker", "tensorboard,wandb", ("tensorboard", "wandb")),
    (mnist_sae_train, "--tracker", "wandb,swanlab", ("wandb", "swanlab")),
    (ae_search, "--code-sizes", "2,auto", (2, "auto")),
    (ae_search, "--lr", "1e-3,2e-3", (1e-3, 2e-3)),
    (ae_generate, "--interpolate", "3,8", (3, 8)),
    (ae_reproduce, "--only", "bce,vae", ("bce", "vae")),
    (code_sizes, "--code-sizes", "2,8", (2, 8)),
    (code_sizes, "--recipes", "tuned,vae", ("tuned", "vae")),
    (nodes, "--only", "simple,conv", ("simple", "conv")),
    (parallel, "--only", "simple,conv", ("simple", "conv")),
    (parallel, "--ranks", "2,3", (2, 3)),
    (streaming, "--only", "ae_pca.py,simple", ("ae_pca.py", "simple")),
]


@pytest.mark.parametrize(("script", "flag", "text", "value"), LISTS, ids=lambda v: getattr(v, "__name__", None))
def test_every_list_takes_commas_and_blanks(script, flag, text, value):
    needed, name = ["--run", "x"] if script is ae_generate else [], flag[2:].replace("-", "_")
    spaced = text.replace(",", " ")
    for words in ([text], spaced.split(), [spaced], text.replace(",", ", ").split(), [text.replace(",", " , ")]):
        assert tuple(getattr(script.parser().parse_args([*needed, flag, *words]), name)) == value, words
    assert tuple(getattr(script.parser().parse_args([*needed, f"{flag}={text}"]), name)) == value


@pytest.mark.parametrize(("script", "flag", "text", "value"), LISTS, ids=lambda v: getattr(v, "__name__", None))
def test_a_list_without_items_or_with_a_gap_is_one_error(script, flag, text, value, capsys):
    if script in SCRIPTS.values():
        needed = ["--run", "x"] if script is ae_generate else []
        for words in ([], [text + ","], [","], [text, ",", ",", text]):
            status, _, err = call_script(capsys, script.main, *needed, flag, *words)
            assert status == 2 and is_one_error_line(err) and f"argument {flag}: " in err, words


def test_layers_are_joined_by_commas_and_candidates_separated_by_blanks():
    args = ae_search.parser().parse_args(["--hidden-sizes", "500,250", "1000", ""])
    assert args.hidden_sizes == [(500, 250), (1000,), ()]
    assert ae_train.parser().parse_args(["--hidden-sizes", ""]).hidden_sizes == ()


def test_a_repeated_tracker_is_added_and_another_repeated_list_replaced():
    flags = ["--tracker", "wandb", "--hidden-sizes", "5", "--tracker=swanlab,tensorboard", "--hidden-sizes", "6", "7"]
    args = ae_train.parser().parse_args(flags)
    assert args.tracker == ("wandb", "swanlab", "tensorboard") and args.hidden_sizes == (6, 7)


@pytest.mark.parametrize(
    ("script", "flag", "near"),
    [
        ("ae_train.py", "--epoch", "--epochs"),
        ("ae_train.py", "--code_sise=3", "--code-size"),
        ("ae_train.py", "--checkpoint", "--checkpoint-minutes"),
        ("ae_eval.py", "--rnu", "--run"),
        ("mnist_sae_train.py", "--analyse_loss", "--analyze-loss"),
        ("ae_pca.py", "--latent-dim", ""),
        ("ae_train.py", "--unheard-of", ""),
    ],
)
def test_an_unknown_flag_is_answered_with_the_nearest(script, flag, near, capsys):
    status, _, err = call_script(capsys, SCRIPTS[script].main, flag, "3")
    name = flag.partition("=")[0]
    asked = f" (did you mean {near}?)" if near else ""
    assert status == 2 and is_one_error_line(err) and f"error: unknown flag {name}{asked}; see " in err


def test_words_after_two_dashes_are_not_changed():
    args = parallel.parser().parse_args(["--ranks", "2", "--", "--hidden_sizes", "5"])
    assert args.flags == ["--hidden_sizes", "5"] and args.ranks == (2,)


def test_a_flag_of_another_recipe_is_hidden_and_refused_by_name(capsys):
    status, _, err = call_script(capsys, ae_train.main, "--recipe", "simple", "--kl-weight", 2)
    assert status == 2 and "error: --kl-weight does not apply to the recipe simple, only to vae" in err
    assert "--workers" not in ae_pca.parser().format_help()
    assert ae_pca.parser().parse_args(["--workers", "3"]).workers == 3


def test_a_value_keeps_its_underscores():
    assert str(ae_pca.parser().parse_args(["--output_dir=a_b-c"]).output_dir) == "a_b-c"
    assert str(ae_pca.parser().parse_args(["--output_dir", "a_b-c"]).output_dir) == "a_b-c"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_version_is_said_at_once_and_stands_in_one_place(script):
    process = run_script("-X", "importtime", script, "--version")
    assert process.returncode == 0 and " torch\n" not in process.stderr
    assert re.fullmatch(rf"autoencoder suite {cli.VERSION} \(torch [^ ]+, Python [^ ]+\)\n", process.stdout)
    files = [
        path
        for path in [*ROOT.glob("*"), *ROOT.glob("autoencoders/*/*.py")]
        if path.suffix in (".py", ".toml", ".txt") and cli.VERSION in path.read_text()
    ]
    assert [path.name for path in files if f'"{cli.VERSION}"' in path.read_text()] == ["cli.py"]


@pytest.mark.parametrize("name", RECIPES)
def test_help_shows_the_defaults_of_the_recipe_that_is_named(name, capsys):
    recipe = RECIPES[name]
    for order in (["--recipe", name, "--help"], ["--help", f"--recipe={name}"]):
        status, out, _ = call_script(capsys, ae_train.main, *order)
        text = " ".join(out.split())
        assert status == 0 and f"--batch-size N images per step (default: {recipe.batch_size})" in text
        assert f"(default: {recipe.default_folder})" in text and f"(default: {recipe.epochs})" in text
        assert f"Flags and defaults are those of the recipe {name}; --recipe NAME --help shows those of another" in text
        model = text.partition(" model: ")[2]
        for setting in SETTINGS["model"]:
            assert (f" --{setting.replace('_', '-')} " in model) == (setting in recipe.model_args), setting
    for group in ("data:", "model:", "training:", "output:"):
        assert f"\n{group}\n" in out


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_the_default_of_every_flag_that_has_one(script):
    parser = SCRIPTS[script].parser()
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        if action.option_strings and action.default not in (None, False, argparse.SUPPRESS, [], ["auto"]):
            described = re.search(r"\(default: .*\)", action.help)
            assert described or f"(default: {action.default})" in text, action.dest


def test_quiet_leaves_results_and_warnings_alone_and_says_no_more(tmp_path, capsys):
    flags = (*TRAIN, "--output-dir", tmp_path, "--quiet")
    status, out, err = call_script(capsys, ae_train.main, *flags, "--log-interval", 1)
    assert status == 0 and only_warnings(err) and "behind PCA" in err
    assert [line.split()[0] for line in out.splitlines()] == ["Number", "Test", "Wrote", "Took"]
    assert call_script(capsys, ae_train.main, *flags, "--resume") == (0, "", "")
    status, _, err = call_script(capsys, ae_train.main, *flags, "--resume", "--lr", 1)
    assert status == 2 and is_one_error_line(err)


DRY = ("--dataset", "digits", "--dry-run", "--output-dir")


@pytest.mark.parametrize("main", [ae_train.main, ae_reproduce.main])
def test_a_dry_run_says_what_it_would_do_and_touches_nothing(main, tmp_path, capsys):
    status, out, err = call_script(capsys, main, *DRY, tmp_path / "out")
    assert status == 0 and err == "" and f"into {tmp_path / 'out'}" in out and "Would " in out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_resolves_recipe_images_code_size_and_epochs(tmp_path, capsys):
    out = call_script(capsys, ae_train.main, *DRY, tmp_path, "--lr", 0.5, "--tracker", "wandb")[1]
    for text in (
        "code_size 25",
        "epochs 1 to 100",
        "lr 0.5",
        "1,500 for training",
        "cpu",
        "trackers: wandb",
        "mnist_ae.pt",
    ):
        assert text in out
    assert call_script(capsys, ae_train.main, *DRY, tmp_path, "--code-size", 0)[0] == 2
    assert call_script(capsys, ae_train.main, *DRY, tmp_path, "--device", "tpu")[0] == 2
    missing = ("--dry-run", "--data-root", tmp_path / "none", "--output-dir", tmp_path / "out")
    for main in (ae_train.main, ae_reproduce.main):
        for dataset in ("mnist", "auto"):
            status, out, _ = call_script(capsys, main, *missing, "--dataset", dataset)
            assert status == 0 and "download" in out and not list(tmp_path.iterdir())
            assert ("digits" in out) == (dataset == "auto")


def test_a_dry_run_of_a_resume_says_where_it_goes_on_and_refuses_what_does_not_fit(trained, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in trained[1].iterdir()}
    flags = ("--dataset", "digits", "--hidden-sizes", 64, "--output-dir", trained[1], "--dry-run", "--resume")
    status, out, err = call_script(capsys, ae_train.main, *flags, "--epochs", 5)
    assert status == 0 and "Training: epochs 3 to 5" in out and "epoch 3, step 1" in err
    assert call_script(capsys, ae_train.main, *flags, "--epochs", 5, "--lr", 0.5)[0] == 2
    assert {path.name: path.stat().st_mtime_ns for path in trained[1].iterdir()} == before


def test_a_dry_run_of_what_cannot_be_read_fails_as_the_run_would(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    status, _, err = call_script(capsys, ae_train.main, "--dataset", tmp_path / "empty", "--dry-run")
    assert status == 2 and is_one_error_line(err)


def in_a_terminal(*arguments, **environment):
    """What a script shows in a real terminal: (status, everything written to it)."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, *map(str, arguments)], {**os.environ, **environment})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    shown = b""
    try:
        while data := os.read(terminal, 65536):
            shown += data
    except OSError:  # how Linux says that the other end is closed
        pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_in_a_terminal_the_bar_shows_epoch_loss_speed_and_time_left_and_no_colour(tmp_path):
    # Four epochs in batches of four are long enough for the bar, which is drawn three times a second, on any machine.
    long = ("--batch-size", 4, "--epochs", 4)
    status, shown = in_a_terminal("ae_train.py", *TRAIN, *long, "--output-dir", tmp_path, NO_COLOR="1")
    assert status == 0 and "Wrote mnist_ae.pt" in shown
    bar = re.compile(r"epoch \d/4: +\d+%\|.*\| *[\d.?]+k? ?images/s, loss \d\.\d{4}, [\d:?]+ left")
    assert bar.search(shown), shown
    assert not re.search(r"\x1b\[[\d;]*m", shown)
    status, shown = in_a_terminal("ae_train.py", *TRAIN, "--output-dir", tmp_path, "--quiet")
    assert status == 0 and "images/s" not in shown


def test_a_table_has_columns_of_one_width_or_is_markdown():
    header, rows = ("name", "x"), [("a", "1.5"), ("longer", "10")]
    assert cli.format_table(header, rows) == "name      x\na       1.5\nlonger   10"
    assert cli.format_table(header, rows, markdown=True).splitlines()[1:3] == ["| --- | --- |", "| a | 1.5 |"]


def test_messages_go_to_stderr_and_quiet_hides_all_but_warnings(capsys):
    def main(flags):
        cli.Parser("a test").parse_args(flags)
        cli.log.info("progress")
        cli.log.warning("beware\nof this")
        logging.getLogger("autoencoders.data.sets").info("also progress")

    for flags, lines in (([], ["progress", "warning: beware of this", "also progress"]),
                         (["--quiet"], ["warning: beware of this"])):  # fmt: skip
        cli.run(partial(main, flags))
        out, err = capsys.readouterr()
        assert out == "" and err.splitlines() == lines


def test_only_the_main_process_of_torchrun_runs_a_script_that_is_not_distributed(monkeypatch):
    for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"), "12101"):
        monkeypatch.setenv(name, value)
    cli.run(lambda: pytest.fail("it ran"))


@pytest.mark.parametrize("name", ["out\x1b[2J", "a\x07", "\u202eevil", "a\nb"], ids=ascii)
def test_a_path_that_cannot_be_shown_is_refused(name):
    with pytest.raises(argparse.ArgumentTypeError, match="cannot be shown"):
        cli.path(name)
