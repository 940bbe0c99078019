import os

import numpy as np
import pytest
import torch
from conftest import make_trainer, same_bits

from autoencoders.runtime.errors import RunError
from autoencoders.training.checkpoint import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")
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


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign", "version"])
def test_a_damaged_checkpoint_is_refused_by_name(folder, damage):
    path = folder / "checkpoint.pt"
    data = path.read_bytes()
    flipped = data[:5000] + bytes([data[5000] ^ 4]) + data[5001:]
    other = data.replace(b"checkpoint 2", b"checkpoint 1", 1)
    damaged = {"cut": data[:-1], "flip": flipped, "empty": b"", "foreign": b"PK\x03\x04" + data, "version": other}
    path.write_bytes(damaged[damage])
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
