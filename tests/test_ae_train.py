import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, TRAIN, call_script, is_one_error_line, only_warnings, run_script
from PIL import Image
from test_ae_models import Foreign

import ae_train
from autoencoders.evaluation.pca import fit_pca, write_pca


@pytest.fixture(scope="module")
def record(trained):
    return json.loads((trained[1] / "run.json").read_text())


@pytest.fixture(scope="module")
def history(trained):
    with (trained[1] / "history.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def weights(trained):
    return torch.load(trained[1] / "mnist_ae.pt", weights_only=True)


def losses(folder):
    with (folder / "history.csv").open() as file:
        return [(row["train_loss"], row["test_loss"]) for row in csv.DictReader(file)]


def test_a_run_leaves_the_files_of_the_design_and_no_other(trained):
    names = {path.name for path in trained[1].iterdir()}
    assert names - {"checkpoint.pt", ".lock"} == {
        "n_components_95.txt", "pca.npz", "pca_cumulative_variance.png", "mnist_ae.pt", "run.json", "history.csv",
        "training_loss.png", "reconstructions.png",
    }  # fmt: skip


def test_code_size_auto_is_what_the_pca_says_and_is_announced(trained, record, weights, digits):
    count = fit_pca(digits).components_for(0.95)
    process, folder = trained
    assert (folder / "n_components_95.txt").read_text().strip() == str(count)
    assert f"Number of components to explain 95% variance: {count}\n" in process.stdout
    assert record["recipe"]["model_args"]["code_size"] == count == len(weights["encoder.2.bias"])


def test_the_weights_load_into_a_foreign_class_and_give_the_recorded_error(record, weights, digits):
    foreign = Foreign(code=len(weights["encoder.2.bias"]))
    foreign.load_state_dict(weights)
    x = torch.from_numpy(digits.test_images / 255).float() * 2 - 1
    with torch.no_grad():
        mse = (foreign(x)[0] - x).double().square().mean().item()
    metrics = record["metrics"]
    assert metrics["test_mse"] == pytest.approx(mse, rel=1e-5)
    assert metrics["test_mse"] == pytest.approx(4 * metrics["test_mse_unit"], rel=1e-9)
    assert metrics["test_loss"] == pytest.approx(mse, rel=1e-4)


def test_the_pca_beside_it_has_the_same_code_size_test_images_and_range(record, digits):
    train, test = digits.train_images / 255 * 2 - 1, digits.test_images / 255 * 2 - 1
    basis = np.linalg.eigh(np.cov(train, rowvar=False))[1][:, -record["recipe"]["model_args"]["code_size"] :]
    centred = test - train.mean(axis=0)
    direct = np.mean((centred - centred @ basis @ basis.T) ** 2)
    assert record["metrics"]["pca_test_mse"] == pytest.approx(direct, rel=1e-3)


def test_run_json_tells_recipe_images_versions_device_and_time(record, digits):
    assert record["recipe"]["name"] == "symmetric" and record["recipe"]["epochs"] == 2
    assert record["recipe"]["model_args"]["hidden_sizes"] == [64]
    assert record["dataset"]["name"] == "digits" and record["dataset"]["fingerprint"] == digits.fingerprint
    assert record["versions"]["torch"] == torch.__version__ and record["versions"]["numpy"] == np.__version__
    assert record["device"].split(":")[0] in ("cpu", "cuda", "mps") and record["precision"] and record["seconds"] > 0
    assert record["metrics"]["images_per_second"] > 0


def test_history_has_a_row_an_epoch_and_ends_where_run_json_does(history, record):
    assert list(history[0])[:3] == ["epoch", "train_loss", "test_loss"] and "seconds" in history[0]
    assert [row["epoch"] for row in history] == ["1", "2"]
    for name in ("train_loss", "test_loss"):
        assert float(history[-1][name]) == record["metrics"][name]
    assert float(history[1]["train_loss"]) < float(history[0]["train_loss"])


def test_stdout_holds_the_model_the_device_the_epochs_and_the_error_beside_pcas(trained, record, history):
    out = trained[0].stdout
    assert "Linear(in_features=784, out_features=64" in out and f"device {record['device']}" in out
    for row in history:
        assert f"Epoch {row['epoch']}/2: average loss {float(row['train_loss']):.4f}" in out
    summary = out[out.index("Test MSE") :]
    assert f"{record['metrics']['test_mse_unit']:.5f}" in summary
    assert f"{record['metrics']['pca_test_mse_unit']:.5f}" in summary


def test_a_run_that_ends_behind_pca_says_so(trained, record):
    assert record["metrics"]["test_mse"] > record["metrics"]["pca_test_mse"]  # two epochs are no match for PCA
    out = trained[0].stdout
    assert "behind PCA" in out or "above PCA" in out


def test_there_is_no_bar_when_nobody_watches_a_terminal(trained):
    process = trained[0]
    assert only_warnings(process.stderr) and "\r" not in process.stderr + process.stdout
    assert "images/s" not in process.stderr + process.stdout


@pytest.mark.parametrize("name", ["training_loss.png", "reconstructions.png"])
def test_the_pictures_are_pngs_with_something_on_them(trained, name):
    picture = Image.open(trained[1] / name)
    assert picture.format == "PNG" and min(picture.size) >= 350
    assert np.asarray(picture.convert("L")).std() > 10


def test_pictures_name_the_images_the_recipe_and_the_number(tmp_path, capsys, figures):
    flags = ("--dataset", "digits", "--epochs", 1, "--hidden-sizes", "", "--code-size", 4, "--output-dir", tmp_path)
    assert call_script(capsys, ae_train.main, *flags)[0] == 0
    metrics = json.loads((tmp_path / "run.json").read_text())["metrics"]
    loss, rows = figures
    loss_title = loss.get_suptitle()
    rows_title = rows.get_suptitle()
    for title in (loss_title, rows_title):
        assert "scikit-learn digits" in title and "symmetric" in title
        assert f"{metrics['test_mse_unit']:.4f}" in title


def test_the_same_seed_twice_gives_the_same_weights_bit_for_bit(trained, weights, tmp_path, capsys):
    assert call_script(capsys, ae_train.main, *TRAIN, "--output-dir", tmp_path)[0] == 0
    again = torch.load(tmp_path / "mnist_ae.pt", weights_only=True)
    assert list(weights) == list(again) and all(torch.equal(weights[k], again[k]) for k in weights)
    assert losses(tmp_path) == losses(trained[1])


def test_workers_have_no_effect_and_a_line_says_so(trained, weights, tmp_path, capsys):
    shutil.copy(trained[1] / "pca.npz", tmp_path)
    status, _, err = call_script(capsys, ae_train.main, *TRAIN, "--workers", 2, "--output-dir", tmp_path)
    assert status == 0 and err.startswith("--workers has no effect: the images are in memory\n")
    other = torch.load(tmp_path / "mnist_ae.pt", weights_only=True)
    assert all(torch.equal(weights[k], other[k]) for k in weights)
    assert losses(tmp_path) == losses(trained[1])


def test_a_second_run_reads_the_count_and_the_pca_it_finds(trained, tmp_path, capsys):
    for name in ("pca.npz", "n_components_95.txt"):
        shutil.copy(trained[1] / name, tmp_path)
    status, out, _ = call_script(capsys, ae_train.main, *TRAIN, "--output-dir", tmp_path)
    assert status == 0 and "PCA with 25 components" in out and "Number of components" not in out


def test_a_count_that_the_pca_beside_it_contradicts_is_refused(trained, tmp_path, capsys):
    for name in ("pca.npz", "n_components_95.txt"):
        shutil.copy(trained[1] / name, tmp_path)
    (tmp_path / "n_components_95.txt").write_text("7\n")
    status, _, err = call_script(capsys, ae_train.main, *TRAIN, "--output-dir", tmp_path)
    assert status == 2 and is_one_error_line(err) and "7" in err and "ae_pca.py" in err
    assert (tmp_path / "n_components_95.txt").read_text() == "7\n"


def test_a_bad_flag_is_one_line_and_status_2_and_no_file_is_touched(tmp_path):
    """As a process, once; test_hostile_flags.py covers every flag in this process."""
    folder = tmp_path / "out"
    process = run_script("ae_train.py", "--dataset", "digits", "--output-dir", folder, "--code-size", "abc")
    assert process.returncode == 2 and process.stdout == "" and is_one_error_line(process.stderr)
    assert "--code-size" in process.stderr and not folder.exists()


DEVICES = ["tpu", "cuda:99", "cuda:x", *([] if torch.cuda.is_available() else ["cuda"])]


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_is_not_there_is_one_line_and_status_2(tmp_path, capsys, device):
    folder = tmp_path / "out"
    status, out, err = call_script(capsys, ae_train.main, *TRAIN, "--device", device, "--output-dir", folder)
    assert status == 2 and out == "" and is_one_error_line(err) and f"--device {device}" in err
    assert not folder.exists()


@pytest.mark.parametrize("text", ["", "abc", "0", "785", "-1", "15.5"])
def test_a_spoilt_count_file_is_status_2_and_is_left_for_its_owner(trained, tmp_path, capsys, text):
    path = tmp_path / "n_components_95.txt"
    path.write_text(text)
    status, out, err = call_script(capsys, ae_train.main, *TRAIN, "--output-dir", tmp_path)
    assert status == 2 and out == "" and is_one_error_line(err)
    assert str(path) in err and "ae_pca.py" in err
    assert path.read_text() == text and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_count_of_another_image_set_is_refused_with_the_advice_to_run_the_pca_again(tmp_path, capsys, digits):
    other = replace(digits, train_images=digits.train_images[::-1].copy())
    write_pca(tmp_path, fit_pca(other), 0.95, "digits")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    status, out, err = call_script(capsys, ae_train.main, *TRAIN, "--output-dir", tmp_path)
    assert status == 2 and out == "" and is_one_error_line(err) and "run ae_pca.py" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_pca_file_is_status_1_and_names_it(trained, tmp_path, capsys):
    data = (trained[1] / "pca.npz").read_bytes()
    (tmp_path / "pca.npz").write_bytes(data[: len(data) // 2])
    status, _, err = call_script(capsys, ae_train.main, *TRAIN, "--output-dir", tmp_path)
    assert status == 1 and is_one_error_line(err) and "pca.npz" in err


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_an_output_folder_that_cannot_be_written_is_status_1(tmp_path, capsys, place):
    (tmp_path / "file").write_text("mine")
    status, _, err = call_script(capsys, ae_train.main, *TRAIN, "--output-dir", tmp_path / place)
    assert status == 1 and is_one_error_line(err) and place in err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_model_too_large_for_any_memory_is_one_line(tmp_path, capsys):
    flags = ("--dataset", "digits", "--hidden-sizes", 2**31 - 1, "--code-size", 2, "--output-dir", tmp_path / "out")
    status, _, err = call_script(capsys, ae_train.main, *flags)
    assert status in (1, 2) and is_one_error_line(err)


def test_diverged_training_is_status_1_and_no_traceback(trained, tmp_path, capsys):
    shutil.copy(trained[1] / "pca.npz", tmp_path)
    status, _, err = call_script(capsys, ae_train.main, *TRAIN, "--lr", 1e30, "--output-dir", tmp_path)
    assert status == 1 and is_one_error_line(err)


def test_ctrl_c_is_one_error_and_status_130_and_leaves_nothing_half_written(trained, tmp_path):
    shutil.copy(trained[1] / "pca.npz", tmp_path)
    flags = (*TRAIN, "--epochs", 1000000, "--log-interval", 1000000, "--output-dir", tmp_path)
    command = [sys.executable, "ae_train.py", *map(str, flags)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not process.stdout.readline().startswith("Epoch 2/") and time.monotonic() < deadline:
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and err.count("error: ") == 1 and "Traceback" not in err
    assert not (tmp_path / "mnist_ae.pt").exists() and not list(tmp_path.glob(".*.tmp"))
