"""Every tracker really used, offline, nobody logged in; and trackers that fail."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, call_script, history, is_one_error_line, make_trainer, run_script, same_bits

import ae_train
from autoencoders.training.run import Run
from autoencoders.training.trackers import TRACKERS, Trackers, flatten_lists

QUICK = ("--recipe", "bce", "--hidden-sizes", 32, "--dataset", "digits")
SPARSE = ("--recipe", "sparse", "--num-saes", 2, "--features", 64, "--k", 8, "--dataset", "digits")
ALL = [part for name in TRACKERS for part in ("--tracker", name)]


def metrics_of(folder):
    return flatten_lists(json.loads((folder / "run.json").read_text())["metrics"])


def weights(folder):
    return torch.load(next(folder.glob("mnist_*.pt")), weights_only=True)


def events_of(folder, name=None):
    """TensorBoard's own reader, of the one run in the folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (folder / "trackers" / "tensorboard").glob(name or "*")
    return EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0}).Reload()


def steps_of(events, name):
    return [event.step for event in events.Scalars(name)]


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    """(sparse, bce): folders of two epochs without a tracker."""
    folders = tmp_path_factory.mktemp("sparse"), tmp_path_factory.mktemp("bce")
    for flags, folder in zip((SPARSE, QUICK), folders):
        ae_train.main([str(a) for a in (*flags, "--epochs", 2, "--output-dir", folder)])
    return folders


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """(process, output folder, home folder) of a run with every tracker; its second epoch is a resumed one."""
    folder, home = tmp_path_factory.mktemp("tracked"), tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "SWANLAB_"))]:
            patch.delenv(name)
        for epochs in (1, 2):
            flags = ("--epochs", epochs, "--pictures-every", 1, "--tracker-interval", 5, "--output-dir", folder)
            process = run_script(
                "ae_train.py",
                *SPARSE,
                *flags,
                *ALL,
                "--resume",
                HOME=str(home),
                MPLCONFIGDIR=str(home.parent / "mpl"),
            )
            assert process.returncode == 0, process.stderr
    return process, folder, home


def test_tensorboard_holds_every_value_once_at_its_step(tracked):
    folder, events = tracked[1], events_of(tracked[1])
    rows, metrics = history(folder), metrics_of(folder)
    names = {*rows[0], "seconds", "images_per_second"}
    assert set(events.Tags()["scalars"]) == {"batch_loss", "lr", *names, *metrics}
    assert steps_of(events, "batch_loss") == [5, 10, 15, 20]
    assert all(steps_of(events, name) == [12, 24] for name in (*names, "lr"))
    for name in rows[0]:
        values = [event.value for event in events.Scalars(name)]
        assert values == pytest.approx([row[name] for row in rows], rel=1e-6), name
    for name, number in metrics.items():
        assert events.Scalars(name)[-1].value == pytest.approx(number, rel=1e-6), name


def test_tensorboard_holds_every_picture_and_the_settings(tracked):
    folder, events = tracked[1], events_of(tracked[1])
    names = {path.stem for path in folder.glob("*.png") if "_epoch_" not in path.stem}
    assert len(names) == 5 and set(events.Tags()["images"]) == {*names, "epoch_reconstructions"}
    assert all(events.Images(name)[-1].step == 24 for name in names)
    assert [image.step for image in events.Images("epoch_reconstructions")] == [12, 24]
    text = events.Tensors("recipe/text_summary")[-1].tensor_proto.string_val[0].decode()
    recipe = json.loads((folder / "run.json").read_text())["recipe"]
    for key, value in {**recipe, "dataset": "scikit-learn digits", "device": "cpu"}.items():
        assert f"| {key} | {value} |" in text


@pytest.mark.parametrize("name, pattern", [("wandb", "offline-run-*"), ("swanlab", "run-*")])
def test_a_resumed_run_is_the_same_run_to_its_tracker(tracked, name, pattern):
    """Their own files have no stable public reader: names, ids and pictures are looked for as they are."""
    state = json.loads((tracked[1] / "trackers" / f"{name}.json").read_text())
    runs = sorted((tracked[1] / "trackers" / name).glob(pattern))
    assert state["epochs"] == 2 and len(runs) == 2  # one folder per process, with one id
    for run in runs:
        content = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
        assert run.name.replace("_", "-").endswith(state["id"])
        assert all(value in content for value in (b"pearson_2", b"batch_loss", b"mmcs", b"scikit-learn digits"))
        assert list(run.rglob("*.png"))


def test_tracking_changes_no_bit_of_the_result(tracked, untracked):
    assert same_bits(weights(tracked[1]), weights(untracked[0]))
    assert history(tracked[1]) == history(untracked[0])


def test_a_run_that_is_stored_offline_is_announced_once_per_tracker_and_nothing_else_is_printed(tracked):
    lines = tracked[0].stderr.splitlines()
    assert [line.split(":")[0] for line in lines if "offline" in line] == ["wandb", "swanlab"]
    assert all("offline" in line or line.startswith(("warning: ", "Resuming ")) for line in lines)
    assert not [text for text in (tracked[0].stdout, *lines) if "--tracker" in text or "sync this" in text]


def test_trackers_write_below_the_output_folder_alone(tracked):
    assert not [path for path in tracked[2].rglob("*") if path.is_file()]
    assert not (ROOT / "wandb").exists() and not (ROOT / "swanlog").exists()


BROKEN = {
    "raises when it is imported": "raise RuntimeError('broken\\ninstall')",
    "raises while it logs": """
import random, torch
class Run:
    def log(self, *a, **k): torch.rand(5); raise OSError(28, 'No space left on device')
def init(**k): print('chatter'); torch.manual_seed(3); return Run()
def login(**k): random.seed(1)
class Settings:
    def __init__(self, **k): pass
def Image(path): pass
""",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_tracker_that(how, tmp_path, capfd, monkeypatch, untracked):
    """... is reported once, and the run ends as if it had not been there."""
    (tmp_path / "wandb.py").write_text(BROKEN[how])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    for name in ("CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path))
    folder = tmp_path / "run"
    flags = ("--epochs", 2, "--tracker", "wandb", "--output-dir", folder)
    status, out, err = call_script(capfd, ae_train.main, *QUICK, *flags)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    lines = [line for line in err.splitlines() if "--tracker" in line]
    assert status == 0 and len(lines) == 1 and lines[0].startswith("warning: --tracker wandb: "), err
    assert "Traceback" not in err and "chatter" not in out + err and "Wrote mnist_bce.pt" in out
    assert same_bits(weights(folder), weights(untracked[1]))
    assert metrics_of(folder)["test_mse"] == metrics_of(untracked[1])["test_mse"]


def test_ctrl_c_saves_and_ends_the_trackers_too(tmp_path):
    flags = (*QUICK, "--epochs", 100000, "--log-interval", 10**6, *ALL, "--output-dir", tmp_path)
    process = subprocess.Popen(
        [sys.executable, "ae_train.py", *map(str, flags)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        while not process.stdout.readline().startswith("Epoch 3/"):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "--tracker" not in err and "checkpoint.pt holds the progress" in err
    epochs = json.loads((tmp_path / "trackers" / "tensorboard.json").read_text())["epochs"]
    assert epochs >= 2 and len(events_of(tmp_path).Scalars("train_loss")) == epochs


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Environment of an installation of requirements.txt alone: everything that is installed here but the trackers."""
    folder = tmp_path_factory.mktemp("bare")
    for path in Path(np.__file__).parents[1].iterdir():
        if not path.name.startswith((*TRACKERS, "google", "protobuf", "grpc", "pydantic")):
            (folder / path.name).symlink_to(path)
    return {"PYTHONPATH": str(folder)}


def test_requirements_txt_alone_trains_without_trackers(tmp_path, bare, untracked):
    process = run_script("-S", "ae_train.py", *QUICK, "--epochs", 2, "--output-dir", tmp_path, **bare)
    assert process.returncode == 0, process.stderr
    assert same_bits(weights(tmp_path), weights(untracked[1])) and not (tmp_path / "trackers").exists()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_one_line_with_the_command_before_anything_is_done(tmp_path, bare, name):
    folder = tmp_path / "out"
    (tmp_path / name).mkdir()  # a folder of that name, as wandb leaves behind, is not the package
    path = f"{bare['PYTHONPATH']}{os.pathsep}{tmp_path}"
    process = run_script("-S", "ae_train.py", *QUICK, "--tracker", name, "--output-dir", folder, PYTHONPATH=path)
    assert process.returncode == 2 and is_one_error_line(process.stderr) and process.stdout == ""
    assert f"pip install {name}" in process.stderr and not folder.exists()


@pytest.fixture
def run(tmp_path, few):
    """A run of two epochs, of two steps each, that has a checkpoint: its trackers find it resumed."""
    run = Run(make_trainer("bce", few, hidden_sizes=(8,), epochs=2), few, tmp_path)
    run.save()
    return run


def log_with_tensorboard(run):
    with Trackers(run, ["tensorboard"], "project", 1) as trackers:
        for _ in run.trainer.epochs():
            trackers.log_epochs()
        trackers.log_epochs()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_log_that_is_a_link_or_a_pipe_ends_the_tracker_and_not_the_run(run, caplog, kind, tmp_path):
    path = run.folder / "trackers" / "tensorboard.log"
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere") if kind == "link" else os.mkfifo(path)
    log_with_tensorboard(run)
    assert len(run.trainer.history) == 2 and not (tmp_path / "elsewhere").exists()
    assert [record.message.startswith("--tracker tensorboard: ") for record in caplog.records] == [True]


@pytest.mark.parametrize("left", ["{", '{"id": 5, "epochs": "abc"}', None])
def test_files_that_an_earlier_run_has_left_end_the_tracker_and_not_the_run(run, caplog, left):
    path = run.folder / "trackers" / "tensorboard.json"
    if left is None:
        path.parent.write_text("a file where the folder should be")
    else:
        path.parent.mkdir()
        path.write_text(left)
    log_with_tensorboard(run)
    assert len(run.trainer.history) == 2
    assert [record.message.startswith("--tracker tensorboard: ") for record in caplog.records] == [True]


def test_a_tracker_that_joins_a_resumed_run_holds_the_epochs_before(run):
    next(run.trainer.epochs())
    log_with_tensorboard(run)
    events = events_of(run.folder)
    assert steps_of(events, "train_loss") == [2, 4] and steps_of(events, "batch_loss") == [1, 2, 3, 4]


def test_steps_after_the_last_epoch_on_record_are_replaced(run):
    log_with_tensorboard(run)
    path = run.folder / "trackers" / "tensorboard.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "epochs": 1}))  # as when the process died before it was written
    log_with_tensorboard(run)
    assert steps_of(events_of(run.folder), "train_loss") == [2, 4]


def test_a_fresh_start_is_a_new_run(run):
    log_with_tensorboard(run)
    run.digest = ""
    log_with_tensorboard(run)
    folders = sorted((run.folder / "trackers" / "tensorboard").iterdir())
    assert [steps_of(events_of(run.folder, folder.name), "train_loss") for folder in folders] == [[2, 4], [2, 4]]


def test_epochs_after_the_checkpoint_are_logged_again_and_once(run, few):
    log_with_tensorboard(run)  # both epochs, of which the checkpoint holds none
    killed = Run(make_trainer("bce", few, hidden_sizes=(8,), epochs=2), few, run.folder)
    assert not killed.resume() and not killed.trainer.history
    log_with_tensorboard(killed)
    events = events_of(run.folder)
    assert steps_of(events, "train_loss") == [2, 4] and steps_of(events, "batch_loss") == [1, 2, 3, 4]
