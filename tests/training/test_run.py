import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FINISHED_RUN, call_script, is_one_error_line, make_trainer

import ae_train
from autoencoders.evaluation.pca import PCA_FILE, fit_pca, n_components_file, write_pca
from autoencoders.recipes import RECIPES
from autoencoders.runtime import signals
from autoencoders.runtime.errors import RunError, UsageError
from autoencoders.runtime.files import locked
from autoencoders.training.checkpoint import load_checkpoint, read_record, save_checkpoint
from autoencoders.training.run import Run, resolve_code_size
from autoencoders.training.trainer import Diverged


def train(capsys, folder, *more):
    return call_script(capsys, ae_train.main, *FINISHED_RUN, "--output-dir", folder, *more)


def test_resuming_nothing_starts_a_run(tmp_path, capsys, finished):
    status, _, err = train(capsys, tmp_path / "new", "--resume")
    assert status == 0 and "Nothing to resume" in err
    assert (tmp_path / "new" / "mnist_denoising.pt").read_bytes() == (finished / "mnist_denoising.pt").read_bytes()


def test_resuming_a_finished_run_does_nothing(folder, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}
    status, out, err = train(capsys, folder, "--resume")
    assert status == 0 and "inished already" in err and out == ""
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"} == before


def test_more_epochs_continue_where_the_run_ended(folder, capsys, tmp_path):
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
    warning, error = err.splitlines(keepends=True)
    assert status == 2 and "not the published files" in warning
    assert is_one_error_line(error) and "other images" in error


def test_a_fresh_start_backs_up_the_checkpoint_of_an_unfinished_run_and_only_that(folder, capsys):
    status, _, err = train(capsys, folder, "--epochs", 1)
    assert status == 0 and "checkpoint.previous.pt" not in err and not (folder / "checkpoint.previous.pt").exists()
    state, _ = load_checkpoint(folder / "checkpoint.pt")
    state["trainer"]["history"] = []
    save_checkpoint(folder / "checkpoint.pt", state)
    unfinished = (folder / "checkpoint.pt").read_bytes()
    status, _, err = train(capsys, folder, "--epochs", 1)
    assert status == 0 and "checkpoint.previous.pt" in err
    assert (folder / "checkpoint.previous.pt").read_bytes() == unfinished


def test_a_folder_in_use_is_refused_with_the_process_that_uses_it(folder, capsys):
    with locked(folder):
        status, _, err = train(capsys, folder)
    assert status == 2 and is_one_error_line(err) and f"process {os.getpid()}" in err
    assert train(capsys, folder, "--resume")[0] == 0  # the lock ends with its holder


def test_a_loss_that_is_not_finite_stops_with_epoch_step_and_remedy(tmp_path, capsys):
    status, _, err = train(capsys, tmp_path, "--lr", 1e30, "--optimizer", "adamw", "--weight-decay", 1)
    assert status == 1 and is_one_error_line(err)
    assert all(word in err for word in ("epoch 1", "step", "learning rate", "--grad-clip"))


def test_a_test_loss_that_is_not_finite_is_one_error_that_names_it(few, tmp_path):
    """Black images to train on, white ones to test on: the KL of the test images alone is infinite."""
    images = replace(few, train_images=np.zeros_like(few.train_images), test_images=np.full_like(few.test_images, 255))
    run = Run(make_trainer("vae", images, epochs=1), images, tmp_path)
    with torch.no_grad():
        run.trainer.model.encoder[0].weight.fill_(1 / 784)
        run.trainer.model.encoder[0].bias.zero_()
        run.trainer.model.logvar.weight.fill_(120 / 256)
    with pytest.raises(RunError, match=r"test_kl_loss is inf after epoch 1: .*no checkpoint was written yet"):
        list(run.epochs(lambda *_: None, 10))


def test_a_signal_after_the_last_epoch_is_not_forgotten(few, tmp_path, monkeypatch):
    run = Run(make_trainer("simple", few, epochs=1), few, tmp_path)

    def no_more_epochs(on_step):
        os.kill(os.getpid(), signal.SIGTERM)
        return iter(())

    monkeypatch.setattr(run.trainer, "epochs", no_more_epochs)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(signals.Stopped, match="stopped") as caught:
            list(run.epochs(lambda *_: None, 10))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert caught.value.status == 143


def test_epochs_shorter_than_a_save_share_checkpoints_and_the_first_and_the_last_have_one(few, tmp_path):
    run = Run(make_trainer("simple", few, epochs=60, batch_size=32), few, tmp_path)
    saved = {}  # the digest of a checkpoint, and the epoch after which it was first seen
    for row in run.epochs(lambda *_: None, 10):
        saved.setdefault(run.digest, row["epoch"])
    epochs = list(saved.values())
    assert epochs[0] == 1 and epochs[-1] == 60 and 1 < len(epochs) < 60
    assert len(load_checkpoint(run.path)[0]["trainer"]["history"]) == 60


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_stop_after_an_epoch_saves_it_once(few, tmp_path, is_saved):
    run = Run(make_trainer("simple", few, epochs=60, batch_size=32), few, tmp_path)
    before, digest, saved = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}, "", []
    try:
        with pytest.raises(signals.Stopped):
            for row in run.epochs(lambda *_: None, 10):
                if not saved and (run.digest != digest) == is_saved:
                    saved = [row["epoch"], run.path.stat().st_mtime_ns]
                    os.kill(os.getpid(), signal.SIGTERM)
                digest = run.digest
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert len(load_checkpoint(run.path)[0]["trainer"]["history"]) == saved[0] < 60
    assert (run.path.stat().st_mtime_ns == saved[1]) == is_saved


def test_divergence_names_the_epoch_and_the_step(few):
    trainer = make_trainer("simple", few, epochs=3, batch_size=32)
    epochs = trainer.epochs()
    next(epochs)
    with torch.no_grad():
        next(trainer.model.parameters())[0, 0] = torch.nan
    with pytest.raises(Diverged, match="epoch 2 at step 1"):
        next(epochs)


def test_a_run_without_its_results_is_not_finished(folder, capsys):
    (folder / "run.json").unlink()
    checkpoint = (folder / "checkpoint.pt").read_bytes()
    picture = (folder / "reconstructions.png").read_bytes()
    status, out, err = train(capsys, folder, "--resume")
    assert status == 0 and "its results" in err and "Epoch" not in out
    assert (folder / "reconstructions.png").read_bytes() == picture and (folder / "run.json").exists()
    (folder / "run.json").unlink()
    assert train(capsys, folder, "--lr", 0.01)[0] == 0  # a fresh start must not lose what only the checkpoint holds
    assert (folder / "checkpoint.previous.pt").read_bytes() == checkpoint


def test_damaged_weights_are_written_again_by_a_resume(folder, capsys):
    path = folder / "mnist_denoising.pt"
    weights = path.read_bytes()
    for damaged in (b"", weights[:100]):
        path.write_bytes(damaged)
        status, _, err = train(capsys, folder, "--resume")
        assert status == 0 and "its results" in err and path.read_bytes() == weights


def test_a_missing_picture_is_drawn_again_by_a_resume(folder, capsys):
    picture = (folder / "training_loss.png").read_bytes()
    (folder / "training_loss.png").unlink()
    assert train(capsys, folder, "--resume")[0] == 0
    assert (folder / "training_loss.png").read_bytes() == picture


def test_results_of_another_run_in_the_folder_do_not_make_this_one_finished(folder, capsys, tmp_path):
    assert train(capsys, tmp_path / "mixed", "--amp", "on")[0] == 0
    shutil.copy(tmp_path / "mixed" / "checkpoint.pt", folder)  # it died before its own results replaced the old ones
    status, _, err = train(capsys, folder, "--resume", "--amp", "on")
    assert status == 0 and "inished already" not in err and read_record(folder)["precision"] == "bfloat16"


def test_a_run_resumes_by_itself_only_under_the_torchrun_launch_that_began_it(tmp_path, monkeypatch, capsys):
    flags = ("--dataset", "digits", "--recipe", "simple", "--output-dir", tmp_path)
    for launch_name, epochs, begins in (("a", 1, ""), ("a", 2, "at epoch 2"), ("b", 3, ""), ("none", 4, "")):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch_name)
        status, _, err = call_script(capsys, ae_train.main, *flags, "--epochs", epochs)
        assert status == 0 and ("Resuming" in err) == bool(begins) and begins in err


@pytest.fixture
def automatic():
    return RECIPES["symmetric"]


def test_the_code_size_comes_from_the_files_or_from_a_new_fit(automatic, digits, tmp_path):
    pca = fit_pca(digits)
    count = pca.components_for(0.95)
    recipe, fitted, is_new = resolve_code_size(automatic, digits, tmp_path)
    assert (recipe.code_size, is_new) == (count, True) and np.array_equal(fitted.components, pca.components)
    write_pca(tmp_path, pca, 0.95, "digits")
    recipe, found, is_new = resolve_code_size(automatic, digits, tmp_path)
    assert (recipe.code_size, found.samples, is_new) == (count, pca.samples, False)
    (tmp_path / PCA_FILE).unlink()
    n_components_file(tmp_path, 0.95).write_text("7\n")
    assert resolve_code_size(automatic, digits, tmp_path)[0].code_size == 7


def test_files_that_contradict_each_other_or_belong_to_other_images_are_refused(automatic, digits, few, tmp_path):
    write_pca(tmp_path, fit_pca(digits), 0.95, "digits")
    with pytest.raises(UsageError, match="not on these images"):
        resolve_code_size(automatic, few, tmp_path)
    n_components_file(tmp_path, 0.95).write_text("7\n")
    with pytest.raises(UsageError, match="says 7"):
        resolve_code_size(automatic, digits, tmp_path)
    given = automatic.override({"code_size": 9})
    recipe, fitted, is_new = resolve_code_size(given, few, tmp_path)  # needs the PCA for comparison only
    assert (recipe, fitted.samples, is_new) == (given, len(few.train_images), False)
