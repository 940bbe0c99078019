import hashlib
import shutil

import pytest
import torch
from conftest import call_script, history, is_one_error_line, same_bits

import ae_train
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.training.checkpoint import read_record, save_record
from autoencoders.training.trained import load_run

CPU = torch.device("cpu")


def test_a_run_is_loaded_with_its_weights_recipe_and_record(finished):
    run = load_run(finished, CPU)
    assert not run.model.training and run.recipe.name == "denoising" and run.recipe.epochs == 3
    plain = torch.load(finished / "mnist_denoising.pt", weights_only=True)
    assert same_bits(plain, run.model.state_dict()) and run.record == read_record(finished)
    assert run.load_images().fingerprint == run.record["dataset"]["fingerprint"]


def test_a_number_changed_in_the_record_is_noticed(folder):
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace('"test_mse": 0.', '"test_mse": 0.0'))
    with pytest.raises(RunError, match=r"run\.json: was changed"):
        load_run(folder, CPU)


def test_weights_that_are_not_the_records_own_are_refused(folder):
    path = folder / "mnist_denoising.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"mnist_denoising\.pt"):
        load_run(folder, CPU)
    path.unlink()
    with pytest.raises(RunError, match=r"mnist_denoising\.pt"):
        load_run(folder, CPU)


def test_weights_that_give_no_finite_number_are_refused(folder):
    record, path = read_record(folder), folder / "mnist_denoising.pt"
    state = torch.load(path, weights_only=True)
    torch.save({name: torch.full_like(tensor, 1e38) for name, tensor in state.items()}, path)
    save_record(folder, record | {"weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    with pytest.raises(RunError, match=r"mnist_denoising\.pt"):
        load_run(folder, CPU)


def test_a_folder_without_a_run_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"run\.json"):
        load_run(tmp_path, CPU)


OLD = {  # folders that version 1.0.0 trained before the modules moved, with the flags that it took
    "symmetric": ("--recipe", "symmetric", "--hidden-sizes", 8, "--code-size", 6),
    "sparse": ("--recipe", "sparse", "--features", 16, "--num-saes", 2, "--k", 4),
}


@pytest.mark.parametrize("name", OLD)
def test_a_folder_of_an_earlier_version_is_loaded_and_resumed(name, tmp_path, capsys, request):
    folder = shutil.copytree(request.path.parents[1] / "fixtures" / f"{name}-1.0", tmp_path / "old")
    before, run = history(folder), load_run(folder, CPU)
    assert run.recipe.name == name and run.load_images().title == "scikit-learn digits"
    flags = (*OLD[name], "--dataset", "digits", "--output-dir", folder, "--device", "cpu", "--epochs", 3, "--resume")
    status, out, err = call_script(capsys, ae_train.main, *flags)
    assert status == 0 and "Epoch 3/3" in out and "Epoch 2" not in out, err
    assert history(folder)[:2] == before and len(history(folder)) == 3
    status, _, err = call_script(capsys, ae_train.main, *flags, "--lr", 1)
    assert status == 2 and is_one_error_line(err)
