import copy
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


ODD = {  # tensors that are equal to good ones, but not memory of their own
    "offset": ("random", lambda t: torch.cat([t, t])[t.numel() :]),
    "negated": ("optimizer", lambda t: torch._neg_view(t.neg())),
    "gradient": ("logged", lambda t: t.clone().requires_grad_()),
}


@pytest.mark.parametrize("name", ODD)
def test_a_tensor_of_a_checkpoint_becomes_memory_of_its_own(name, few, tmp_path):
    def interrupt(epoch, step, *_):
        if step == 3:
            raise Interrupted

    whole, broken, resumed = (make_trainer("simple", few, epochs=1, batch_size=32) for _ in range(3))
    list(whole.epochs())
    with pytest.raises(Interrupted):
        list(broken.epochs(interrupt))
    state, (part, change) = broken.state_dict(), ODD[name]
    if part == "random":
        state[part] = change(state[part])
    elif part == "logged":
        state[part] = {key: change(value) for key, value in state[part].items()}
    else:
        for moments in state[part]["state"].values():
            moments["exp_avg"] = change(moments["exp_avg"])
    torch.save(state, tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    list(resumed.epochs())
    assert same_bits(resumed.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize("moment", ["step", "exp_avg_sq"])
def test_negative_numbers_that_adam_cannot_have_are_refused(moment, few):
    trainer = make_trainer("simple", few, epochs=1, batch_size=32)
    list(trainer.epochs())
    state = trainer.state_dict()
    state["optimizer"]["state"][0][moment].neg_().sub_(1)
    with pytest.raises(ValueError, match="are negative"):
        make_trainer("simple", few, epochs=1, batch_size=32).load_state_dict(state)


STRANGE = {  # changes of a state after one epoch of two, which a re-made checksum would let through
    "total steps": ("one-cycle", lambda s: s["schedule"].update(total_steps=1)),
    "phase": ("one-cycle", lambda s: s["schedule"]["_schedule_phases"][0].update(start_lr="\x1b[2J")),
    "half period": ("cosine", lambda s: s["schedule"].update(T_max=0)),
    "step": ("cosine", lambda s: s["schedule"].update(last_epoch=3)),
    "two values": ("constant", lambda s: s["history"][0].update(seconds=[1.0])),
    "measured value": ("constant", lambda s: s["history"][0].update(test_mse=-5.0)),
    "missing column": ("constant", lambda s: s["history"][0].pop("test_loss")),
    "epochs": ("constant", lambda s: s.update(history=[{**s["history"][0], "epoch": n} for n in range(1, 6)])),
    "whole losses": ("constant", lambda s: s.update(logged={"train_loss": torch.zeros(10, dtype=torch.int64)})),
    "large losses": ("constant", lambda s: s["batch_losses"].fill_(1.7e308)),
    "uphill": ("constant", lambda s: s["optimizer"]["param_groups"][0].update(lr=-1.0)),
    "rounding": ("constant", lambda s: s["optimizer"]["param_groups"][0].update(eps=-1.0)),
}


@pytest.mark.parametrize("change", STRANGE)
def test_a_state_that_its_recipe_could_not_have_left_is_refused(change, few):
    schedule, apply = STRANGE[change]
    settings = {"epochs": 2, "batch_size": 32, "lr_schedule": schedule}
    trainer = make_trainer("simple", few, **settings)
    next(trainer.epochs())
    state = trainer.state_dict()
    make_trainer("simple", few, **settings).load_state_dict(copy.deepcopy(state))
    apply(state)
    with pytest.raises((ValueError, TypeError, KeyError)):
        make_trainer("simple", few, **settings).load_state_dict(state)
