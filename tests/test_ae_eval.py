"""Real runs, evaluated from their folder alone: tables, evaluation.json and pictures agree with the model's outputs."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import call_script, is_one_error_line, run_script
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

import ae_eval
import ae_generate
import ae_train
from autoencoders.data.binary import binarized
from autoencoders.evaluation.analyses import format_accuracy
from autoencoders.evaluation.metrics import reconstruct
from autoencoders.evaluation.pca import PCA_FILE, fit_pca, write_pca
from autoencoders.runtime import cli
from autoencoders.runtime.errors import UsageError
from autoencoders.runtime.files import prepare_folder, write_npz
from autoencoders.training.checkpoint import read_record, save_record
from autoencoders.training.trained import load_run

DIGITS = ("--dataset", "digits", "--epochs", 1, "--device", "cpu")
RUNS = {
    "plain": ("--recipe", "simple", "--epochs", 15),
    "vae": ("--recipe", "vae", "--hidden-sizes", 32, "--code-size", 4),
    "denoising": ("--recipe", "denoising", "--hidden-sizes", 32, "--code-size", 4),
    "sparse": ("--recipe", "sparse", "--num-saes", 2, "--features", 64, "--k", 8, "--leave-out", 3),
    "without": ("--recipe", "simple", "--epochs", 15, "--leave-out", 3),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits):
    """Trained runs by name, each beside its PCA, which is slow to fit; not to be written into."""
    root = tmp_path_factory.mktemp("runs")
    pca, fewer = fit_pca(digits), fit_pca(digits.leaving_out(3))
    for name, flags in RUNS.items():
        write_npz(prepare_folder(root / name) / PCA_FILE, **vars(fewer if "--leave-out" in flags else pca))
        arguments = [*map(str, (*DIGITS, *flags, "--output-dir", root / name))]
        cli.run(lambda arguments=arguments: ae_train.main(arguments))
    return root


@pytest.fixture(scope="module")
def evaluations():
    return {}


@pytest.fixture
def evaluate(capsys, tmp_path_factory, runs, evaluations):
    """Evaluate a run into a folder of its own, once: (status, stdout, stderr, evaluation.json or None, file names)."""

    def call(name, *flags):
        key = (name, *map(str, flags))
        if key not in evaluations:
            folder = tmp_path_factory.mktemp("evaluation") / "out"
            arguments = ("--run", runs / name, "--output-dir", folder, "--device", "cpu", *flags)
            outcome = call_script(capsys, ae_eval.main, *arguments)
            path = folder / "evaluation.json"
            found = json.loads(path.read_text(), parse_constant=pytest.fail) if path.exists() else None
            evaluations[key] = (*outcome, found, sorted(file.name for file in folder.glob("*")))
        return evaluations[key]

    return call


@pytest.fixture
def copied(runs, tmp_path):
    """A copy of a run that may be written into, with changes to the record's image set."""

    def copy(name, **changes):
        shutil.copytree(runs / name, tmp_path / "run")
        record = read_record(tmp_path / "run")
        record["dataset"] |= changes
        save_record(tmp_path / "run", record)
        return tmp_path / "run"

    return copy


def errors_of(runs, name, images):
    """Squared errors (n,), of an ensemble (S, n), of a run's reconstructions of uint8 images, computed here."""
    rebuilt = reconstruct(load_run(runs / name, torch.device("cpu")).model, torch.from_numpy(images.copy()))
    return np.square(rebuilt.numpy().astype(float) - images / 255).mean(axis=-1)


def reconstructed_by_pca(train, test, components):
    pca = PCA(components, svd_solver="full").fit(train / 255)
    return pca.inverse_transform(pca.transform(test / 255))


def save(path, array):
    np.save(path, array)
    return path


def arguments(*flags):
    return ae_eval.parser().parse_args(["--run", "x", *map(str, flags)])


def test_as_a_process_it_needs_the_record_and_the_weights_alone(runs, tmp_path):
    for name in ("run.json", "mnist_simple.pt"):
        shutil.copy(runs / "plain" / name, tmp_path)
    process = run_script("ae_eval.py", "--run", tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "evaluation.json", "evaluation.png", "mnist_simple.pt", "run.json"
    ]  # fmt: skip
    found = json.loads((tmp_path / "evaluation.json").read_text())
    recorded = read_record(tmp_path)["metrics"]
    assert found["model"]["test_mse_unit"] == pytest.approx(recorded["test_mse_unit"], rel=1e-9)
    assert found["pca"]["test_mse_unit"] == pytest.approx(recorded["pca_test_mse"], rel=1e-5)
    assert f"{found['model']['ssim']:.4f}" in process.stdout and f"{found['pca']['psnr']:.2f}" in process.stdout
    assert Image.open(tmp_path / "evaluation.png").width > 1000


def test_an_ensembles_numbers_are_lists_and_its_table_shows_means(evaluate, runs, digits):
    status, out, _, found, _ = evaluate("sparse", "--probe", "--map")
    errors = errors_of(runs, "sparse", digits.test_images).mean(axis=1)
    assert status == 0 and found["model"]["test_mse_unit"] == pytest.approx(errors.tolist(), rel=1e-5)
    assert "sparse, mean of 2" in out and f"{errors.mean():.5f}" in out
    assert found["model"]["l0"] == [8, 8] and len(found["model"]["dead_features"]) == 2
    assert len(found["model"]["mse_by_label"]) == 2 and found["pca"]["components"] == 8
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
    error, fall = (f"{found[key]:.3f}" for key in ("nll_monte_carlo_error", "nll_fall_from_tenth"))
    assert re.search(rf"Monte Carlo error +{error}\n", out)
    assert re.search(rf"fall from a tenth of the samples +{fall}\n", out) and found["nll_fall_from_tenth"] > 0


def test_without_samples_there_is_no_likelihood(evaluate):
    status, out, _, found, _ = evaluate("vae", "--importance-samples", 0)
    assert status == 0 and "likelihood" not in found and "nats" not in out


def test_the_label_never_trained_on_is_looked_for_by_default(evaluate, runs, digits):
    status, out, _, found, files = evaluate("without")
    assert status == 0 and "label 3, never trained on" in out and "outliers.png" in files
    truth, errors = digits.test_labels == 3, errors_of(runs, "without", digits.test_images)
    assert found["outliers"]["model"]["auroc"] == pytest.approx(roc_auc_score(truth, errors), abs=1e-5)
    assert found["outliers"]["strange_images"] == truth.sum() and found["test_images"] == len(digits.test_images)
    rebuilt = reconstructed_by_pca(digits.train_images[digits.train_labels != 3], digits.test_images, 32)
    by_pca = np.square(rebuilt - digits.test_images / 255).mean(axis=1)
    assert found["outliers"]["pca"]["auroc"] == pytest.approx(roc_auc_score(truth, by_pca), abs=1e-4)


def test_a_label_is_easier_to_detect_for_a_model_that_never_saw_it(evaluate):
    never, seen = evaluate("without"), evaluate("plain", "--leave-out", 3)
    assert "also trained on" in seen[1]
    assert never[3]["outliers"]["model"]["auroc"] > seen[3]["outliers"]["model"]["auroc"] + 0.05


def test_images_of_another_set_can_be_the_outliers(evaluate, fake_mnist, figures):
    status, _, _, found, files = evaluate("plain", "--outliers", "mnist", "--data-root", fake_mnist[0])
    assert status == 0 and files == ["evaluation.json", "evaluation.png", "outliers.png"]
    assert found["outliers"]["strange"] == "files in place of MNIST" and found["outliers"]["strange_images"] == 20
    assert found["outliers"]["model"]["auroc"] == 1 and found["outliers"]["model"]["sensitivity"] == 1  # it is noise
    assert "AUROC 1.0000" in figures[-1].get_suptitle()


@pytest.mark.parametrize("count", [1, 5])
def test_a_single_image_or_identical_ones_can_be_the_outliers(evaluate, tmp_path, digits, count):
    noise = np.random.default_rng(0).integers(0, 256, (1, 28, 28), np.uint8)
    path = save(tmp_path / "noise.npy", noise.repeat(count, axis=0))
    status, out, _, found, _ = evaluate("plain", "--outliers", path)
    assert status == 0 and found["outliers"]["strange_images"] == count and "(noise.npy)" in out
    assert found["outliers"]["usual_images"] == len(digits.test_images) and found["outliers"]["model"]["auroc"] == 1


def test_all_pictures_of_a_folder_are_outliers(digits, tmp_path):
    for part in ("train", "test"):
        (tmp_path / "own" / part).mkdir(parents=True)
        Image.fromarray(digits.test_images[0].reshape(28, 28)).save(tmp_path / "own" / part / "x.png")
    name, inliers, outliers = ae_eval.outlier_split(digits, arguments("--outliers", tmp_path / "own"))
    assert (name, len(inliers), len(outliers)) == ("own", len(digits.test_images), 2)


def test_a_label_never_trained_on_is_no_inlier(digits):
    images = digits.leaving_out(3)
    for flags, label in (((), None), (("--leave-out", 4), 4), (("--outliers", "digits"), None)):
        _, inliers, outliers = ae_eval.outlier_split(images, arguments(*flags))
        assert len(inliers) == (~np.isin(digits.test_labels, (3, label or 3))).sum()
        assert len(outliers) == (len(digits.test_images) if "--outliers" in flags else
                                 (digits.test_labels == (label or 3)).sum())  # fmt: skip
    assert ae_eval.outlier_split(digits, arguments()) is None


@pytest.mark.parametrize("label", [0, 1])
def test_both_inliers_and_outliers_are_needed(digits, label):
    images = replace(digits, test_labels=np.zeros(len(digits.test_labels), np.uint8))
    with pytest.raises(UsageError, match="need at least one"):
        ae_eval.outlier_split(images, arguments("--leave-out", label))


def test_a_label_above_9_can_be_left_out(tmp_path, digits, capsys):
    folder = tmp_path / "own"
    for label in range(13):
        (folder / f"{label:02d}").mkdir(parents=True)
        for number, image in enumerate(digits.train_images[digits.train_labels == label % 10][:6]):
            Image.fromarray(image.reshape(28, 28)).save(folder / f"{label:02d}" / f"{number}.png")
    train = ("--dataset", folder, *RUNS["vae"], "--epochs", 1, "--device", "cpu", "--test-fraction", 0.5)
    assert call_script(capsys, ae_train.main, *train, "--leave-out", 12, "--output-dir", tmp_path / "out")[0] == 0
    flags = ("--run", tmp_path / "out", "--importance-samples", 5, "--device", "cpu")
    for more, name in (((), "label 12, never"), (("--leave-out", 11), "label 11, also")):
        status, out, _ = call_script(capsys, ae_eval.main, *flags, *more)
        assert status == 0 and f"{name} trained on" in out
    pair = ("--run", tmp_path / "out", "--interpolate", 11, 12, "--device", "cpu")
    assert call_script(capsys, ae_generate.main, *pair)[0] == 0


def test_one_test_image_is_enough_for_all_but_a_map(tmp_path, digits, capsys):
    path = save(tmp_path / "few.npy", digits.train_images[:12].reshape(-1, 28, 28))
    train = ("--dataset", path, *RUNS["vae"], "--epochs", 1, "--device", "cpu", "--output-dir", tmp_path / "out")
    assert call_script(capsys, ae_train.main, *train)[0] == 0
    flags = ("--run", tmp_path / "out", "--device", "cpu", "--importance-samples", 9)
    status, out, err = call_script(capsys, ae_eval.main, *flags, "--outliers", path)
    assert (status, err) == (0, "") and "1 test images" in out and re.search(r"standard error .* undefined\n", out)
    assert re.search(r"Monte Carlo error +0\.\d+\nfall from .* undefined\n", out)
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert found["likelihood"]["nll_standard_error"] is None and found["outliers"]["strange_images"] == 12
    status, out, err = call_script(capsys, ae_eval.main, *flags, "--map")
    assert (status, out) == (2, "") and is_one_error_line(err) and "--map" in err


def test_a_probe_needs_two_labels_and_test_images_of_them(digits):
    unknown = replace(digits, test_labels=np.full(len(digits.test_labels), 10))
    single = replace(digits, train_labels=np.zeros(len(digits.train_labels)))
    for images, message in ((unknown, "no test image"), (single, "two labels")):
        with pytest.raises(UsageError, match=message):
            ae_eval.check_analyses(None, images, arguments("--probe"))
    ae_eval.check_analyses(None, digits, arguments("--probe"))


def test_labels_are_predicted_from_the_codes_of_the_first_autoencoder_and_these_are_drawn(evaluate, digits):
    status, out, err, found, files = evaluate("sparse", "--probe", "--map")
    assert (status, err) == (0, "") and "code_map.png" in files and "code, 64" in out and "PCA, 8" in out
    probe = found["probe"]
    assert probe["tested_on"] == (digits.test_labels != 3).sum()  # a label never seen cannot be predicted
    assert [probe[kind]["features"] for kind in ("code", "pca", "pixels")] == [64, 8, 784]
    for kind in ("code", "pca", "pixels"):
        for method in ("linear", "nearest"):
            low, high = probe[kind][method]["interval"]
            assert 0.6 < low < probe[kind][method]["accuracy"] < high and format_accuracy(probe[kind][method]) in out


@pytest.mark.parametrize(
    ("name", "flags", "culprit"),
    [
        ("plain", ("--binarize", "static"), "--binarize"),
        ("plain", ("--importance-samples", 5), "--importance-samples"),
        ("vae", ("--importance-samples", 0, "--binarize", "static"), "--binarize"),
        ("plain", ("--leave-out", 65536), "--leave-out"),
        ("plain", ("--leave-out", 1, "--outliers", "digits"), "--outliers"),
        ("plain", ("--device", "abacus"), "abacus"),
        ("nothing", (), "nothing"),
    ],
)
def test_a_usage_error_is_one_line_and_nothing_is_written(evaluate, name, flags, culprit):
    status, out, err, _, files = evaluate(name, *flags)
    assert (status, out, files) == (2, "", []) and is_one_error_line(err) and culprit in err


def test_other_images_than_the_runs_own_are_refused(capsys, copied):
    folder = copied("plain", fingerprint="0" * 64)
    before = sorted(folder.iterdir())
    status, _, err = call_script(capsys, ae_eval.main, "--run", folder)
    assert status == 2 and is_one_error_line(err) and "other images" in err
    assert sorted(folder.iterdir()) == before


def test_the_label_left_out_belongs_to_the_run(capsys, copied):
    folder = copied("without")
    assert read_record(folder)["dataset"]["leave_out"] == 3
    train = (*DIGITS, *RUNS["without"][:4], "--output-dir", folder, "--resume")
    for flags in ((), ("--leave-out", 4)):
        status, _, err = call_script(capsys, ae_train.main, *train, *flags)
        assert status == 2 and is_one_error_line(err)
    assert call_script(capsys, ae_train.main, *train, "--leave-out", 3)[0] == 0


def test_the_code_size_of_a_pca_of_all_images_is_not_used_for_fewer(capsys, digits, tmp_path):
    write_pca(tmp_path, fit_pca(digits), 0.95, "digits")
    train = ("--dataset", "digits", "--leave-out", 3, "--output-dir", tmp_path)
    status, _, err = call_script(capsys, ae_train.main, *train)
    assert status == 2 and is_one_error_line(err) and "another --output-dir" in err


def test_a_refused_flag_does_not_wait_for_torch():
    code = (
        "import sys, ae_eval; from autoencoders.runtime import cli\n"
        "try: cli.run(ae_eval.main)\nfinally: print('torch' in sys.modules)"
    )
    process = run_script("-c", code, "--run", "nowhere", "--leave-out", 65536)
    assert process.returncode == 2 and process.stdout == "False\n" and is_one_error_line(process.stderr)


@pytest.fixture(scope="module")
def more_runs(tmp_path_factory):
    """Runs of one label, of binary pixels and of squared error."""
    root = tmp_path_factory.mktemp("more")
    small = ("--hidden-sizes", 32, "--code-size", 4)
    for name, flags in {
        "only": ("--recipe", "simple", "--only", 3), "static": ("--recipe", "vae", *small, "--binarize", "static"),
        "dynamic": ("--recipe", "vae", *small, "--binarize", "dynamic", "--importance-samples", 3),
        "squared": ("--recipe", "vae", *small, "--loss", "mse"),
    }.items():  # fmt: skip
        cli.run(
            lambda flags=flags, name=name: ae_train.main([*map(str, (*DIGITS, *flags, "--output-dir", root / name))])
        )
    return root


def evaluated(capsys, folder, *flags):
    status, out, err = call_script(capsys, ae_eval.main, "--run", folder, "--device", "cpu", *flags)
    path = folder / "evaluation.json"
    return status, out, err, json.loads(path.read_text()) if path.exists() else None


def test_a_run_of_one_label_is_tested_on_all_others(capsys, more_runs, digits):
    status, out, _, found = evaluated(capsys, more_runs / "only")
    outliers = found["outliers"]
    assert status == 0 and "all labels but 3, never trained on" in out
    assert outliers["usual_images"] == (digits.test_labels == 3).sum()
    assert outliers["usual_images"] + outliers["strange_images"] == len(digits.test_images)
    assert found["dataset"]["only"] == 3 and found["dataset"]["leave_out"] is None
    for name in ("auroc_error", "auroc_sap", "auroc_nap", "auroc_nap_hidden"):
        assert 0 <= outliers[name] <= 1
    assert outliers["auroc_sap"] == outliers["sap"]["auroc"]


def test_every_likelihood_names_its_protocol(capsys, more_runs):
    for name, protocol in (("static", "static: one fixed draw"), ("dynamic", "dynamic: binary pixels drawn by seed 0")):
        status, out, _, found = evaluated(capsys, more_runs / name, "--importance-samples", 5)
        assert status == 0 and found["likelihood"]["protocol"].startswith(protocol)
        assert f"protocol: {protocol}" in out and "5 importance samples, 297 images" in out
    status, out, _, found = evaluated(capsys, more_runs / "dynamic", "--importance-samples", 5, "--binarize", "none")
    assert status == 0 and found["likelihood"]["protocol"].startswith("grey")


@pytest.mark.parametrize("pixels", ["none", "dynamic"])
def test_binary_images_have_no_grey_likelihood(capsys, more_runs, pixels):
    status, _, err, _ = evaluated(capsys, more_runs / "static", "--binarize", pixels)
    assert status == 2 and is_one_error_line(err) and "binary" in err


def test_outliers_of_a_run_on_binary_pixels_are_binary_too(digits):
    images = binarized(digits, "static")
    _, inliers, outliers = ae_eval.outlier_split(images, arguments("--outliers", "digits"))
    assert set(np.unique(inliers)) == set(np.unique(outliers)) == {0, 255}


def test_squared_error_has_no_likelihood_of_binary_pixels(capsys, more_runs):
    status, out, _, found = evaluated(capsys, more_runs / "squared")
    assert status == 0 and "likelihood" not in found and "Likelihood" not in out
    status, _, err, _ = evaluated(capsys, more_runs / "squared", "--importance-samples", 5)
    assert status == 2 and is_one_error_line(err) and "--loss mse" in err


def test_the_probe_reads_the_activations_before_the_selection(evaluate):
    status, out, _, found, _ = evaluate("sparse", "--probe", "--features", "dense")
    assert status == 0 and "activations before the selection, 64" in out
    _, _, _, of_code, _ = evaluate("sparse", "--probe")
    assert found["probe"]["code"]["linear"] != of_code["probe"]["code"]["linear"]
    assert 0 < of_code["probe"]["code"]["k_means"]["accuracy"] <= 1
    status, _, err, _, _ = evaluate("plain", "--probe", "--features", "dense")
    assert status == 2 and is_one_error_line(err) and "--features dense" in err


def test_features_are_matched_with_those_of_other_runs_and_inside_an_ensemble(capsys, runs, tmp_path):
    other = tmp_path / "other"
    flags = (*DIGITS, *RUNS["sparse"], "--seed", 7, "--output-dir", other)
    cli.run(lambda: ae_train.main([*map(str, flags)]))
    status, out, _, found = evaluated(capsys, other, "--agree-with", runs / "sparse")
    rows = found["agreement"]
    assert status == 0 and "PW-MCC" in out and "most stable quarter" in out and (other / "agreement.png").exists()
    assert rows["independent runs"]["pairs"] == 2 == rows["autoencoders of one run"]["pairs"]
    assert rows["untrained"]["pw_mcc"] < 1 and rows["independent runs"]["mmcs"] >= rows["independent runs"]["pw_mcc"]
    header, *features = (other / "features.csv").read_text().splitlines()
    assert header == "feature,stability,firing_rate,explained,selectivity" and len(features) == 64
    status, _, _, found = evaluated(capsys, other, "--agree-with")
    assert status == 0 and "independent runs" not in found["agreement"]
    assert found["agreement"]["autoencoders of one run"]["pairs"] == 1
    status, _, _, found = evaluated(capsys, other, "--agree-with", runs / "plain")  # 64 features against 128
    assert status == 0 and found["agreement"]["independent runs"]["pairs"] == 1


@pytest.mark.parametrize(("name", "others", "reason"), [("sparse", ("sparse",), "twice"), ("plain", (), "no ensemble")])
def test_features_need_other_runs_to_be_matched_with(evaluate, runs, name, others, reason):
    status, _, err, found, _ = evaluate(name, "--agree-with", *(runs / other for other in others))
    assert status == 2 and is_one_error_line(err) and reason in err and found is None
