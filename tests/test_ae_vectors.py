"""The features of vectors: found where they are known, reported as numbers, and compared between runs."""

import csv
import json

import numpy as np
import pytest
from conftest import call_script, is_one_error_line, run_script

import ae_vectors

FLAGS = ("--features", 24, "--k", 3, "--epochs", 20, "--batch-size", 32, "--device", "cpu")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """1,000 sums of 3 of 24 directions in 16 dimensions, around a mean far from 0, in units of a thousandth."""
    path, random = tmp_path_factory.mktemp("vectors") / "sums.npy", np.random.default_rng(0)
    directions = random.standard_normal((24, 16)) / 4
    chosen = random.random((1000, 24)).argsort(axis=1) < 3
    np.save(path, (1e-3 * ((chosen * random.uniform(1, 2, chosen.shape)) @ directions + 5)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def runs(vectors):
    """Two runs by the script as a process; the second one is compared with the first."""
    folders = [vectors.parent / f"seed{seed}" for seed in (1, 2)]
    for seed, folder in enumerate(folders, 1):
        others = ("--agree-with", folders[0]) * (seed > 1)
        flags = (*FLAGS, "--standardize", "--seed", seed, "--output-dir", folder, *others)
        done = run_script("ae_vectors.py", vectors, *flags)
        assert done.returncode == 0, done.stderr
    return folders, done.stdout


def test_a_sparse_code_of_standardized_vectors_is_ahead_of_pca_with_as_many_numbers(runs):
    (folder, _), _ = runs
    metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
    assert metrics["test_mse_unit"][0] < 0.8 * metrics["pca_test_mse_unit"]
    assert 0.8 < metrics["explained_variance"][0] < 1
    assert not list(folder.glob("reconstructions*")) + list(folder.glob("sae_features*"))


def test_features_are_rows_of_numbers_with_their_stability(runs):
    (first, second), out = runs
    tables = [list(csv.DictReader((folder / "features.csv").open())) for folder in (first, second)]
    assert list(tables[0][0]) == ["feature", "firing_rate", "explained"]
    assert list(tables[1][0]) == ["feature", "stability", "firing_rate", "explained"]
    assert sum(float(row["firing_rate"]) for row in tables[0]) == pytest.approx(3)
    found = json.loads((second / "evaluation.json").read_text())["agreement"]
    assert found["independent runs"]["pw_mcc"] > found["untrained"]["pw_mcc"] + 0.1
    assert "most stable quarter" in out


def test_a_finished_run_is_measured_again_without_training(runs, vectors, capsys):
    folder = runs[0][0]
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    flags = (*FLAGS, "--standardize", "--seed", 1, "--output-dir", folder, "--resume", "--agree-with", runs[0][1])
    status, out, _ = call_script(capsys, ae_vectors.main, vectors, *flags)
    assert status == 0 and "Epoch" not in out and "independent runs" in out
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == before


def test_streamed_vectors_train_too(vectors, tmp_path, capsys):
    flags = ("--epochs", 1, "--features", 24, "--k", 3, "--stream", "on", "--output-dir", tmp_path / "run")
    status, out, err = call_script(capsys, ae_vectors.main, vectors, *flags)
    assert status == 0, err
    assert "Variance explained" in out


def test_wrong_input_is_one_line(runs, vectors, tmp_path, capsys, trained):
    np.save(tmp_path / "images.npy", np.zeros((9, 8, 8), np.uint8))
    for flags, words in (
        ((tmp_path / "images.npy",), "expected floats (N, d)"),
        ((tmp_path / "none.npy",), "none.npy"),
        ((vectors, "--recipe", "simple"), "invalid choice"),
        ((vectors, "--epochs", 0), "nothing to train"),
        ((vectors, "--agree-with", trained[1]), "something else than these vectors"),
        ((vectors, "--agree-with", tmp_path), "does not exist"),
        ((vectors, "--agree-with", runs[0][0]), "only one of the two is standardized"),
        ((vectors, *FLAGS, "--standardize", "--seed", 1, "--agree-with", runs[0][0]), "the same seed and settings"),
    ):
        status, _, err = call_script(capsys, ae_vectors.main, *flags, "--output-dir", tmp_path / "out")
        assert status in (1, 2) and is_one_error_line(err) and words in err
    status, _, err = call_script(capsys, ae_vectors.main, vectors, "--output-dir", vectors.parent)
    assert status == 2 and "where results could replace it" in err
    status, _, err = call_script(capsys, __import__("ae_eval").main, "--run", runs[0][0], "--dataset", vectors)
    assert status == 2 and is_one_error_line(err) and "ae_vectors.py" in err
