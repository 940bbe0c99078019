"""Real processes under torchrun, on digits: the run of one process up to the rounding of sums, whatever is done to it.

Starting torch costs seconds a process: all runs share one launch, one after the other.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, call_script, history, is_one_error_line, make_trainer

import ae_train
from autoencoders.evaluation.metrics import evaluation_means, evaluation_sums
from autoencoders.runtime import processes

LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
DIGITS = ("--dataset", "digits", "--epochs", "2", "--quiet")
RECIPES = {
    "symmetric": ("--hidden-sizes", "64", "--batch-size", "255"),  # neither a batch nor the last one can be halved
    "simple": ("--batch-size", "1499"),  # the last batch is one image: nothing is left for one of the processes
    "denoising": (),
    "vae": ("--hidden-sizes", "64"),
    "sparse": ("--features", "128", "--k", "16", "--num-saes", "2"),
}
MANY = """
import importlib, json, sys
from autoencoders.runtime import cli
calls = json.loads(sys.argv[1])
cli.run(lambda: [importlib.import_module(name).main(flags) for name, flags in calls], distributed=True)
"""
LONG = ("--dataset", "digits", "--hidden-sizes", "64", "--epochs", "12", "--checkpoint-minutes", "0.0005")


def launch(*arguments, **options):
    return subprocess.Popen(
        [*LAUNCH, *map(str, arguments)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def our_lines(stderr):
    """The errors and warnings of our processes, without torchrun's own report."""
    return "".join(line for line in stderr.splitlines(keepends=True) if line.startswith(("error: ", "warning: ")))


def calls(folder):
    """Every recipe with its flags."""
    for name, flags in RECIPES.items():
        yield "ae_train", ["--recipe", name, *DIGITS, *flags, "--output-dir", f"{folder}/{name}"]


def resumed(folder, epochs):
    return ["--recipe", "symmetric", "--dataset", "digits", "--quiet", *RECIPES["symmetric"], "--epochs", str(epochs),
            "--output-dir", str(folder), "--resume"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folders that one process wrote, folders that two wrote, stdout of the two).

    Two processes alone wrote `resumed`, a run that one process began, and `long`, a run with time for a disturbance.
    """
    work = tmp_path_factory.mktemp("runs")
    one, two = work / "one", work / "two"
    for _, flags in calls(one):
        ae_train.main(flags)
    (work / "many.py").write_text(MANY)
    shutil.copytree(one / "symmetric", two / "resumed")
    more = [("ae_train", resumed(two / "resumed", 3)), ("ae_train", [*LONG, "--output-dir", f"{two}/long"])]
    out, err = launch(work / "many.py", json.dumps([*calls(two), *more])).communicate(timeout=300)
    assert "error: " not in our_lines(err) and (two / "long" / "run.json").exists(), err
    return one, two, out


def record(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_train_the_run_of_one(runs, recipe):
    ours, theirs = (history(folder / recipe) for folder in runs[:2])
    assert len(ours) == 2
    for a, b in zip(ours, theirs, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    mine, other = (record(folder / recipe)["metrics"] for folder in runs[:2])
    mine.pop("images_per_second"), other.pop("images_per_second")
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert other[name] == pytest.approx(value, rel=1e-4), name


def test_the_main_process_alone_writes_and_prints(runs):
    one, two, out = runs
    for folder in one.iterdir():
        files = [
            sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file() and p.suffix != ".tmp")
            for f in (folder, two / folder.name)
        ]
        assert files[0] == files[1]
    assert out.count("Number of components") == 2  # symmetric and long
    assert out.count("Wrote mnist_vae.pt") == 1


def test_a_run_continues_with_another_number_of_processes(tmp_path, runs):
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(runs[0] / "symmetric", one)
    shutil.copytree(runs[1] / "resumed", two)
    assert len(history(two)) == 3
    for folder in (one, two):
        ae_train.main(resumed(folder, 4))
    ours, theirs = history(one), history(two)
    assert len(theirs) == 4 and theirs[:2] == ours[:2]
    for a, b in zip(ours, theirs, strict=True):
        assert b == pytest.approx(a, rel=1e-5)


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes in /proc")
def test_a_killed_process_is_replaced_and_the_run_ends_in_the_same_bits(tmp_path, runs):
    whole, killed = runs[1] / "long", tmp_path / "killed"
    process = launch("--max-restarts", 3, "ae_train.py", *LONG, "--output-dir", killed)
    while not (killed / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"Resuming {killed / 'checkpoint.pt'} at epoch" in err
    assert history(killed) == history(whole)
    assert (killed / "mnist_ae.pt").read_bytes() == (whole / "mnist_ae.pt").read_bytes()


def workers(parent):
    """The processes that torchrun started, by rank."""
    children = map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return [child for child in children if b"LOCAL_RANK=" in Path(f"/proc/{child}/environ").read_bytes()]


def test_one_process_of_torchrun_is_a_process_without_it(monkeypatch, capsys):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    assert processes.torchrun_env("LOCAL_RANK") == 0
    assert call_script(capsys, lambda _: print("shown")) == (0, "shown\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waiting_for_other_processes_is_said_and_ends_at_once(number):
    fast = "import threading; timer = threading.Timer; threading.Timer = lambda s, *a: timer(s / 100, *a)"
    code = f"{fast}\nfrom autoencoders.runtime import cli, processes\ncli.run(processes.setup, distributed=True)"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    text = f"RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT={port}"
    variables = dict(variable.split("=") for variable in text.split())
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **variables}, stderr=subprocess.PIPE, text=True
    )
    line = process.stderr.readline()
    assert line.startswith("warning: waiting for the other processes (WORLD_SIZE=2)") and "unset RANK" in line
    process.send_signal(number)
    assert process.wait(timeout=10) == -number and process.stderr.read() == ""


def test_an_error_of_one_process_ends_all_with_its_message(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text("""
from autoencoders.runtime import cli, processes
from autoencoders.runtime.errors import UsageError
def main():
    processes.setup()
    if processes.rank() == 1:
        raise UsageError("only rank 1 knows")
    processes.on_main(lambda: None)
cli.run(main, distributed=True)
""")
    out, err = launch(script).communicate(timeout=300)
    assert "error: only rank 1 knows (rank 1" in our_lines(err) and "Traceback" not in our_lines(err) and out == ""
    assert our_lines(err).count("error: ") <= 2  # the main process may notice that its peer is gone


def test_a_usage_error_that_all_processes_meet_is_printed_once(tmp_path):
    out, err = launch("ae_train.py", "--batch-size", 0, "--output-dir", tmp_path / "none").communicate(timeout=300)
    assert is_one_error_line(our_lines(err)) and "--batch-size" in err and out == ""
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["simple", "denoising", "vae", "conv", "sparse"])
@pytest.mark.parametrize(("count", "size"), [(50, 3), (2, 3)])  # of 2 images in 3 slices one slice is empty
def test_the_slices_of_a_batch_have_the_gradients_of_the_whole_noise_and_values_included(few, name, count, size):
    """What DistributedDataParallel and the sums compute, worked out slice by slice in this process."""
    trainer = make_trainer(name, few)
    batch = trainer.train_images[:count]

    def backward(images, first, last):
        torch.manual_seed(5)
        slice_, weight = processes.batch_slice(count, first, last)
        with processes.noise_of_slice(trainer.model, count, slice_):
            loss, values = trainer.loss(images[slice_])
        trainer.optimizer.zero_grad()
        (loss * weight).backward()
        gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
        return gradients, {name: value * weight for name, value in values.items()}

    whole, values = backward(batch, 0, 1)
    parts = [backward(batch, rank, size) for rank in range(size)]
    for key, gradient in whole.items():
        total = sum(part[0][key] for part in parts)
        assert torch.allclose(total, gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max()), key
    for key, value in values.items():
        assert torch.allclose(sum(part[1][key] for part in parts), value, rtol=1e-5, atol=1e-7), key


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [1, 2, 5, 256])
def test_the_slices_of_all_processes_are_the_batch(size, batch):
    taken = []
    for rank in range(size):
        part, weight = processes.batch_slice(batch, rank, size)
        images = range(batch)[part]
        assert images and weight in (0, len(images) / batch)
        taken += images if weight else []
    assert taken == list(range(batch))


@pytest.mark.parametrize("name", ["denoising", "vae", "sparse"])
def test_the_sums_over_parts_of_the_test_images_are_those_over_all(few, name):
    trainer = make_trainer(name, few)
    images = torch.from_numpy(few.train_images).repeat(5, 1)  # three batches
    whole = evaluation_sums(trainer.model, images, seed=3)
    parts = [evaluation_sums(trainer.model, images, 3, part, 4) for part in range(4)]  # one of them is empty
    total = {key: sum(part[key] for part in parts) for key in whole}
    names = trainer.model.epoch_metrics
    ours, theirs = (evaluation_means(sums, len(images), names) for sums in (total, whole))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value), key


def test_without_torchrun_everything_is_the_identity(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    before = signal.getsignal(signal.SIGTERM), sys.stdout
    processes.setup()
    assert (processes.size(), processes.rank(), processes.is_main()) == (1, 0, True)
    assert (signal.getsignal(signal.SIGTERM), sys.stdout) == before
    values = {"a": torch.ones(3)}
    assert processes.all_reduce(values) is values and processes.on_main(lambda: 5) == 5
    loss = torch.nn.Identity()
    assert processes.data_parallel(loss, loss, torch.zeros(1)) is loss
