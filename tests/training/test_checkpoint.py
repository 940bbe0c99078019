import os
import shutil

import numpy as np
import pytest
import torch
from conftest import call_script, history, is_one_error_line, make_trainer, same_bits

import ae_train
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.training.checkpoint import load_checkpoint, load_run, read_record, save_checkpoint

CPU = torch.device("cpu")
RUN = ("--recipe", "denoising", "--dataset", "digits", "--epochs", 3)
RESUMABLE = {
    "symmetric": {"hidden_sizes": (32,), "code_size": 8},
    "denoising": {"lr_schedule": "one-cycle"},
    "vae": {"lr_schedule": "cosine"},
    "sparse": {"features": 64, "k": 8, "num_saes": 2},
}


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("name", RESUMABLE)
def test_a_run_resumed_mid_epoch_ends_in_the_same_bits(few, tmp_path, name):
    def new():
        return make_trainer(name, few, epochs=3, batch_size=32, **RESUMABLE[name])

    whole = new()
    list(whole.epochs())
    for stop in ((1, 1), (2, 5), (3, 8)):
        broken = new()

        def interrupt(epoch, step, steps, loss, stop=stop):
            if (epoch, step) == stop:
                raise Interrupted

        with pytest.raises(Interrupted):
            list(broken.epochs(interrupt))
        identity = {"recipe": whole.recipe.as_dict(), "fingerprint": "", "precision": "", "versions": {}}
        save_checkpoint(tmp_path / "checkpoint.pt", {**identity, "trainer": broken.state_dict()})
        torch.manual_seed(99)  # another process has drawn other numbers before
        resumed = new()
        resumed.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt")[0]["trainer"])
        list(resumed.epochs())
        assert same_bits(resumed.model.state_dict(), whole.model.state_dict())
        assert resumed.batch_losses == whole.batch_losses
        rows = [[{k: v for k, v in row.items() if "second" not in k} for row in t.history] for t in (resumed, whole)]
        assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run; for copying, not for writing into."""
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    ae_train.main([str(a) for a in (*RUN, "--output-dir", folder)])
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_is_loaded_with_its_weights_recipe_and_record(finished):
    run = load_run(finished, CPU)
    assert not run.model.training and run.recipe.name == "denoising" and run.recipe.epochs == 3
    plain = torch.load(finished / "mnist_denoising.pt", weights_only=True)
    assert same_bits(plain, run.model.state_dict()) and run.record == read_record(finished)
    assert run.load_images().fingerprint == run.record["dataset"]["fingerprint"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_checkpoint_is_refused_by_name(folder, damage):
    path = folder / "checkpoint.pt"
    data = path.read_bytes()
    flipped = data[:5000] + bytes([data[5000] ^ 4]) + data[5001:]
    path.write_bytes({"cut": data[:-1], "flip": flipped, "empty": b"", "foreign": b"PK\x03\x04" + data}[damage])
    with pytest.raises(RunError, match=r"checkpoint\.pt"):
        load_checkpoint(path)


class Hostile:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def test_a_hostile_checkpoint_runs_no_code(folder, tmp_path):
    save_checkpoint(folder / "checkpoint.pt", {"recipe": Hostile(tmp_path / "proof")})
    with pytest.raises(RunError, match=r"checkpoint\.pt"):
        load_checkpoint(folder / "checkpoint.pt")
    assert not (tmp_path / "proof").exists()


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


def test_a_folder_without_a_run_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"run\.json"):
        load_run(tmp_path, CPU)


def test_a_checkpoint_holds_tensors_and_plain_values_only(finished):
    def plain(value):
        if isinstance(value, dict):
            return all(plain(k) and plain(v) for k, v in value.items())
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return value is None or type(value) in (str, int, float, bool, torch.Tensor)

    assert plain(load_checkpoint(finished / "checkpoint.pt")[0])


def test_the_history_of_a_run_is_one_unbroken_table(finished):
    rows = np.genfromtxt(finished / "history.csv", delimiter=",", names=True)
    assert rows["epoch"].tolist() == [1, 2, 3] and np.isfinite(rows["train_loss"]).all()


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
