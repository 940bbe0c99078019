"""The runs behind a report: finished ones are used as they are, interrupted ones continue, others are set aside."""

import contextlib
import signal
from dataclasses import replace

import pytest
import torch
from conftest import make_trainer, same_bits

from autoencoders.evaluation.loss_analysis import analyse_untrained
from autoencoders.evaluation.pca import fit_pca
from autoencoders.reproduction import runs
from autoencoders.reproduction.claims import CLAIMS, Claim
from autoencoders.reproduction.runs import Setup, make_training, plan
from autoencoders.runtime import signals
from autoencoders.runtime.errors import RunError
from autoencoders.training.trained import load_run

CPU = torch.device("cpu")


@pytest.fixture
def setup(few, tmp_path):
    return Setup(few, fit_pca(few), tmp_path, CPU)


@pytest.fixture
def handlers():
    """Restores the handlers that a stopped run leaves behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def training(setup, epochs=1, **settings):
    made = make_training(("bce",), 0, setup)
    return replace(made, recipe=made.recipe.override({"epochs": epochs, **settings}))


def test_a_run_is_the_suites_own_training(setup, few):
    run = training(setup, epochs=2)
    run.train()
    trainer = make_trainer("bce", few, epochs=2)
    losses = [row["test_loss"] for row in trainer.epochs()]
    assert [row["test_loss"] for row in run.history] == losses
    assert same_bits(load_run(run.folder, CPU).model.state_dict(), trainer.model.state_dict())
    assert run.measured("2.test_loss") == losses[1] == run.measured("metrics.test_loss")


def test_a_finished_run_is_used_as_it_is_and_a_changed_csv_is_written_again(setup):
    first, again = training(setup), training(setup)
    first.train()
    before = (first.folder / "run.json").stat().st_mtime_ns
    assert again.restore()[1]
    again.train()
    assert (first.folder / "run.json").stat().st_mtime_ns == before
    history = (first.folder / "history.csv").read_bytes()
    (first.folder / "history.csv").write_text("epoch,test_loss\n1,0.0\n")
    again.train()
    assert (first.folder / "history.csv").read_bytes() == history
    assert again.history == first.history and again.record == first.record


def test_results_that_were_changed_are_written_again_without_training(setup):
    first, again = training(setup), training(setup)
    first.train()
    path = first.folder / "run.json"
    path.write_text(path.read_text().replace('"test_mse": ', '"test_mse": 1'))
    again.train()
    assert again.history == first.history and again.record["metrics"] == first.record["metrics"]


def test_a_checkpoint_of_other_settings_is_set_aside_if_it_is_unfinished(setup):
    other, run = training(setup, lr=0.1), training(setup)
    other.train()
    (other.folder / "run.json").unlink()  # as if its last step were missing
    run.train()
    assert run.record["recipe"]["lr"] == run.recipe.lr and len(run.history) == 1
    assert (run.folder / "checkpoint.previous.pt").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_saves_its_progress_and_continues_to_the_same_bits(
    setup, few, monkeypatch, handlers, number, status
):
    @contextlib.contextmanager
    def progress(*_):
        yield lambda epoch, step, *_: signal.raise_signal(number) if (epoch, step) == (2, 1) else None

    monkeypatch.setattr(runs, "training_progress", progress)
    with pytest.raises(signals.Stopped, match="same command continues") as stopped:
        training(setup, epochs=2).train()
    assert stopped.value.status == status and "--resume" not in str(stopped.value)
    monkeypatch.undo()
    run = training(setup, epochs=2)
    assert not run.restore()[1]
    run.train()
    trainer = make_trainer("bce", few, epochs=2)
    assert [row["train_loss"] for row in trainer.epochs()] == [row["train_loss"] for row in run.history]
    assert same_bits(load_run(run.folder, CPU).model.state_dict(), trainer.model.state_dict())


def test_every_claim_has_its_runs_one_per_seed(setup):
    planned = plan(CLAIMS, 2, setup)
    for name, claims in CLAIMS.items():
        for claim in claims or [Claim("", "")]:
            assert [run.recipe.name for run in planned[name, *claim.flags]] == [name, name]
            assert not claim.baseline or claim.baseline in planned
    assert [run.recipe.seed for run in planned["bce",]] == [42, 43]
    assert planned["simple", "--code-size", "64"][0].recipe.code_size == 64
    assert planned["symmetric",][0].recipe.code_size == setup.pca.components_for(0.95)
    folders = [run.folder for seeds in planned.values() for run in seeds]
    assert len(set(folders)) == len(folders)


def test_numbers_that_need_no_training(setup, few):
    run = make_training(("symmetric",), 0, setup)
    assert run.measured("pca.components") == setup.pca.components_for(0.95)
    assert run.measured("compression.150") == pytest.approx(784 / 150)
    sparse = replace(make_training(("sparse",), 0, setup))
    sparse.recipe = sparse.recipe.override({"features": 64, "k": 4, "num_saes": 2, "batch_size": 16})
    expected = analyse_untrained(sparse.recipe, few.train_images, CPU)["mse"]
    assert len(expected) == 2 and sparse.measured("analysis.mse") == pytest.approx(sum(expected) / 2)


def test_a_number_that_a_finished_run_does_not_hold_is_one_error_that_names_its_folder(setup):
    run = training(setup)
    run.train()
    for metric in ("metrics.no_such", "9.test_loss", "1.no_such"):
        with pytest.raises(RunError, match=f"{run.folder}: holds no {metric}; delete it"):
            run.measured(metric)
