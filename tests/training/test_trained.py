import pytest
import torch
from conftest import same_bits

from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.training.checkpoint import read_record
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


def test_a_record_of_another_format_is_refused(folder):
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace('"format": 2', '"format": 1'))
    with pytest.raises(RunError, match=r"run\.json: was written by another version of the suite"):
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


def test_a_folder_without_a_run_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"run\.json"):
        load_run(tmp_path, CPU)
