"""The search by cross-validation: its numbers are those of training each fold oneself, however it was cut short."""

import contextlib
import csv
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, call_script, is_one_error_line
from sklearn.model_selection import KFold

import ae_search
from autoencoders.recipes import RECIPES
from autoencoders.runtime import cli
from autoencoders.runtime.device import Precision
from autoencoders.training import folds
from autoencoders.training.trainer import Trainer

CPU = torch.device("cpu")
SEARCH = (
    "--dataset", "digits", "--hidden-sizes", "8", "16,8", "--code-sizes", 3, 5, "--folds", 3, "--epochs", 6,
    "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(exit status, lines on stderr, folder) of a search, two folds at a time where the cores allow, and Ctrl-C.

    It offers a wide candidate too, so that much is left to do when the signal comes.
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
    """(stdout, stderr, folder) of a whole search, one fold at a time; for looking at, not for writing into."""
    folder, out, err = tmp_path_factory.mktemp("search") / "out", io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ae_search.main([*map(str, SEARCH), "--output-dir", str(folder)])
    return out.getvalue(), err.getvalue(), folder


def rows(folder):
    with (folder / "search.csv").open() as file:
        return list(csv.DictReader(file))


def errors(folder):
    return {(r["hidden_sizes"], r["code_size"], r["lr"]): [r[f"fold_{n}"] for n in (1, 2, 3)] for r in rows(folder)}


def test_every_combination_is_ranked_by_its_mean_with_its_standard_error(searched):
    out, err, folder = searched
    table = rows(folder)
    assert {(r["hidden_sizes"], r["code_size"]) for r in table} == {(h, c) for h in ("8", "16-8") for c in "35"}
    means = [float(r["val_mse"]) for r in table]
    assert means == sorted(means) and [r["rank"] for r in table] == list("1234")
    for row in table:
        folds = np.array([float(row[f"fold_{n}"]) for n in (1, 2, 3)])
        assert float(row["val_mse"]) == pytest.approx(folds.mean())
        assert float(row["standard_error"]) == pytest.approx(folds.std(ddof=1) / np.sqrt(3))
        sizes = [784, *map(int, row["hidden_sizes"].split("-")), int(row["code_size"])]
        weights = sum((a + 1) * b + (b + 1) * a for a, b in itertools.pairwise(sizes))
        assert int(row["parameters"]) == weights and float(row["seconds"]) > 0
    assert f"Best: {table[0]['hidden_sizes']}, code {table[0]['code_size']}" in out
    assert "12/12" in err and "left" in err and (folder / "search.png").exists()
    assert out.startswith("MSE on the folds held out, pixels in [-1, 1]\n")


def test_a_fold_is_the_suites_own_training_on_the_other_folds(searched, digits):
    recipe = RECIPES["symmetric"].override({"hidden_sizes": (8,), "code_size": 5, "epochs": 6, "seed": 0})
    train, held_out = list(KFold(3, shuffle=True, random_state=0).split(digits.train_images))[1]
    torch.manual_seed(0)
    images = digits.train_images[train], digits.train_images[held_out]
    trainer = Trainer(recipe.build(), recipe, *images, CPU, Precision("off", CPU))
    *_, last = trainer.epochs()
    assert float(errors(searched[2])["8", "5", "0.001"][1]) == pytest.approx(last["test_loss"], rel=1e-5)


def test_a_kept_fold_is_read_and_one_that_is_missing_or_changed_is_trained_again(
    searched, tmp_path, capsys, monkeypatch
):
    for file in (searched[2] / "folds").iterdir():
        (tmp_path / "folds").mkdir(exist_ok=True)
        (tmp_path / "folds" / file.name).write_bytes(file.read_bytes())
    gone, changed, cut, *_ = sorted((tmp_path / "folds").iterdir())
    gone.unlink()
    record = json.loads(changed.read_text())
    record["result"]["val_mse"] /= 2
    changed.write_text(json.dumps(record))
    cut.write_text(cut.read_text()[:100])
    trained = []
    train = folds.Fold.train
    monkeypatch.setattr(folds.Fold, "train", lambda fold, images: trained.append(fold) or train(fold, images))
    status, _, err = call_script(capsys, ae_search.main, *SEARCH, "--jobs", 1, "--output-dir", tmp_path)
    assert status == 0 and len(trained) == 3 and "9 of 12 folds are kept" in err
    assert err.count("damaged") == 2 and changed.name in err and cut.name in err
    assert errors(tmp_path) == errors(searched[2])


def test_a_search_with_more_candidates_trains_only_those(searched, digits, monkeypatch):
    recipe = RECIPES["symmetric"].override({"hidden_sizes": (8,), "code_size": 3, "epochs": 6, "seed": 0})
    fold = folds.Fold(recipe, 0, 3, 0, CPU, 1)
    folder = searched[2] / "folds"
    assert folds.kept(fold.facts(digits), folder)
    others = [
        replace(fold, number=1, of=4), replace(fold, seed=1), replace(fold, threads=2),
        replace(fold, recipe=recipe.override({"lr": 0.1})), replace(fold, recipe=recipe.override({"epochs": 7})),
    ]  # fmt: skip
    assert not any(folds.kept(other.facts(digits), folder) for other in others)
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert not folds.kept(fold.facts(digits), folder)
    monkeypatch.undo()
    swapped = replace(digits, train_images=digits.train_images[::-1].copy())
    assert not folds.kept(fold.facts(swapped), folder)


def test_a_candidate_that_diverges_comes_last_and_the_search_goes_on(tmp_path, capsys):
    flags = ("--dataset", "digits", "--hidden-sizes", 8, "--code-sizes", 3, "--folds", 2, "--epochs", 1)
    flags += ("--lr", 1e38, 1e-3, "--device", "cpu", "--recipe", "bce", "--output-dir", tmp_path)
    status, out, err = call_script(capsys, ae_search.main, *flags)
    best, worst = rows(tmp_path)
    assert status == 0 and (best["diverged_folds"], worst["diverged_folds"]) == ("0", "2"), err
    assert worst["val_mse"] == "" and "diverged" in out and "diverged" in err and "Best: 8, code 3, lr 0.001" in out


def test_where_all_diverge_it_says_so(tmp_path, capsys):
    flags = ("--dataset", "digits", "--hidden-sizes", 8, "--code-sizes", 3, "--folds", 2, "--epochs", 1)
    flags += ("--lr", 1e38, "--device", "cpu", "--recipe", "bce", "--output-dir", tmp_path)
    status, out, _ = call_script(capsys, ae_search.main, *flags)
    assert status == 0 and "Every candidate diverged" in out and not (tmp_path / "search.png").exists()


def test_auto_is_the_code_size_of_the_pca_and_an_offer_made_twice_counts_once(digits, monkeypatch):
    monkeypatch.setattr(ae_search, "fit_pca", lambda images: type("", (), {"components_for": lambda s, v: 25})())
    args = ae_search.parser().parse_args(["--code-sizes", "auto", "25", "7", "--hidden-sizes", "9", "9"])
    found = [(c.recipe.code_size, c.recipe.epochs) for c in ae_search.candidates(args, digits)]
    assert found == [(25, 30), (7, 30)]


def test_ctrl_c_is_one_line_and_what_ended_is_kept(stopped):
    status, lines, folder = stopped
    kept = len(list((folder / "folds").iterdir()))
    assert status == 130 and is_one_error_line(lines[-1]) and not (folder / "search.csv").exists()
    assert 2 <= kept < 18 and f"{kept} of 18 folds are kept" in lines[-1]
    assert all(re.match(r"\d+/18 ", line) or "--jobs" in line for line in lines[:-1]), lines


def test_a_search_stopped_and_taken_up_again_with_other_jobs_ends_in_the_same_bits(stopped, searched, tmp_path, capsys):
    shutil.copytree(stopped[2] / "folds", tmp_path / "folds")
    status, _, err = call_script(capsys, ae_search.main, *SEARCH, "--output-dir", tmp_path)
    assert status == 0 and re.match(r"\d+ of 12 folds are kept", err)
    assert errors(tmp_path) == errors(searched[2])


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt(), 130), (cli.Stopped("", 143), 143)], ids=str)
def test_one_at_a_time_too_a_signal_is_one_line(tmp_path, capsys, monkeypatch, stop, status):
    results = iter([{"val_mse": 0.1, "seconds": 1.0}])

    def train(fold, images):
        for result in results:
            return result
        raise stop

    monkeypatch.setattr(folds.Fold, "train", train)
    ended, _, err = call_script(capsys, ae_search.main, *SEARCH, "--output-dir", tmp_path)
    assert ended == status and "1 of 12 folds are kept" in err and is_one_error_line(err.splitlines(True)[-1])


@pytest.mark.parametrize(
    "flags",
    [
        ("--folds", 1), ("--folds", 2000), ("--hidden-sizes", "a"), ("--code-sizes", "0"), ("--lr", "0"),
        ("--recipe", "conv"), ("--recipe", "sparse"), ("--dataset", "nowhere"), ("--jobs", 0), ("--threads", 0),
        ("--image-size", 2), ("--hidden-sizes", "99999999"),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_made(tmp_path, capsys, flags):
    folder = tmp_path / "out"
    given = ("--dataset", "digits", "--code-sizes", 3, *map(str, flags), "--output-dir", folder)
    status, out, err = call_script(capsys, ae_search.main, *given)
    assert status == 2 and out == "" and is_one_error_line(err) and not folder.exists()


def test_no_more_jobs_than_cores_and_memory_have_room_for(digits, monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert ae_search.allowed_jobs(3, 2, 1e6, digits) == 3 and capsys.readouterr().err == ""
    assert ae_search.allowed_jobs(9, 2, 1e6, digits) == 4 and "allow 4" in capsys.readouterr().err
    monkeypatch.setattr("autoencoders.data.stored.memory", lambda: 5e9)
    assert ae_search.allowed_jobs(9, 1, 1e8, digits) == 1 and ae_search.allowed_jobs(1, 99, 1e12, digits) == 1


def test_the_front_holds_what_no_other_candidate_beats_in_both(figures):
    from autoencoders.figures import search

    size, error = np.array([5, 1, 3, 3, 9]), np.array([0.2, 0.9, 0.5, 0.4, 0.3])
    search(size, error, error / 10, list("abccd"), ["one", "two"] * 2 + ["one"], "title", "MSE")
    line = next(line for line in figures[0].axes[0].lines if line.get_label() == "Pareto front")
    assert list(zip(line.get_xdata(), line.get_ydata())) == [(1, 0.9), (3, 0.4), (3, 0.4), (5, 0.2), (9, 0.2)]


@pytest.mark.parametrize(("folds", "told_apart"), [(2, False), (3, True)])
def test_few_folds_tell_candidates_apart_only_by_many_standard_errors(folds, told_apart):
    """Student's t: behind by 7 standard errors is within chance for two folds (12.7), and not for three (4.3)."""
    behind = np.array([-1, 1, 0][:folds]) / np.std([-1, 1, 0][:folds], ddof=1) * folds**0.5 + 7
    whole = [
        ae_search.Candidate(RECIPES["symmetric"].override({"code_size": 5}), 1, [{"val_mse": e} for e in errors])
        for errors in (np.ones(folds), 1 + behind)
    ]
    assert ("too little to tell them apart" not in ae_search.verdict(whole)) == told_apart


def test_the_picture_says_the_range_that_errors_are_in(figures):
    for name, pixels in (("symmetric", "pixels in [-1, 1]"), ("bce", "pixels in [0, 1]")):
        recipe = RECIPES[name].override({"code_size": 5})
        candidate = ae_search.Candidate(recipe, 100, [{"val_mse": 0.1}, {"val_mse": 0.2}])
        ae_search.picture([candidate], "title", ae_search.error_label(recipe))
        assert figures[-1].axes[0].get_ylabel() == f"MSE on the folds held out, {pixels}"


def test_a_candidate_is_named_where_it_lies_and_those_that_lie_together_once(figures):
    from autoencoders.figures import search

    size, error = np.array([10, 10, 10, 20, 11]), np.array([0.1, 0.101, 0.5, 0.1, 0.1])
    search(size, error, error / 100, ["a", "a", "a", "a", "b"], ["one"] * 5, "title", "MSE")
    axes = figures[0].axes[0]
    assert sorted((t.get_text(), *t.xy) for t in axes.texts) == [
        ("a", 10, pytest.approx(0.10201)), ("a", 10, pytest.approx(0.505)), ("a", 20, pytest.approx(0.101)),
        ("b", 11, pytest.approx(0.101)),
    ]  # fmt: skip
    front = next(line for line in axes.lines if line.get_label() == "Pareto front")
    assert all(t.get_bbox_patch().get_facecolor() == (1, 1, 1, 1) and t.zorder > front.zorder for t in axes.texts)


def test_one_candidate_has_no_front(tmp_path, capsys, figures):
    flags = ("--dataset", "digits", "--hidden-sizes", 8, "--code-sizes", 3, "--folds", 2, "--epochs", 1)
    status, *_ = call_script(capsys, ae_search.main, *flags, "--device", "cpu", "--output-dir", tmp_path)
    assert status == 0 and "1 candidate, 2 folds" in figures[0].axes[0].get_title()
    assert [text.get_text() for text in figures[0].legends[0].texts] == ["code 3, learning rate 0.001"]
