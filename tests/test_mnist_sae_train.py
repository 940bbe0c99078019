"""The published command line: the training is that of ae_train.py, the loss analysis that of NumPy."""

import json

import numpy as np
import pytest
import torch
from conftest import call_script, is_one_error_line, only_warnings, run_script, same_bits
from PIL import Image

import ae_train
import mnist_sae_train
from autoencoders.evaluation.loss_analysis import loss_analysis
from autoencoders.evaluation.metrics import firing_rates, mmcs
from autoencoders.sparse import SparseEnsemble
from autoencoders.training.trained import load_run
from mnist_sae_train import format_analysis, format_range

SMALL = ("--dataset", "digits", "--num-saes", 2, "--features", 64, "--k", 8)
PICTURES = ("reconstructions.png", "training_metrics.png", "sae_features.png", "feature_activity.png")


def call(capsys, *arguments):
    return call_script(capsys, mnist_sae_train.main, *arguments)


@pytest.fixture(scope="module")
def sae(tmp_path_factory):
    """(finished process, output folder) of a small ensemble trained by the real script."""
    folder = tmp_path_factory.mktemp("sae") / "new"
    flags = ("--epochs", 2, "--device", "cpu", "--analyze_loss", "--pictures-every", 1, "--output-dir", folder)
    process = run_script("mnist_sae_train.py", *SMALL, *flags)
    assert process.returncode == 0, process.stderr
    return process, folder


def test_a_run_writes_weights_record_history_and_every_picture(sae):
    names = {path.name for path in sae[1].iterdir()}
    assert names - {"checkpoint.pt", ".lock"} == {
        "mnist_sparse.pt", "run.json", "history.csv", "training_loss.png", *PICTURES,
        "reconstructions_epoch_001.png", "reconstructions_epoch_002.png",
    }  # fmt: skip
    for name in PICTURES:
        picture = Image.open(sae[1] / name)
        assert min(picture.size) >= 400 and np.asarray(picture.convert("L")).std() > 8
    assert only_warnings(sae[0].stderr)


def test_the_analysis_stands_before_the_training_and_the_verdict_after_it(sae):
    out = sae[0].stdout
    metrics = json.loads((sae[1] / "run.json").read_text())["metrics"]
    assert out.index("Untrained") < out.index("Epoch 1/2") < out.index("Correlation")
    for text in (*(f"{r:.4f}" for r in metrics["pearson"]), *(f"{d:.1%}" for d in metrics["dead_features"])):
        assert text in out[out.index("Correlation") :]
    assert f"MMCS of the dictionaries {metrics['mmcs']:.4f}" in out and "undefined" not in out


def test_the_recorded_metrics_are_those_of_the_weights_that_load(sae, digits):
    run = load_run(sae[1], torch.device("cpu"))
    metrics, images = run.record["metrics"], torch.from_numpy(digits.test_images.copy())
    rebuilt = run.model(images / 255)[0].detach().numpy()
    direct = [np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(digits.test_images, part)]) for part in rebuilt]
    assert metrics["pearson"] == pytest.approx(direct, abs=1e-5) and metrics["undefined_pearson"] == [0, 0]
    assert metrics["l0"] == pytest.approx([8, 8]) and run.recipe.code_size == 8
    assert metrics["dead_features"] == pytest.approx((firing_rates(run.model, images) == 0).float().mean(1).tolist())
    assert metrics["mmcs"] == pytest.approx(mmcs(run.model.state_dict()["weight"]).item())


def test_a_finished_run_resumes_to_nothing(sae, capsys):
    flags = ("--epochs", 2, "--device", "cpu", "--output-dir", sae[1], "--resume")
    status, out, err = call(capsys, *SMALL, *flags)
    assert status == 0 and out == "" and "Finished already" in err


def test_it_is_the_training_of_ae_train(sae, tmp_path, capsys):
    flags = ("--recipe", "sparse", *SMALL, "--epochs", 2, "--device", "cpu", "--output-dir", tmp_path)
    assert call_script(capsys, ae_train.main, *flags)[0] == 0
    ours, theirs = (torch.load(folder / "mnist_sparse.pt", weights_only=True) for folder in (sae[1], tmp_path))
    assert same_bits(ours, theirs)


def test_one_autoencoder_alone_has_no_consistency_term_and_no_mmcs(tmp_path, capsys):
    flags = ("--num-saes", 1, "--features", 30, "--k", 2, "--epochs", 1, "--dataset", "digits")
    status, out, _ = call(capsys, *flags, "--output-dir", tmp_path)
    assert status == 0 and "consistency" not in out[out.index("Epoch") :] and "MMCS" not in out
    assert all((tmp_path / name).exists() for name in PICTURES)
    assert "mmcs" not in json.loads((tmp_path / "run.json").read_text())["metrics"]


@pytest.mark.parametrize("flag", ["--analyze-loss", "--analyze_loss"])
def test_no_epochs_ends_after_the_analysis_and_writes_nothing(tmp_path, capsys, flag):
    status, out, err = call(capsys, *SMALL, flag, "--epochs", 0, "--output-dir", tmp_path / "out")
    assert status == 0 and err == "" and not (tmp_path / "out").exists()
    assert out.count("\nautoencoder ") == 2 and "Epoch" not in out and "1,280 of 1,500 training images" in out


def test_the_analysis_is_of_the_images_that_are_trained_on(tmp_path, capsys):
    flags = ("--analyze-loss", "--epochs", 0, "--output-dir", tmp_path / "out", "--leave-out", 4)
    status, out, err = call(capsys, *SMALL, *flags)
    assert (status, err) == (0, "") and "digits without 4: " in out and "1,500" not in out


@pytest.mark.parametrize("analysis", [(), ("--analyze-loss",)], ids=["", "analysis"])
@pytest.mark.parametrize("flags", [("--k", "65"), ("--recipe", "bce"), ("--code-size", "3"), ("--epochs", "-1"),
                                   ("--device", "tpu")], ids=" ".join)  # fmt: skip
def test_bad_input_is_one_line_and_status_2_before_anything_is_done(tmp_path, capsys, flags, analysis):
    status, out, err = call(capsys, *SMALL, "--output-dir", tmp_path / "out", *analysis, *flags)
    assert status == 2 and out == "" and is_one_error_line(err) and not (tmp_path / "out").exists()
    assert flags[0].lstrip("-").replace("-", "_") in err.replace("-", "_")


def test_no_epochs_without_the_analysis_is_refused(tmp_path, capsys):
    status, out, err = call(capsys, *SMALL, "--output-dir", tmp_path / "out", "--epochs", 0)
    assert status == 2 and out == "" and is_one_error_line(err) and "--analyze-loss" in err


def test_without_cuda_the_run_goes_to_the_cpu_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    flags = ("--device", "cuda", "--epochs", 1, "--output-dir", tmp_path)
    status, _, err = call(capsys, *SMALL, *flags)
    assert status == 0 and "CUDA is not available: falling back to the CPU\n" in err
    assert json.loads((tmp_path / "run.json").read_text())["device"] == "cpu"


def test_help_comes_without_torch_and_shows_only_what_applies():
    process = run_script("-X", "importtime", "mnist_sae_train.py", "--help")
    assert process.returncode == 0 and "torch" not in process.stderr and "matplotlib" not in process.stderr
    for flag in ("--device", "--analyze_loss", "--analyze-loss", "--num-saes", "--revive", "--resume", "--amp"):
        assert flag in process.stdout
    assert "--hidden-sizes" not in process.stdout and "--kl-weight" not in process.stdout


def test_the_analysis_agrees_with_numpy(digits):
    torch.manual_seed(1)
    model, chosen = SparseEnsemble(num_saes=2, features=50, k=5), torch.arange(3, 1200, 7)
    numbers = loss_analysis(model, digits.train_images, chosen.numpy())
    every = digits.train_images / 255
    x, mean = every[chosen], every.mean(axis=0)
    variance = np.mean((x - mean) ** 2)
    assert numbers["mean_image_all"] == pytest.approx(np.mean((every - mean) ** 2), rel=1e-5)
    assert numbers["mean_image"] == pytest.approx(variance, rel=1e-5)
    for number, weight in enumerate(model.weight.detach().double().numpy()):
        code = x @ weight.T
        code[code < np.sort(code, axis=1)[:, [-5]]] = 0
        y = code @ (weight / np.linalg.norm(weight, axis=1, keepdims=True))
        scale = np.linalg.lstsq(y.reshape(-1, 1), x.ravel())[0][0]
        assert numbers["scale"][number] == pytest.approx(scale, rel=1e-4)
        for answer, mse, share in ((y, "mse", "explained"), (scale * y, "scaled_mse", "scaled_explained")):
            error = np.mean((x - answer) ** 2)
            assert numbers[mse][number] == pytest.approx(error, rel=1e-4)
            assert numbers[share][number] == pytest.approx(1 - error / variance, rel=1e-3)


def test_the_summary_follows_from_the_values():
    assert format_range([0.2, 0.3]) == "+20.0% to +30.0%" and format_range([-0.2001, -0.2]) == "-20.0%"
    values = {"mean_image": 0.1, "mean_image_all": 0.1, "mse": [0.2], "explained": [-1.0], "scale": [0.5]}
    text = format_analysis(values | {"scaled_mse": [0.05], "scaled_explained": [0.5]})
    assert text.splitlines()[-1].count("+100.0%") == 1 and text.endswith("-50.0%")


def test_on_mnist_the_analysis_gives_the_numbers_of_the_write_up(mnist):
    torch.manual_seed(42)
    numbers = loss_analysis(SparseEnsemble(), mnist.train_images, np.arange(1280))
    assert numbers["mean_image_all"] == pytest.approx(0.0673, abs=1e-4)
    assert min(numbers["mse"]) > 0.0795 and max(numbers["mse"]) < 0.083
