"""Every tracker really used, offline, and read back by its own reader; and trackers that fail in every way."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, call_script, is_one_error_line, run_script
from PIL import Image

import ae_train
from autoencoders.training import trackers
from autoencoders.training.trackers import flat

RUN = ("--recipe", "sparse", "--num-saes", 2, "--features", 64, "--k", 8, "--dataset", "digits")
QUICK = ("--recipe", "bce", "--hidden-sizes", 32, "--dataset", "digits")
ALL = [part for name in trackers.TRACKERS for part in ("--tracker", name)]
OURS = [name for name in os.environ if name.startswith(("WANDB_", "SWANLAB_"))]


def metrics_of(folder):
    return flat(json.loads((folder / "run.json").read_text())["metrics"])


def rows_of(folder):
    header, *rows = [line.split(",") for line in (folder / "history.csv").read_text().splitlines()]
    return [dict(zip(header, map(float, row))) for row in rows]


def same_weights(one, other):
    one, other = (torch.load(next(folder.glob("mnist_*.pt")), weights_only=True) for folder in (one, other))
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untracked")
    ae_train.main([str(a) for a in (*RUN, "--epochs", 2, "--output-dir", folder)])
    return folder


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """(process, output folder, home folder) of a run of the real script with every tracker, nobody logged in."""
    folder, home = tmp_path_factory.mktemp("tracked"), tmp_path_factory.mktemp("home")
    here = {name: os.environ.pop(name) for name in OURS}
    flags = ("--epochs", 2, "--pictures-every", 1, "--tracker-interval", 5, "--output-dir", folder)
    process = run_script("ae_train.py", *RUN, *flags, *ALL, HOME=str(home), MPLCONFIGDIR=str(folder.parent / "mpl"))
    os.environ.update(here)
    assert process.returncode == 0, process.stderr
    return process, folder, home


@pytest.fixture(scope="module")
def events(tracked):
    return read_events(tracked[1])


def read_events(folder):
    (run,) = (folder / "trackers" / "tensorboard").iterdir()
    return read_run(run)


def read_run(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0}).Reload()


def check(told, folder, steps=12, interval=5):
    """`told` maps names to [(step, number)]: exactly the run's numbers, at the steps they belong to."""
    rows, metrics = rows_of(folder), metrics_of(folder)
    assert [step for step, _ in told["batch_loss"]] == list(range(interval, steps * len(rows) + 1, interval))
    for name in rows[0]:
        wanted = [(steps * (number + 1), row[name]) for number, row in enumerate(rows)]
        assert [step for step, _ in told[name]] == [step for step, _ in wanted], name
        assert [number for _, number in told[name]] == pytest.approx([n for _, n in wanted], rel=1e-6)
    assert [number for _, number in told["lr"]] == pytest.approx([1e-3] * len(rows))
    for name, number in metrics.items():
        assert told[name][-1][1] == pytest.approx(number, rel=1e-6), name
    assert told.keys() == {"batch_loss", "lr", *rows[0], *metrics}


def check_pictures(pictures, folder):
    """`pictures` maps names to files that hold the last picture of that name."""
    wanted = {path.stem: path for path in folder.glob("*.png") if "_epoch_" not in path.stem}
    wanted["epoch_reconstructions"] = folder / "reconstructions_epoch_002.png"
    assert pictures.keys() == wanted.keys()
    for name, path in pictures.items():  # a tracker may have packed the same pixels anew
        one, other = (np.asarray(Image.open(file).convert("RGBA")) for file in (path, wanted[name]))
        assert np.array_equal(one, other), name


def test_tensorboard_holds_every_number_and_its_last_ones_are_those_of_run_json(tracked, events):
    told = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    check(told, tracked[1])


def test_tensorboard_holds_every_picture_as_it_was_written(tracked, events):
    folder = tracked[1]
    names = {path.stem for path in folder.glob("*.png") if "_epoch_" not in path.stem}
    assert set(events.Tags()["images"]) == {*names, "epoch_reconstructions"} and len(names) == 5
    for name in names:
        last = events.Images(name)[-1]
        assert last.encoded_image_string == (folder / f"{name}.png").read_bytes() and last.step == 24
        assert (last.width, last.height) == Image.open(io.BytesIO(last.encoded_image_string)).size
    kept = [(image.step, image.encoded_image_string) for image in events.Images("epoch_reconstructions")]
    assert kept == [(12 * n, (folder / f"reconstructions_epoch_00{n}.png").read_bytes()) for n in (1, 2)]


def test_tensorboard_shows_the_resolved_recipe(tracked, events):
    (event,) = events.Tensors("recipe")
    text = event.tensor_proto.string_val[0].decode()
    recipe = json.loads((tracked[1] / "run.json").read_text())["recipe"]
    for key, value in {**recipe, "dataset": "scikit-learn digits", "device": "cpu"}.items():
        assert f"| {key} | {value} |" in text


def test_wandbs_own_tool_reads_the_offline_run_back(tracked):
    folder = tracked[1]
    (run,) = (folder / "trackers" / "wandb").glob("offline-run-*")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(run)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    told, summary, pictures = {}, {}, {}
    for record in records:
        if record["type"] == "history":
            for name, value in record["history"]["item"].items():
                if name.endswith(".path"):
                    pictures[name.removesuffix(".path")] = run / "files" / value
                elif "." not in name and not name.startswith("_"):
                    told.setdefault(name, []).append((record["history"]["step"]["num"], value))
        summary |= record.get("summary", {}).get("update", {})
    for name, number in metrics_of(folder).items():  # W&B keeps them as the run's summary
        assert summary[name] == pytest.approx(number, rel=1e-6)
        told.setdefault(name, [(24, summary[name])])
    check(told, folder)
    check_pictures(pictures, folder)
    (config,) = [record["run"]["config"]["update"] for record in records if record["type"] == "run"]
    assert config["model_args"]["features"] == 64 and config["lr"] == 1e-3 and config["epochs"] == 2
    assert [record["exit"].get("exit_code", 0) for record in records if record["type"] == "exit"] == [0]


def test_swanlabs_own_reader_reads_the_offline_run_back(tracked):
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    folder = tracked[1]
    (run,) = (folder / "trackers" / "swanlab").glob("run-*")
    reader = DataStoreReader()
    reader.open(next(run.glob("*.swanlab")))
    told, pictures, states = {}, {}, []
    for data in reader:
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "scalar" and not record.scalar.key.startswith("__swanlab__"):  # its own numbers of the machine
            told.setdefault(record.scalar.key, []).append((record.scalar.step, record.scalar.value.number))
        elif kind == "media":
            pictures[record.media.key] = run / "media" / "image" / record.media.value.items[0].filename
        elif kind == "finish":
            states.append(record.finish.state)
    check(told, folder)
    check_pictures(pictures, folder)
    assert states == [1]  # finished well
    assert "features: 64" in (run / "files" / "config.yaml").read_text().replace("'", "")


def test_tracking_changes_no_bit_of_the_result(tracked, untracked):
    assert same_weights(tracked[1], untracked)
    ours, theirs = (
        [{k: v for k, v in row.items() if "second" not in k} for row in rows_of(f)] for f in (tracked[1], untracked)
    )
    assert ours == theirs


def test_nobody_logged_in_is_said_once_by_each_tracker_and_nothing_else(tracked):
    lines = tracked[0].stderr.splitlines()
    assert [line.split(":")[0] for line in lines if "offline" in line] in (["wandb", "swanlab"], ["swanlab", "wandb"])
    assert all("offline" in line or line.startswith("warning: ") for line in lines)
    assert not [line for line in lines if "--tracker" in line]


def test_trackers_write_below_the_output_folder_alone(tracked):
    assert not [path for path in tracked[2].rglob("*") if path.is_file()]
    assert not (ROOT / "wandb").exists() and not (ROOT / "swanlog").exists()


def test_a_resumed_run_is_the_same_run_to_its_trackers(tmp_path, capfd):
    flags = (*QUICK, "--tracker", "tensorboard", "--tracker", "wandb", "--output-dir", tmp_path)
    assert call_script(capfd, ae_train.main, *flags, "--epochs", 1)[0] == 0
    kept = {name: json.loads((tmp_path / "trackers" / f"{name}.json").read_text()) for name in ("tensorboard", "wandb")}
    assert all(value["epochs"] == 1 for value in kept.values())
    assert call_script(capfd, ae_train.main, *flags, "--epochs", 2, "--resume")[0] == 0
    events = read_events(tmp_path)
    assert [e.step for e in events.Scalars("train_loss")] == [12, 24]
    assert [e.step for e in events.Scalars("batch_loss")] == [10, 20]
    assert [e.value for e in events.Scalars("epoch")] == [1, 2]
    runs = {path.name.split("-", 3)[3] for path in (tmp_path / "trackers" / "wandb").glob("offline-run-*")}
    assert runs == {kept["wandb"]["id"]}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    ae_train.main([str(a) for a in (*QUICK, "--epochs", 2, "--output-dir", folder)])
    return folder


BROKEN = {
    "raises when it is imported": "raise RuntimeError('broken\\ninstall')",
    "raises at every call": """
def __getattr__(name):
    def call(*a, **k): raise OSError(28, 'No space left on device')
    return call
""",
    "raises while it logs": """
import random
class Run:
    summary = {}
    def log(self, *a, **k): raise OSError(28, 'No space left on device')
def init(**k): return Run()
def login(**k): print(input('key? ')); random.seed(1)
class Settings:
    def __init__(self, **k): pass
def Image(path): pass
""",
    "ends the process": "import os; os._exit(7)",
    "hangs": "import time; time.sleep(600)",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_tracker_that(how, tmp_path, capfd, monkeypatch, quick):
    """... is said to have failed, once, and the run ends as if it had not been there."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(BROKEN[how])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setattr(trackers, "_PATIENCE", 2.0 if how == "hangs" else 30.0)
    folder = tmp_path / "run"
    status, out, err = call_script(
        capfd, ae_train.main, *QUICK, "--epochs", 2, "--tracker", "wandb", "--output-dir", folder
    )
    said = [line for line in err.splitlines() if "wandb" in line]
    assert status == 0 and len(said) == 1 and said[0].startswith("warning: --tracker wandb: "), err
    assert "Traceback" not in err and "Wrote mnist_bce.pt" in out
    assert same_weights(folder, quick) and metrics_of(folder)["test_mse"] == metrics_of(quick)["test_mse"]


def test_ctrl_c_ends_the_trackers_too(tmp_path):
    import signal

    flags = (*QUICK, "--epochs", 100000, "--tracker", "tensorboard", "--output-dir", tmp_path)
    process = subprocess.Popen(
        [sys.executable, "ae_train.py", *map(str, flags)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not process.stdout.readline().startswith("Epoch 3/"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "--tracker" not in err
    told = json.loads((tmp_path / "trackers" / "tensorboard.json").read_text())["epochs"]
    assert told >= 2 and len(read_events(tmp_path).Scalars("train_loss")) == told


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Environment of an installation of requirements.txt alone: everything that is installed here but the trackers."""
    folder = tmp_path_factory.mktemp("bare")
    for path in Path(np.__file__).parents[1].iterdir():
        if not path.name.startswith((*trackers.TRACKERS, "google", "protobuf", "grpc", "pydantic")):
            (folder / path.name).symlink_to(path)
    return {"PYTHONPATH": str(folder)}


def test_requirements_txt_alone_trains_without_trackers(tmp_path, bare, quick):
    process = run_script("-S", "ae_train.py", *QUICK, "--epochs", 2, "--output-dir", tmp_path, **bare)
    assert process.returncode == 0, process.stderr
    assert same_weights(tmp_path, quick) and not (tmp_path / "trackers").exists()


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_missing_package_is_one_line_with_the_command_before_anything_is_done(tmp_path, bare, name):
    folder = tmp_path / "out"
    (tmp_path / name).mkdir()  # a folder of that name, as wandb leaves behind, is not the package
    path = f"{bare['PYTHONPATH']}{os.pathsep}{tmp_path}"
    process = run_script("-S", "ae_train.py", *QUICK, "--tracker", name, "--output-dir", folder, PYTHONPATH=path)
    assert process.returncode == 2 and is_one_error_line(process.stderr) and process.stdout == ""
    assert f"pip install {name}" in process.stderr and not folder.exists()


@pytest.mark.parametrize("left", ["{", '{"id": 5, "epochs": "abc"}', None])
def test_what_an_earlier_run_has_left_ends_its_tracker_and_not_the_run(tmp_path, capfd, left):
    flags = (*QUICK, "--tracker", "tensorboard", "--output-dir", tmp_path)
    assert call_script(capfd, ae_train.main, *QUICK, "--output-dir", tmp_path, "--epochs", 1)[0] == 0
    if left is None:
        (tmp_path / "trackers").write_text("a file where the folder should be")
    else:
        (tmp_path / "trackers").mkdir()
        (tmp_path / "trackers" / "tensorboard.json").write_text(left)
    status, out, err = call_script(capfd, ae_train.main, *flags, "--epochs", 2, "--resume")
    assert status == 0 and "Epoch 2/2" in out and err.count("--tracker tensorboard: ") == 1


def test_a_fresh_start_is_told_whole_also_under_resume(tmp_path, capfd):
    flags = (*QUICK, "--tracker", "tensorboard", "--output-dir", tmp_path, "--epochs", 1)
    assert call_script(capfd, ae_train.main, *flags)[0] == 0
    (tmp_path / "checkpoint.pt").unlink()
    assert call_script(capfd, ae_train.main, *flags, "--resume")[0] == 0
    runs = sorted((tmp_path / "trackers" / "tensorboard").iterdir())
    assert len(runs) == 2
    for run in runs:
        assert "train_loss" in read_run(run).Tags()["scalars"], run


def test_telling_costs_training_nothing_and_leaves_no_epoch_out(tmp_path):
    """An epoch of MNIST in batches of 128 takes two seconds at the least; what is told of it, a hundredth of that."""
    told = SimpleNamespace(history=[], batch_losses=[], schedule=None, optimizer=torch.optim.Adam([torch.zeros(1)]))
    row = {"train_loss": 0.1, "test_loss": 0.1, "pearson": [0.9, 0.8]}
    with trackers.Trackers(["tensorboard"], tmp_path, "p", 10, {"name": "x"}, False) as every:
        for epochs in (1, 3, 3):  # as when a tracker joins a run that is resumed: it is told what was before
            told.history, told.batch_losses = [{"epoch": n + 1, **row} for n in range(epochs)], [0.1] * 469 * epochs
            start = time.perf_counter()
            every.epochs(told)
            assert time.perf_counter() - start < 0.02
    events = read_events(tmp_path)
    assert [e.step for e in events.Scalars("batch_loss")] == list(range(10, 3 * 469, 10))
    assert [(e.step, e.value) for e in events.Scalars("epoch")] == [(469, 1), (938, 2), (1407, 3)]
