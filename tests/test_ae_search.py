"""The search by cross-validation: its ranking is that of the folds' numbers, however it was cut short."""

import csv
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, call_script, is_one_error_line, run_script

import ae_search
from autoencoders.recipes import RECIPES

SEARCH = (
    "--dataset", "digits", "--hidden-sizes", "8", "16,8", "--code-sizes", 3, 5, "--folds", 3, "--epochs", 2,
    "--device", "cpu",
)  # fmt: skip
ONE = ("--dataset", "digits", "--hidden-sizes", 8, "--code-sizes", 3, "--folds", 2, "--epochs", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(exit status, lines on stderr, folder) of a search with two jobs that Ctrl-C stopped after two folds.

    It has a wide candidate too, so that much is left to do when the signal comes.
    """
    folder = tmp_path_factory.mktemp("stopped")
    more = ("--hidden-sizes", "8", "16,8", "4000", "--jobs", "2", "--output-dir", str(folder))
    command = [sys.executable, "ae_search.py", *map(str, SEARCH), *more]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        lines = [process.stderr.readline()]
        while lines[-1] and not lines[-1].startswith("2/18"):
            lines.append(process.stderr.readline())
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        return process.wait(), lines + process.stderr.readlines(), folder


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """(stdout, stderr, folder) of a complete search, one fold at a time; for looking at, not for writing into."""
    folder = tmp_path_factory.mktemp("search") / "out"
    process = run_script("ae_search.py", *SEARCH, "--output-dir", folder)
    assert process.returncode == 0, process.stderr
    return process.stdout, process.stderr, folder


def rows(folder):
    with (folder / "search.csv").open() as file:
        return list(csv.DictReader(file))


def errors(folder):
    return {(r["hidden_sizes"], r["code_size"], r["lr"]): [r[f"fold_{n}"] for n in (1, 2, 3)] for r in rows(folder)}


def test_every_combination_is_ranked_by_its_mean_with_its_corrected_standard_error(searched):
    out, err, folder = searched
    table = rows(folder)
    assert {(r["hidden_sizes"], r["code_size"]) for r in table} == {(h, c) for h in ("8", "16-8") for c in "35"}
    means = [float(r["val_mse_unit"]) for r in table]
    assert means == sorted(means) and [r["rank"] for r in table] == list("1234")
    for row in table:
        folds = np.array([float(row[f"fold_{n}"]) for n in (1, 2, 3)])
        assert float(row["val_mse_unit"]) == pytest.approx(folds.mean())
        assert float(row["standard_error"]) == pytest.approx(folds.std(ddof=1) * np.sqrt(1 / 3 + 1 / 2))
        sizes = [784, *map(int, row["hidden_sizes"].split("-")), int(row["code_size"])]
        weights = sum((a + 1) * b + (b + 1) * a for a, b in itertools.pairwise(sizes))
        assert int(row["parameters"]) == weights and float(row["seconds"]) > 0
    assert f"Best: {table[0]['hidden_sizes']}, code {table[0]['code_size']}" in out
    assert "12/12" in err and (folder / "search.png").exists()
    assert out.startswith("MSE on the folds held out, pixels in [0, 1]\n")


def test_a_candidate_that_diverges_comes_last_and_the_search_continues(tmp_path, capsys):
    flags = (*ONE, "--lr", 1e38, 1e-3, "--recipe", "bce", "--output-dir", tmp_path)
    status, out, err = call_script(capsys, ae_search.main, *flags)
    best, worst = rows(tmp_path)
    assert status == 0 and (best["diverged_folds"], worst["diverged_folds"]) == ("0", "2"), err
    assert (
        worst["val_mse_unit"] == "" and "diverged" in out and "diverged" in err and "Best: 8, code 3, lr 0.001" in out
    )


def test_where_all_diverge_it_says_so(tmp_path, capsys):
    flags = (*ONE, "--lr", 1e38, "--recipe", "bce", "--output-dir", tmp_path)
    status, out, _ = call_script(capsys, ae_search.main, *flags)
    assert status == 0 and "Every candidate diverged" in out and not (tmp_path / "search.png").exists()


def test_auto_is_the_code_size_of_the_pca_and_a_repeated_candidate_counts_once(few):
    args = ae_search.parser().parse_args(["--code-sizes", "auto", "7", "--hidden-sizes", "9", "9"])
    found = [(c.recipe.code_size, c.recipe.epochs) for c in ae_search.make_grid(args, few)]
    assert found == [(ae_search.fit_pca(few).components_for(0.95), 30), (7, 30)]


def test_the_batch_size_is_the_recipes_or_that_of_the_flag(few):
    for flags, size in (([], 256), (["--batch-size", "32"], 32)):
        args = ae_search.parser().parse_args(["--code-sizes", "3", *flags])
        assert {c.recipe.batch_size for c in ae_search.make_grid(args, few)} == {size}
    assert ae_search.parser(RECIPES["simple"]).parse_args([]).batch_size == RECIPES["simple"].batch_size


def test_ctrl_c_is_one_line_and_finished_folds_stay(stopped):
    status, lines, folder = stopped
    stored = len(list((folder / "folds").iterdir()))
    assert status == 130 and is_one_error_line(lines[-1]) and not (folder / "search.csv").exists()
    assert 2 <= stored < 18 and f"{stored} of 18 folds" in lines[-1]
    assert all(re.match(r"\d+/18 ", line) for line in lines[:-1]), lines


def test_a_stopped_search_continued_with_other_jobs_ends_in_the_same_bits(stopped, searched, tmp_path, capsys):
    shutil.copytree(stopped[2] / "folds", tmp_path / "folds")
    status, _, err = call_script(capsys, ae_search.main, *SEARCH, "--output-dir", tmp_path)
    assert status == 0 and re.match(r"\d+ of 12 folds", err)
    assert errors(tmp_path) == errors(searched[2])


@pytest.mark.parametrize(
    "flags",
    [
        ("--folds", 2000), ("--recipe", "conv"), ("--recipe", "sparse"), ("--image-size", 2),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_made(tmp_path, capsys, flags):
    folder = tmp_path / "out"
    status, out, err = call_script(capsys, ae_search.main, *ONE, *flags, "--output-dir", folder)
    assert status == 2 and out == "" and is_one_error_line(err) and not folder.exists()


@pytest.mark.parametrize(("folds", "distinguished"), [(2, False), (3, True)])
def test_few_folds_distinguish_candidates_only_by_many_standard_errors(folds, distinguished):
    """Student's t: behind by 7 standard errors is within chance for two folds (12.7), and not for three (4.3)."""
    spread = np.array([-1, 1, 0][:folds])
    behind = 7 * spread.std(ddof=1) * (1 / folds + 1 / (folds - 1)) ** 0.5 + spread
    assert ("too little" not in ae_search.format_best(two_ranked(behind))) == distinguished


def test_a_lead_that_only_independent_folds_would_show_is_too_little():
    """4 standard errors if the five folds shared no training images, and 2.7 as they do: 95% takes 2.8."""
    spread = np.array([-2, -1, 0, 1, 2])
    behind = 4 * spread.std(ddof=1) / 5**0.5 + spread
    assert "too little to distinguish" in ae_search.format_best(two_ranked(behind))


def two_ranked(behind):
    """Two candidates, the second behind the first by an error in each fold."""
    recipe = RECIPES["symmetric"].override({"code_size": 5})
    folds = (np.ones(len(behind)), 1 + behind)
    return [ae_search.Candidate(recipe, [{"val_mse_unit": error} for error in errors]) for errors in folds]


def test_the_picture_has_the_range_of_the_errors_and_one_candidate_has_no_front(tmp_path, capsys, figures):
    status, out, _ = call_script(capsys, ae_search.main, *ONE, "--recipe", "bce", "--output-dir", tmp_path)
    axes = figures[0].axes[0]
    assert status == 0 and "1 candidate, 2 folds" in figures[0].get_suptitle()
    assert axes.get_ylabel() == out.splitlines()[0] == "MSE on the folds held out, pixels in [0, 1]"
    assert [text.get_text() for text in figures[0].legends[0].texts] == ["code 3, learning rate 0.001"]
    assert axes.get_xlim()[1] > 2 * axes.get_xlim()[0] and axes.get_position().width > 0.5
