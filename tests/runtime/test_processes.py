"""Real processes under torchrun, on digits: the same run as one process's, whatever is done to them.

Starting torch costs seconds a process: all scripts run in one launch, one after the other, and again in this process.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, call_script, is_one_error_line

import ae_eval
import ae_pca
import ae_search
import ae_train
from ae_models import Autoencoder
from autoencoders.runtime import processes
from autoencoders.runtime.errors import UsageError

LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
DIGITS = ("--dataset", "digits", "--epochs", "2", "--quiet")
RECIPES = {
    "symmetric": ("--hidden-sizes", "64", "--batch-size", "255"),  # neither a batch nor the last one can be halved
    "simple": ("--batch-size", "1499"),  # of the last image there is nothing for the other process
    "denoising": (),
    "vae": ("--hidden-sizes", "64"),
    "sparse": ("--features", "128", "--k", "16", "--num-saes", "2"),
}
EXACT = {  # three parts for two processes, and fewer images than parts in the last batch
    "vae": ("--hidden-sizes", "64", "--batch-size", "287", "--micro-batches", "3"),
    "sparse": (*RECIPES["sparse"], "--batch-size", "287", "--micro-batches", "3"),
}
SCRIPTS = {"ae_pca": ae_pca, "ae_train": ae_train, "ae_eval": ae_eval, "ae_search": ae_search}
MANY = """
import importlib, json, sys
from autoencoders.runtime import cli
cli.run(lambda: [importlib.import_module(name).main(flags) for name, flags in json.loads(sys.argv[1])])
"""
LONG = ("--dataset", "digits", "--hidden-sizes", "64", "--epochs", "40", "--checkpoint-minutes", "0.0005")


def launch(*arguments, **options):
    return subprocess.Popen(
        [*LAUNCH, *map(str, arguments)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def said(stderr):
    """What our processes have said, without torchrun's own."""
    return "".join(line for line in stderr.splitlines(keepends=True) if line.startswith(("error: ", "warning: ")))


def calls(folder, one):
    """Every script with its flags; a model that was trained in `one` is evaluated."""
    yield "ae_pca", ["--dataset", "digits", "--output-dir", f"{folder}/pca"]
    for name, flags in RECIPES.items():
        yield "ae_train", ["--recipe", name, *DIGITS, *flags, "--output-dir", f"{folder}/{name}"]
    for name, flags in EXACT.items():
        yield "ae_train", ["--recipe", name, *DIGITS, *flags, "--output-dir", f"{folder}/exact_{name}"]
    yield "ae_eval", ["--run", f"{one}/vae", "--importance-samples", "20", "--output-dir", f"{folder}/eval"]
    yield "ae_search", ["--dataset", "digits", "--hidden-sizes", "8", "16", "--code-sizes", "4", "--folds", "2",
                        "--epochs", "1", "--output-dir", f"{folder}/search"]  # fmt: skip


def resumed(folder, epochs):
    return ["--recipe", "symmetric", "--dataset", "digits", "--quiet", *RECIPES["symmetric"], "--epochs", str(epochs),
            "--output-dir", str(folder), "--resume"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(what one process leaves, what two leave, what the two said): folders of every recipe and script.

    And of two alone `resumed`, a run that one process has begun, and `long`, one that there is time to disturb.
    """
    work = tmp_path_factory.mktemp("runs")
    one, two = work / "one", work / "two"
    for name, flags in calls(one, one):
        SCRIPTS[name].main(flags)
    (work / "many.py").write_text(MANY)
    shutil.copytree(one / "symmetric", two / "resumed")
    more = [("ae_train", resumed(two / "resumed", 3)), ("ae_train", [*LONG, "--output-dir", f"{two}/long"])]
    out, err = launch(work / "many.py", json.dumps([*calls(two, one), *more])).communicate(timeout=900)
    assert said(err).count("error: ") == 0 and (two / "search" / "search.csv").exists(), err
    return one, two, out


def history(folder, without=("seconds", "images_per_second")):
    with (folder / "history.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def record(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_train_the_run_of_one(runs, recipe):
    ours, theirs = (history(folder / recipe) for folder in runs[:2])
    assert len(ours) == 2
    for a, b in zip(ours, theirs):
        assert b == pytest.approx(a, rel=1e-5)
    mine, other = (record(folder / recipe)["metrics"] for folder in runs[:2])
    mine.pop("images_per_second"), other.pop("images_per_second")
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert other[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("recipe", EXACT)
def test_in_parts_two_processes_train_the_run_of_one_bit_for_bit(runs, recipe):
    ours, theirs = (folder / f"exact_{recipe}" for folder in runs[:2])
    for name in (f"mnist_{recipe}.pt", "reconstructions.png"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    losses = [[row["train_loss"] for row in history(folder)] for folder in (ours, theirs)]
    assert len(losses[0]) == 2 and losses[0] == losses[1]


def test_the_first_process_alone_writes_and_speaks(runs):
    one, two, out = runs
    for place in one.iterdir():
        files = [sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in (place, two / place.name)]
        assert files[0] == files[1]
    assert out.count("Number of components") == 3  # ae_pca.py, symmetric and long
    assert out.count("Wrote mnist_vae.pt") == 2 and out.count("Wrote search.csv") == 1


def test_the_pca_is_that_of_one_process_bit_for_bit(runs):
    assert (runs[0] / "pca" / "pca.npz").read_bytes() == (runs[1] / "pca" / "pca.npz").read_bytes()


def test_the_likelihood_is_that_of_one_process_bit_for_bit(runs):
    ours, theirs = (json.loads((folder / "eval" / "evaluation.json").read_text()) for folder in runs[:2])
    assert theirs["likelihood"] == ours["likelihood"]
    assert theirs["model"] == ours["model"]


def test_the_search_finds_what_one_process_finds(runs):
    rows = [list(csv.DictReader((folder / "search" / "search.csv").open())) for folder in runs[:2]]
    ours, theirs = ([{k: v for k, v in row.items() if k != "seconds"} for row in table] for table in rows)
    assert theirs == ours and len(ours) == 2


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, runs):
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(runs[0] / "symmetric", one)
    shutil.copytree(runs[1] / "resumed", two)
    assert len(history(two)) == 3
    for folder in (one, two):
        ae_train.main(resumed(folder, 4))
    ours, theirs = history(one), history(two)
    assert len(theirs) == 4 and theirs[:2] == ours[:2]
    for a, b in zip(ours, theirs):
        assert b == pytest.approx(a, rel=1e-5)


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes in /proc")
def test_a_killed_process_is_replaced_and_the_run_ends_in_the_same_bits(tmp_path, runs):
    whole, killed = runs[1] / "long", tmp_path / "killed"
    process = launch("--max-restarts", 3, "ae_train.py", *LONG, "--output-dir", killed)
    while not (killed / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert f"Resuming {killed / 'checkpoint.pt'} at epoch" in err
    assert history(killed) == history(whole)
    assert (killed / "mnist_ae.pt").read_bytes() == (whole / "mnist_ae.pt").read_bytes()


def test_a_run_goes_on_by_itself_only_under_the_launch_that_began_it(tmp_path, monkeypatch, capsys):
    flags = ("--dataset", "digits", "--recipe", "simple", "--output-dir", tmp_path)
    for launch_name, epochs, begins in (("a", 1, ""), ("a", 2, "at epoch 2"), ("b", 3, ""), ("none", 4, "")):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch_name)
        status, _, err = call_script(capsys, ae_train.main, *flags, "--epochs", epochs)
        assert status == 0 and ("Resuming" in err) == bool(begins) and begins in err


def workers(parent):
    """The processes that torchrun has started, in their order."""
    children = map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return [child for child in children if b"LOCAL_RANK=" in Path(f"/proc/{child}/environ").read_bytes()]


def test_the_mistake_of_one_process_ends_all_with_one_line(tmp_path):
    script = tmp_path / "mistaken.py"
    script.write_text("""
from autoencoders.runtime import cli
from autoencoders.runtime import processes
from autoencoders.runtime.errors import UsageError
def main():
    processes.join()
    if processes.rank() == 1:
        raise UsageError("only the other one knows")
    processes.gathered(None)
cli.run(main)
""")
    out, err = launch(script).communicate(timeout=300)
    assert said(err) == "error: only the other one knows\n" and out == ""
    assert "exitcode  : 2" in err and "exitcode  : 1 " not in err


def test_a_mistake_in_the_flags_is_said_once(tmp_path):
    out, err = launch("ae_train.py", "--batch-size", 0, "--output-dir", tmp_path / "none").communicate(timeout=300)
    assert is_one_error_line(said(err)) and "--batch-size" in err and out == ""
    assert not (tmp_path / "none").exists()


def test_fewer_parts_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "_size", 3)
    whole, two, three = (ae_train.RECIPES["simple"].override({"micro_batches": parts}) for parts in (1, 2, 3))
    ae_train.check_parts(whole, graphs=False)
    ae_train.check_parts(three, graphs=False)
    with pytest.raises(UsageError, match=r"--micro-batches 2.*3 processes"):
        ae_train.check_parts(two, graphs=False)
    with pytest.raises(UsageError, match="--cuda-graphs"):
        ae_train.check_parts(three, graphs=True)


@pytest.mark.parametrize("parts", [2, 3, 8])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("batch", [1, 5, 256])
def test_a_process_computes_whole_parts_of_its_share(monkeypatch, size, batch, parts):
    monkeypatch.setattr(processes, "_size", size)
    taken, numbers = [], []
    for rank in range(size):
        monkeypatch.setattr(processes, "_rank", rank)
        share, here = processes.share(batch, parts), processes.parts_here(parts)
        cut = [processes.part(batch, range(number, number + 1), parts) for number in here]
        images = [image for part in cut if part.images for image in range(part.first, part.last)]
        assert images == (list(range(share.first, share.last)) if share.images else [])
        taken, numbers = taken + images, numbers + list(here)
    assert taken == list(range(batch)) and numbers == list(range(parts))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [1, 2, 5, 256])
def test_the_shares_of_all_processes_are_the_batch(monkeypatch, size, batch):
    monkeypatch.setattr(processes, "_size", size)
    taken = []
    for rank in range(size):
        monkeypatch.setattr(processes, "_rank", rank)
        share = processes.share(batch)
        assert share.last > share.first and share.weight == share.images / batch
        taken += range(share.first, share.last) if share.images else []
    assert taken == list(range(batch))


def test_the_noise_of_a_share_is_its_part_of_the_noise_of_the_batch():
    model, x = Autoencoder(), torch.zeros(7, 30)
    torch.manual_seed(0)
    whole = model.noise_like(x)
    torch.manual_seed(0)
    model.share = (3, 5, 7, 2)
    assert torch.equal(model.noise_like(x[3:5]), whole[3:5])


def test_inside_of_alone_there_are_no_others(monkeypatch):
    monkeypatch.setattr(processes, "_size", 3)
    monkeypatch.setattr(processes, "_rank", 2)
    with processes.alone():
        assert (processes.rank(), processes.size()) == (0, 1)
        assert processes.gathered(5) == [5]
    assert (processes.rank(), processes.size()) == (2, 3)


def test_without_torchrun_nothing_is_joined(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    before = signal.getsignal(signal.SIGTERM), sys.stdout
    processes.join()
    assert processes.size() == 1 and (signal.getsignal(signal.SIGTERM), sys.stdout) == before
    assert processes.last_words("why", 2) == ("why", 2)
