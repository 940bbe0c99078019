"""Command lines nobody should type: each ends with one line on stderr and status 2, and nothing is written."""

import os
import tempfile
from pathlib import Path

from conftest import is_one_error_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ae_pca
import ae_train
from autoencoders.data.sets import DATASETS
from autoencoders.recipes import RECIPES
from autoencoders.runtime import cli

NOT_A_NUMBER = st.sampled_from(
    ["", " ", "abc", "nan", "inf", "-inf", "1e999", "0x10", "--", "٣x", "1;ls", "$(ls)", "é"]
)
WORDS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=8)
NOT_WHOLE = st.one_of(NOT_A_NUMBER, st.just("1e9"), st.just("2.5"), st.integers(max_value=-1).map(str))
NEGATIVE = st.one_of(NOT_A_NUMBER, st.floats(max_value=-1e-300, allow_nan=False).map(str))


def no_choice(*choices):
    """Words that are none of the choices: hypothesis also tries those that our own sources contain."""
    return WORDS.filter(lambda word: word not in choices and not word.startswith("-") and not os.path.exists(word))


BAD_TRAIN = {
    "--dataset": no_choice(*DATASETS),
    "--image-size": st.one_of(NOT_WHOLE, st.sampled_from(["0", "3", "129"])),
    "--test-fraction": st.one_of(NEGATIVE, st.sampled_from(["0", "0.95", "0.1"])),  # digits have a test part
    "--split-seed": st.one_of(NOT_WHOLE, st.just("1")),
    "--recipe": no_choice(*RECIPES),
    "--leave-out": st.one_of(NOT_WHOLE, st.sampled_from(["10", "-1", "1,2", "70000"])),
    "--only": st.one_of(NOT_WHOLE, st.sampled_from(["10", "-1", "1,2", "70000"])),
    "--workers": NOT_WHOLE,
    "--hidden-sizes": st.sampled_from(["a,b", "0", "-5", "1,,2", ",", "1.5", "2500;", "1e3", "99999999999"]),
    "--code-size": st.one_of(NOT_WHOLE, st.just("0"), st.just("Auto")),
    "--activation": no_choice("relu", "gelu", "tanh", "leaky-relu"),
    "--shift": st.one_of(NOT_WHOLE, st.just("29")),
    "--binarize": no_choice("none", "static", "dynamic"),
    "--init": no_choice("default", "mean-image"),
    "--importance-samples": st.one_of(NOT_WHOLE, st.just("0")),
    "--init-scale": st.one_of(NEGATIVE, st.just("0")),
    "--code-activation": no_choice("relu", "none"),
    "--loss": no_choice("mse", "bce"),
    "--noise-factor": NEGATIVE,
    "--kl-weight": NEGATIVE,
    "--kl-anneal": no_choice("linear", "none"),
    "--batch-size": st.one_of(NOT_WHOLE, st.just("0")),
    "--epochs": st.one_of(NOT_WHOLE, st.just("0")),
    "--lr": st.one_of(NEGATIVE, st.just("0")),
    "--lr-schedule": no_choice("constant", "one-cycle", "cosine"),
    "--optimizer": no_choice("adam", "adamw"),
    "--weight-decay": NEGATIVE,
    "--grad-clip": NEGATIVE,
    "--seed": NOT_WHOLE,
    "--amp": no_choice("auto", "on", "off"),
    "--device": no_choice("auto", "cuda", "cpu", "mps", "cuda:0", "cpu:0", "mps:0"),
    "--log-interval": st.one_of(NOT_WHOLE, st.just("0")),
    "--pictures-every": st.one_of(NOT_WHOLE, st.just("0")),
    "--weights-every": st.one_of(NOT_WHOLE, st.just("0")),
    "--checkpoint-minutes": NEGATIVE,
    "--num-saes": st.one_of(NOT_WHOLE, st.just("0")),
    "--features": st.one_of(NOT_WHOLE, st.just("0")),
    "--k": st.one_of(NOT_WHOLE, st.just("0")),
    "--consistency-weight": NEGATIVE,
    "--consistency-warmup": NOT_WHOLE,
    "--revive": no_choice("lift", "off"),
    "--reinit-threshold": NEGATIVE,
    "--tracker": no_choice("tensorboard", "wandb", "swanlab"),
    "--tracker-interval": st.one_of(NOT_WHOLE, st.just("0")),
    "--unheard-of": WORDS,
}
BAD_PCA = {
    **{flag: BAD_TRAIN[flag] for flag in ("--dataset", "--image-size", "--test-fraction", "--split-seed")},
    "--max-samples": st.one_of(NOT_WHOLE, st.sampled_from(["0", "1"])),
    "--variance": st.one_of(NEGATIVE, st.sampled_from(["0", "1.01", "95"])),
    "--seed": NOT_WHOLE,
    "--workers": NOT_WHOLE,
}
GOOD = ["--dataset", "digits"]


def one_bad_flag(bad):
    """A sound command line with one flag of nonsense in it, written with or without an equals sign."""
    flag = st.sampled_from(sorted(bad)).flatmap(lambda name: st.tuples(st.just(name), bad[name], st.booleans()))
    return flag.map(lambda f: [*GOOD, f"{f[0]}={f[1]}"] if f[2] else [*GOOD, f[0], f[1]])


def refused(main, arguments, capsys):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        try:
            cli.run(lambda: main([*arguments, "--output-dir", str(folder)]), distributed=True)
            status = 0
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        assert status == 2 and is_one_error_line(err) and out == "", (arguments, status, out, err)
        assert not folder.exists()


quietly = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quietly
@given(arguments=one_bad_flag(BAD_TRAIN))
def test_no_command_line_of_the_trainer_gets_past_a_bad_flag(arguments, capsys):
    refused(ae_train.main, arguments, capsys)


@settings(quietly, max_examples=30)
@given(arguments=one_bad_flag(BAD_PCA))
def test_no_command_line_of_the_pca_gets_past_a_bad_flag(arguments, capsys):
    refused(ae_pca.main, arguments, capsys)
