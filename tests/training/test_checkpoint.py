import copy
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import call_script, is_one_error_line

import ae_train
from autoencoders.recipes import RECIPES
from autoencoders.runtime.device import Precision
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import lock_folder
from autoencoders.training.checkpoint import load_checkpoint, load_run, read_record, save_checkpoint
from autoencoders.training.trainer import Diverged, Trainer

CPU = torch.device("cpu")
RUN = ("--recipe", "denoising", "--dataset", "digits", "--epochs", 3)


class Interrupted(Exception):
    pass


def trainer_for(name, images, **settings):
    recipe = RECIPES[name].override({"epochs": 3, "batch_size": 32, **settings})
    torch.manual_seed(recipe.seed)
    return Trainer(recipe.build(), recipe, images.train_images, images.test_images, CPU, Precision("off", CPU))


def weights(trainer):
    return trainer.model.state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("symmetric", {"hidden_sizes": (32,), "code_size": 8}),
        ("denoising", {"lr_schedule": "one-cycle"}),
        ("vae", {"lr_schedule": "cosine"}),
        ("sparse", {"features": 64, "k": 8, "num_saes": 2}),
    ],
)
@pytest.mark.parametrize("stop", [(1, 1), (2, 5), (3, 8)])
def test_a_run_resumed_mid_epoch_ends_in_the_same_bits(few, tmp_path, name, settings, stop):
    whole = trainer_for(name, few, **settings)
    list(whole.epochs())
    broken = trainer_for(name, few, **settings)

    def interrupt(epoch, step, steps, loss):
        if (epoch, step) == stop:
            raise Interrupted

    with pytest.raises(Interrupted):
        list(broken.epochs(interrupt))
    facts = {"recipe": whole.recipe.as_dict(), "fingerprint": "", "precision": "", "versions": {}}
    save_checkpoint(tmp_path / "checkpoint.pt", {**facts, "trainer": broken.state_dict()})
    torch.manual_seed(99)  # another process has drawn other numbers before
    resumed = trainer_for(name, few, **settings)
    resumed.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt")["trainer"])
    list(resumed.epochs())
    assert equal(weights(resumed), weights(whole)) and resumed.batch_losses == whole.batch_losses
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


def train(capsys, folder, *more):
    return call_script(capsys, ae_train.main, *RUN, "--output-dir", folder, *more)


def test_resuming_nothing_starts_fresh_and_says_so(tmp_path, capsys, finished):
    status, _, err = train(capsys, tmp_path / "new", "--resume")
    assert status == 0 and "starting fresh" in err
    assert (tmp_path / "new" / "mnist_denoising.pt").read_bytes() == (finished / "mnist_denoising.pt").read_bytes()


def test_resuming_what_is_finished_does_nothing_and_says_so(folder, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    status, out, err = train(capsys, folder, "--resume")
    assert status == 0 and "inished already" in err and out == ""
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_more_epochs_go_on_where_the_run_ended(folder, capsys, tmp_path):
    status, out, _ = train(capsys, folder, "--resume", "--epochs", 4)
    assert status == 0 and "Epoch 4/4" in out and "Epoch 3" not in out
    status, _, _ = train(capsys, tmp_path / "at-once", "--epochs", 4)
    name = "mnist_denoising.pt"
    assert (folder / name).read_bytes() == (tmp_path / "at-once" / name).read_bytes()


def test_other_settings_are_each_listed_and_refused(folder, capsys):
    status, _, err = train(capsys, folder, "--resume", "--lr", 0.5, "--noise-factor", 0.1)
    assert status == 2 and is_one_error_line(err)
    assert "lr 0.001 (now 0.5)" in err and "noise_factor 0.5 (now 0.1)" in err
    status, _, err = train(capsys, folder, "--resume", "--epochs", 2)
    assert status == 2 and "epochs 3 (now 2)" in err


def test_a_schedule_that_depends_on_the_length_cannot_be_lengthened(tmp_path, capsys):
    schedule = ("--lr-schedule", "one-cycle")
    assert train(capsys, tmp_path, *schedule)[0] == 0
    status, _, err = train(capsys, tmp_path, *schedule, "--resume", "--epochs", 5)
    assert status == 2 and is_one_error_line(err) and "one-cycle" in err


def test_other_images_are_refused(folder, capsys, fake_mnist):
    status, _, err = train(capsys, folder, "--resume", "--dataset", "mnist", "--data-root", fake_mnist[0])
    assert status == 2 and is_one_error_line(err) and "other images" in err


def test_a_fresh_start_keeps_the_checkpoint_of_an_unfinished_run_and_only_that(folder, capsys):
    status, _, err = train(capsys, folder, "--epochs", 1)
    assert status == 0 and "checkpoint.previous.pt" not in err and not (folder / "checkpoint.previous.pt").exists()
    state = load_checkpoint(folder / "checkpoint.pt")
    state["trainer"]["history"] = []
    save_checkpoint(folder / "checkpoint.pt", state)
    unfinished = (folder / "checkpoint.pt").read_bytes()
    status, _, err = train(capsys, folder, "--epochs", 1)
    assert status == 0 and "checkpoint.previous.pt" in err
    assert (folder / "checkpoint.previous.pt").read_bytes() == unfinished


def test_a_folder_in_use_is_refused_by_the_name_of_who_uses_it(folder, capsys):
    with lock_folder(folder):
        status, _, err = train(capsys, folder)
    assert status == 2 and is_one_error_line(err) and f"process {os.getpid()}" in err
    assert train(capsys, folder, "--resume")[0] == 0  # the lock has ended with its holder


def test_a_loss_that_is_not_finite_stops_with_its_place_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    status, _, err = train(capsys, tmp_path, "--lr", 1e30, "--optimizer", "adamw", "--weight-decay", 1)
    assert status == 1 and is_one_error_line(err)
    assert all(word in err for word in ("epoch 1", "step", "learning rate", "--grad-clip"))


def test_divergence_later_names_the_checkpoint_before_it(few):
    trainer = trainer_for("simple", few)
    epochs = trainer.epochs()
    next(epochs)
    with torch.no_grad():
        next(trainer.model.parameters())[0, 0] = torch.nan
    with pytest.raises(Diverged, match="epoch 2 at step 1"):
        next(epochs)


def test_a_clipped_gradient_moves_the_weights_less(few):
    def first_step(clip):
        trainer = trainer_for("simple", few, grad_clip=clip, optimizer="adam")
        before = copy.deepcopy(weights(trainer))
        gradients = []
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_: gradients.append(
                torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]["params"]]).norm().item()
            )
        )
        next(trainer.epochs())
        assert not equal(before, weights(trainer))
        return gradients

    free, clipped = first_step(0.0), first_step(1e-3)
    assert max(clipped) == pytest.approx(1e-3, rel=1e-3) and min(free) > 1e-3


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_checkpoint_is_refused_by_name(folder, capsys, damage):
    path = folder / "checkpoint.pt"
    data = path.read_bytes()
    flipped = data[:5000] + bytes([data[5000] ^ 4]) + data[5001:]
    path.write_bytes({"cut": data[:-1], "flip": flipped, "empty": b"", "foreign": b"PK\x03\x04" + data}[damage])
    status, _, err = train(capsys, folder, "--resume")
    assert status == 1 and is_one_error_line(err) and "checkpoint.pt" in err


class Hostile:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def test_a_hostile_checkpoint_runs_no_code(folder, capsys, tmp_path):
    save_checkpoint(folder / "checkpoint.pt", {"recipe": Hostile(tmp_path / "proof")})
    status, _, err = train(capsys, folder, "--resume")
    assert status == 1 and is_one_error_line(err) and not (tmp_path / "proof").exists()


def test_a_run_is_loaded_with_its_weights_recipe_and_record(finished):
    model, recipe, record = load_run(finished, CPU)
    assert not model.training and recipe.name == "denoising" and recipe.epochs == 3
    plain = torch.load(finished / "mnist_denoising.pt", weights_only=True)
    assert equal(plain, model.state_dict()) and record == read_record(finished)


def test_a_number_changed_in_the_record_is_noticed(folder):
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace('"test_mse": 0.', '"test_mse": 0.0'))
    with pytest.raises(RunError, match=r"run.json: was changed"):
        load_run(folder, CPU)


def test_weights_that_are_not_the_records_own_are_refused(folder):
    path = folder / "mnist_denoising.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"mnist_denoising.pt: is not the file"):
        load_run(folder, CPU)
    path.unlink()
    with pytest.raises(RunError, match=r"mnist_denoising.pt: cannot be read"):
        load_run(folder, CPU)


def test_a_folder_without_a_run_is_a_mistake(tmp_path):
    with pytest.raises(UsageError, match=r"run.json: is not there"):
        load_run(tmp_path, CPU)


def test_no_checkpoint_holds_anything_but_tensors_and_plain_values(finished):
    def plain(value):
        if isinstance(value, dict):
            return all(plain(k) and plain(v) for k, v in value.items())
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return value is None or type(value) in (str, int, float, bool, torch.Tensor)

    assert plain(load_checkpoint(finished / "checkpoint.pt"))


def test_the_history_of_a_run_is_one_unbroken_table(finished):
    rows = np.genfromtxt(finished / "history.csv", delimiter=",", names=True)
    assert rows["epoch"].tolist() == [1, 2, 3] and np.isfinite(rows["train_loss"]).all()


def test_a_trained_run_whose_results_are_not_written_is_not_finished(folder, capsys):
    (folder / "run.json").unlink()
    checkpoint = (folder / "checkpoint.pt").read_bytes()
    picture = (folder / "reconstructions.png").read_bytes()
    status, out, err = train(capsys, folder, "--resume")
    assert status == 0 and "at the last results" in err and "Epoch" not in out
    assert (folder / "reconstructions.png").read_bytes() == picture and (folder / "run.json").exists()
    (folder / "run.json").unlink()
    assert train(capsys, folder, "--lr", 0.01)[0] == 0  # a fresh start must not lose what only the checkpoint holds
    assert (folder / "checkpoint.previous.pt").read_bytes() == checkpoint


def test_results_of_another_run_in_the_folder_do_not_make_this_one_finished(folder, capsys, tmp_path):
    assert train(capsys, tmp_path / "mixed", "--amp", "on")[0] == 0
    shutil.copy(tmp_path / "mixed" / "checkpoint.pt", folder)  # it died before its own results replaced the old ones
    status, _, err = train(capsys, folder, "--resume", "--amp", "on")
    assert status == 0 and "inished already" not in err and read_record(folder)["precision"] == "bfloat16"
