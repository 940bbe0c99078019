"""Real runs, evaluated from their folder alone: what is printed, kept and drawn agrees with what the model says."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call_script, is_one_error_line, run_script
from PIL import Image
from skimage.metrics import structural_similarity
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

import ae_eval
import ae_train
from autoencoders.evaluation.metrics import reconstruct
from autoencoders.evaluation.pca import PCA_FILE, fit_pca
from autoencoders.runtime.cli import run
from autoencoders.runtime.errors import UsageError
from autoencoders.runtime.files import prepare_folder, write_npz
from autoencoders.training.checkpoint import load_run, read_record, save_record

DIGITS = ("--dataset", "digits", "--epochs", 1, "--device", "cpu")
RUNS = {
    "plain": ("--recipe", "simple", "--epochs", 15),
    "vae": ("--recipe", "vae", "--hidden-sizes", 32, "--code-size", 4),
    "denoising": ("--recipe", "denoising", "--hidden-sizes", 32, "--code-size", 4),
    "sparse": ("--recipe", "sparse", "--num-saes", 2, "--features", 64, "--k", 8),
    "without": ("--recipe", "simple", "--epochs", 15, "--leave-out", 3),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits):
    """Trained runs by name, each beside its PCA, which takes long to fit; for looking at, not for writing into."""
    root = tmp_path_factory.mktemp("runs")
    pca, fewer = fit_pca(digits), fit_pca(digits.without(3))
    for name, flags in RUNS.items():
        write_npz(prepare_folder(root / name) / PCA_FILE, **vars(fewer if name == "without" else pca))
        run(lambda flags=flags, name=name: ae_train.main([*map(str, (*DIGITS, *flags, "--output-dir", root / name))]))
    return root


@pytest.fixture
def evaluate(capsys, tmp_path, runs):
    """Call the script on a run, into a folder of its own: (status, stdout, stderr, evaluation.json or None, names)."""

    def call(name, *flags):
        out = tmp_path / "out"
        arguments = ("--run", runs / name, "--output-dir", out, "--device", "cpu", *flags)
        status, said, err = call_script(capsys, ae_eval.main, *arguments)
        path = out / "evaluation.json"
        found = json.loads(path.read_text()) if path.exists() else None
        return status, said, err, found, sorted(file.name for file in out.glob("*"))

    return call


def errors_of(runs, name, images):
    """Squared errors (n,) of a run's reconstructions of uint8 images, computed here."""
    rebuilt = reconstruct(load_run(runs / name, torch.device("cpu"))[0], torch.from_numpy(images.copy()))
    return np.square(rebuilt.numpy().astype(float) - images / 255).mean(axis=-1)


def test_as_a_process_it_needs_the_record_and_the_weights_alone(trained, tmp_path):
    for name in ("run.json", "mnist_ae.pt"):
        shutil.copy(trained[1] / name, tmp_path)
    process = run_script("ae_eval.py", "--run", tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "evaluation.json", "evaluation.png", "mnist_ae.pt", "run.json"
    ]  # fmt: skip
    found = json.loads((tmp_path / "evaluation.json").read_text())
    recorded = read_record(tmp_path)["metrics"]
    assert found["model"]["test_mse_unit"] == pytest.approx(recorded["test_mse_unit"], rel=1e-5)
    assert found["model"]["test_mse_signed"] == pytest.approx(recorded["test_mse"], rel=1e-5)
    assert found["pca"]["test_mse_signed"] == pytest.approx(recorded["pca_test_mse"], rel=1e-4)
    assert f"{found['model']['ssim']:.4f}" in process.stdout and f"{found['pca']['psnr']:.2f}" in process.stdout
    assert Image.open(tmp_path / "evaluation.png").width > 1000


def test_pcas_scores_are_those_of_scikit_learns_pca_of_the_same_code_size(evaluate, digits):
    found = evaluate("plain")[3]
    pca = PCA(32, svd_solver="full").fit(digits.train_images / 255)
    rebuilt = pca.inverse_transform(pca.transform(digits.test_images / 255))
    assert found["pca"]["components"] == 32
    assert found["pca"]["test_mse_unit"] == pytest.approx(
        np.square(rebuilt - digits.test_images / 255).mean(), abs=1e-5
    )
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    ssim = [structural_similarity(a.reshape(28, 28) / 255, b.reshape(28, 28), **settings)
            for a, b in zip(digits.test_images, rebuilt)]  # fmt: skip
    assert found["pca"]["ssim"] == pytest.approx(np.mean(ssim), abs=1e-5)


def test_the_figure_shows_the_best_and_the_worst(evaluate, figures, runs, digits):
    assert evaluate("plain")[0] == 0
    errors = errors_of(runs, "plain", digits.test_images)
    order = errors.argsort()
    best, _, worst, _ = figures[0].axes[1:]
    for axes, index in ((best, order[:8]), (worst, order[::-1][:8])):
        sheet = axes.images[0].get_array()
        shown = np.stack([sheet[:, 32 * n : 32 * n + 28].ravel() for n in range(8)])
        np.testing.assert_allclose(shown, digits.test_images[index] / 255, atol=1e-6)
    notes = [tick.get_text() for axes in figures[0].axes[1:] for tick in axes.get_xticklabels()]
    assert notes == [f"MSE {errors[i]:.4f}" for i in (*order[:8], *order[::-1][:8])]


def test_an_ensembles_numbers_are_lists_and_its_mean_is_called_one(evaluate, runs, digits):
    status, out, _, found, _ = evaluate("sparse")
    errors = errors_of(runs, "sparse", digits.test_images).mean(axis=1)
    assert status == 0 and found["model"]["test_mse_unit"] == pytest.approx(errors.tolist(), rel=1e-5)
    assert "sparse, mean of 2" in out and f"{errors.mean():.5f}" in out
    assert (
        found["model"]["l0"] == [8, 8] and len(found["model"]["dead_features"]) == 2 and found["pca"]["components"] == 8
    )
    assert found["model"]["mmcs"] == pytest.approx(read_record(runs / "sparse")["metrics"]["mmcs"])


def test_a_denoising_model_also_restores(evaluate, runs):
    found, recorded = evaluate("denoising")[3]["model"], read_record(runs / "denoising")["metrics"]
    assert [found[k] for k in ("noisy_mse", "restored_mse")] == [recorded[k] for k in ("noisy_mse", "restored_mse")]


@pytest.mark.parametrize("binarize", [None, "static", "dynamic"])
def test_a_likelihood_is_printed_with_its_protocol(evaluate, binarize):
    flags = ("--importance-samples", 20) + (("--binarize", binarize) if binarize else ())
    status, out, err, found, _ = evaluate("vae", *flags)
    found = found["likelihood"]
    assert (status, err) == (0, "") and found["protocol"] in out and f"{found['nll']:.3f}" in out
    assert ("entropy floor" in out) == (binarize is None) and 0 < found["nll"] <= -found["elbo"]
    assert "20 importance samples" in out and found["binarize"] == (binarize or "none")


def test_without_samples_there_is_no_likelihood(evaluate):
    status, out, _, found, _ = evaluate("vae", "--importance-samples", 0)
    assert status == 0 and "likelihood" not in found and "nats" not in out


def test_the_digit_never_trained_on_is_looked_for_without_being_asked(evaluate, runs, digits):
    status, out, _, found, files = evaluate("without")
    assert status == 0 and "label 3, never trained on" in out and "outliers.png" in files
    truth, errors = digits.test_labels == 3, errors_of(runs, "without", digits.test_images)
    assert found["outliers"]["model"]["auroc"] == pytest.approx(roc_auc_score(truth, errors), abs=1e-5)
    assert found["outliers"]["strange_images"] == truth.sum() and found["test_images"] == len(digits.test_images)
    pca = PCA(32, svd_solver="full").fit(digits.train_images[digits.train_labels != 3] / 255)
    rebuilt = pca.inverse_transform(pca.transform(digits.test_images / 255))
    by_pca = np.square(rebuilt - digits.test_images / 255).mean(axis=1)
    assert found["outliers"]["pca"]["auroc"] == pytest.approx(roc_auc_score(truth, by_pca), abs=1e-4)


def test_a_digit_is_stranger_to_a_model_that_never_saw_it(evaluate):
    never, seen = (evaluate(name, "--leave-out", 3) for name in ("without", "plain"))
    assert "also trained on" in seen[1]
    assert never[3]["outliers"]["model"]["auroc"] > seen[3]["outliers"]["model"]["auroc"] + 0.05


def test_images_of_another_set_are_looked_for_among_the_runs_own(evaluate, fake_mnist, figures):
    status, _, _, found, files = evaluate("plain", "--outliers", "mnist", "--data-root", fake_mnist[0])
    assert status == 0 and files == ["evaluation.json", "evaluation.png", "outliers.png"]
    assert found["outliers"]["strange"] == "MNIST" and found["outliers"]["strange_images"] == 20
    assert found["outliers"]["model"]["auroc"] == 1 and found["outliers"]["model"]["sensitivity"] == 1  # it is noise
    assert "AUROC 1.0000" in figures[-1].get_suptitle()


def test_one_test_image_is_enough_for_all_but_a_map(tmp_path, digits, capsys):
    path = saved(tmp_path / "few.npy", digits.train_images[:12].reshape(-1, 28, 28))
    train = ("--dataset", path, *RUNS["vae"], "--epochs", 1, "--device", "cpu", "--output-dir", tmp_path / "out")
    assert call_script(capsys, ae_train.main, *train)[0] == 0
    evaluate = ("--run", tmp_path / "out", "--device", "cpu", "--importance-samples", 9)
    status, out, err = call_script(capsys, ae_eval.main, *evaluate, "--outliers", path)
    assert (status, err) == (0, "") and "1 test images" in out and re.search(r"standard error .* undefined\n", out)
    text = (tmp_path / "out" / "evaluation.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["likelihood"]["nll_standard_error"] is None and found["outliers"]["strange_images"] == 12
    status, out, err = call_script(capsys, ae_eval.main, *evaluate, "--map")
    assert (status, out) == (2, "") and is_one_error_line(err) and "3 are the least" in err


def test_labels_that_were_never_trained_on_cannot_be_read(digits):
    args = ae_eval.parser().parse_args(["--run", "x", "--probe"])
    unknown = replace(digits, test_labels=np.full(len(digits.test_labels), 10))
    alike = replace(digits, train_labels=np.zeros(len(digits.train_labels)))
    for images, said in ((unknown, "no test image"), (alike, "no two labels")):
        with pytest.raises(UsageError, match=said):
            ae_eval.refuse_too_few(images, args)
    ae_eval.refuse_too_few(digits, args)


def saved(path, array):
    np.save(path, array)
    return path


def test_of_ones_own_images_all_are_strange_be_they_one_or_alike(evaluate, tmp_path, digits):
    noise = np.random.default_rng(0).integers(0, 256, (30, 28, 28), np.uint8)
    for name, array in {"thirty": noise, "one": noise[:1], "alike": noise[[0] * 5]}.items():
        status, out, _, found, _ = evaluate("plain", "--outliers", saved(tmp_path / f"{name}.npy", array))
        assert status == 0 and found["outliers"]["strange_images"] == len(array) and f"({name}.npy)" in out
        assert found["outliers"]["usual_images"] == len(digits.test_images) and found["outliers"]["model"]["auroc"] == 1
    for part in ("train", "test"):
        (tmp_path / "own" / part).mkdir(parents=True)
        Image.fromarray(noise[0]).save(tmp_path / "own" / part / "x.png")
    assert evaluate("plain", "--outliers", tmp_path / "own")[3]["outliers"]["strange_images"] == 2


def test_a_digit_never_trained_on_is_not_usual(evaluate, digits):
    never = digits.test_labels == 3
    for flags in (("--leave-out", 4), ("--outliers", "digits")):
        found = evaluate("without", *flags)[3]["outliers"]
        other = (digits.test_labels == 4) & (flags[0] == "--leave-out")
        assert found["usual_images"] == (~never & ~other).sum()


def test_a_label_that_no_test_image_has_cannot_be_looked_for(digits):
    images = replace(digits, test_labels=np.zeros(len(digits.test_labels), np.uint8))
    for label in (0, 1):
        args = ae_eval.parser().parse_args(["--run", "x", "--leave-out", str(label)])
        with pytest.raises(UsageError, match="look for another"):
            ae_eval.strange_images(images, args, Path("unused"))


def test_codes_as_features_and_as_places(evaluate, digits):
    status, out, err, found, files = evaluate("without", "--probe", "--map")
    assert (status, err) == (0, "") and "code_map.png" in files
    probe = found["probe"]
    assert probe["tested_on"] == (digits.test_labels != 3).sum()  # nobody can read a label never seen
    assert [probe[kind]["features"] for kind in ("code", "pca", "pixels")] == [32, 32, 784]
    for kind in ("code", "pca", "pixels"):
        for how in ("linear", "nearest"):
            low, high = probe[kind][how]["interval"]
            assert 0.6 < low < probe[kind][how]["accuracy"] < high and f"{probe[kind][how]['accuracy']:.4f}" in out


def test_a_probe_that_has_not_converged_says_so_in_the_table(evaluate, monkeypatch):
    monkeypatch.setattr("autoencoders.evaluation.probes._STEPS", 1)
    status, out, _, found, _ = evaluate("vae", "--importance-samples", 0, "--probe")
    assert status == 0 and out.count(", not converged") == 3 and not found["probe"]["code"]["linear"]["converged"]


def test_a_pca_of_some_images_is_called_that(runs, tmp_path, capsys, digits):
    shutil.copytree(runs / "plain", tmp_path / "run")
    write_npz(tmp_path / "run" / PCA_FILE, **vars(fit_pca(digits, max_samples=900)))
    status, out, _ = call_script(capsys, ae_eval.main, "--run", tmp_path / "run", "--device", "cpu")
    assert status == 0 and "PCA of 900 images, 32" in out
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["pca"]["samples"] == 900


def test_codes_of_an_ensemble_are_those_of_its_first(evaluate):
    status, out, _, found, _ = evaluate("sparse", "--probe")
    assert status == 0 and found["probe"]["code"]["features"] == 64 and found["probe"]["pca"]["features"] == 8
    assert "code, 64" in out and "PCA, 8" in out


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("plain", ("--binarize", "static"), "variational"),
        ("plain", ("--importance-samples", 5), "variational"),
        ("vae", ("--binarize", "grey"), "invalid choice"),
        ("vae", ("--importance-samples", 0, "--binarize", "static"), "leaves out"),
        ("vae", ("--importance-samples", -1), "from 0"),
        ("plain", ("--leave-out", 10), "from 0 to 9"),
        ("plain", ("--leave-out", 1, "--outliers", "digits"), "not allowed with"),
        ("plain", ("--seed", "x"), "whole number"),
        ("plain", ("--device", "abacus"), "abacus"),
        ("nothing", (), "train first"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(evaluate, name, flags, said):
    status, out, err, _, files = evaluate(name, *flags)
    assert (status, out, files) == (2, "", []) and is_one_error_line(err) and said in err


def test_other_images_than_the_runs_own_are_refused(capsys, runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "plain", folder)
    record = read_record(folder)
    record["dataset"]["fingerprint"] = "0" * 64
    save_record(folder, record)
    before = sorted(folder.iterdir())
    status, _, err = call_script(capsys, ae_eval.main, "--run", folder)
    assert status == 2 and is_one_error_line(err) and "was trained on other images" in err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("digit", [10, -1, "3", 2.5])
def test_a_record_that_leaves_out_no_digit_is_no_record(capsys, runs, tmp_path, digit):
    shutil.copytree(runs / "plain", tmp_path / "run")
    record = read_record(tmp_path / "run")
    record["dataset"]["leave_out"] = digit
    save_record(tmp_path / "run", record)
    status, _, err = call_script(capsys, ae_eval.main, "--run", tmp_path / "run")
    assert status == 1 and is_one_error_line(err) and "no digit" in err


def test_a_digit_left_out_belongs_to_the_run(capsys, runs, tmp_path):
    assert read_record(runs / "without")["dataset"]["leave_out"] == 3
    shutil.copytree(runs / "without", tmp_path / "run")
    train = (*DIGITS, *RUNS["without"][:4], "--output-dir", tmp_path / "run", "--resume")
    for flags in ((), ("--leave-out", 4)):
        status, _, err = call_script(capsys, ae_train.main, *train, *flags)
        assert status == 2 and is_one_error_line(err) and "other images" in err
    status, _, err = call_script(capsys, ae_train.main, *train, "--leave-out", 3)
    assert status == 0 and "Finished already" in err


def test_the_code_size_that_a_pca_of_all_images_gave_is_not_taken_for_fewer(capsys, trained, tmp_path):
    for name in ("n_components_95.txt", "pca.npz"):
        shutil.copy(trained[1] / name, tmp_path)
    train = ("--dataset", "digits", "--leave-out", 3, "--output-dir", tmp_path)
    status, _, err = call_script(capsys, ae_train.main, *train)
    assert status == 2 and is_one_error_line(err) and "use another --output-dir" in err


def test_a_refused_flag_does_not_wait_for_torch():
    code = (
        "import sys, ae_eval; from autoencoders.runtime import cli\n"
        "try: cli.run(ae_eval.main)\nfinally: print('torch' in sys.modules)"
    )
    process = run_script("-c", code, "--run", "nowhere", "--leave-out", 12)
    assert process.returncode == 2 and process.stdout == "False\n" and is_one_error_line(process.stderr)


def test_on_mnist_the_errors_are_those_of_the_record(mnist, tmp_path, capsys):
    flags = ("--recipe", "simple", "--hidden-sizes", "", "--code-size", 8, "--epochs", 1, "--batch-size", 1024)
    train = (
        "--dataset",
        "mnist",
        "--data-root",
        os.environ["AE_DATA_ROOT"],
        "--device",
        "cpu",
        *flags,
        "--output-dir",
        tmp_path,
    )
    assert call_script(capsys, ae_train.main, *train)[0] == 0
    assert call_script(capsys, ae_eval.main, "--run", tmp_path, "--device", "cpu")[0] == 0
    found, recorded = json.loads((tmp_path / "evaluation.json").read_text()), read_record(tmp_path)["metrics"]
    assert found["model"]["test_mse_unit"] == pytest.approx(recorded["test_mse_unit"], rel=1e-5)
    assert found["pca"]["test_mse_unit"] == pytest.approx(recorded["pca_test_mse"], rel=1e-4)
    assert found["test_images"] == len(mnist.test_images) == 10_000
