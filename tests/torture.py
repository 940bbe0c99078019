"""Kill, starve and damage real runs, and count the losses. Run by `make torture`; prints the README's table.

Every run is a process of its own, forked from this one after the libraries are loaded, so that the moments at which
it dies fall into training and writing, not into importing torch.
"""

import argparse
import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import matplotlib.figure  # noqa: F401
import numpy as np
import sklearn.datasets
import sklearn.decomposition  # noqa: F401
import torch
from PIL import Image

import ae_generate
import ae_train
from autoencoders import figures  # noqa: F401
from autoencoders.recipes import RECIPES
from autoencoders.runtime import cli
from autoencoders.training import (
    checkpoint,
    report,  # noqa: F401
    trainer,  # noqa: F401
)

SETTINGS = {
    "symmetric": ("--hidden-sizes", "64", "--epochs", "12"),
    "vae": ("--hidden-sizes", "64", "--epochs", "12"),
    "denoising": ("--epochs", "12"),
    "sparse": ("--features", "128", "--k", "16", "--num-saes", "2", "--epochs", "12"),
}
Main = Callable[[list[str]], None]
READERS = {  # which script reads the file: flags of ae_train.py, or ae_generate.py
    "checkpoint.pt": "--resume",
    "mnist_ae.pt": "ae_generate",
    "run.json": "ae_generate",
    "pca.npz": "",
    "n_components_95.txt": "",
}
RECIPE_NAMES = [name for name in SETTINGS if name in RECIPES]


class Process:
    """A script's main in a new process; its output comes back through a pipe, which no file size limit affects."""

    def __init__(self, main: Main, arguments: list[str], prepare: Callable[[], object] = lambda: None) -> None:
        self.output, theirs = os.pipe()
        self.number = os.fork()
        if not self.number:
            os._exit(_child(main, arguments, prepare, theirs))
        os.close(theirs)

    def kill_after(self, seconds: float) -> None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.number, signal.SIGKILL)

    def finish(self) -> tuple[int, str]:
        """The exit status (minus the signal that ended it) and all output."""
        with open(self.output, errors="replace") as pipe:
            text = pipe.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1]), text


def _child(main: Main, arguments: list[str], prepare: Callable[[], object], output: int) -> int:
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        signal.alarm(120)  # a run that hangs is killed and counts as a loss
        prepare()
        cli.run(lambda: main(arguments))
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()


def flags(recipe: str, folder: Path, *more: str) -> list[str]:
    return ["--recipe", recipe, "--dataset", "digits", "--device", "cpu", "--output-dir", str(folder),
            "--checkpoint-minutes", "0.002", *SETTINGS[recipe], *more]  # fmt: skip


def train(recipe: str, folder: Path, *more: str, prepare: Callable[[], object] = lambda: None) -> Process:
    return Process(ae_train.main, flags(recipe, folder, *more), prepare)


def run_ok(process: Process) -> None:
    """Wait for an undisturbed process; RuntimeError when it fails."""
    status, text = process.finish()
    if status:
        raise RuntimeError(text)


def weights_digest(recipe: str, folder: Path) -> str:
    return hashlib.sha256((folder / RECIPES[recipe].weights_file).read_bytes()).hexdigest()


def torn(folder: Path) -> list[str]:
    """The files of a folder that are there but not whole; hidden ones are nobody's."""
    bad = []
    for path in sorted(folder.glob("[!.]*")):
        try:
            if path.name.startswith("checkpoint"):
                checkpoint.load_checkpoint(path)
            elif path.suffix == ".pt":
                checkpoint.from_bytes(path.read_bytes(), path, "")
            elif path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".csv":
                rows = list(csv.DictReader(path.open()))
                assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
                assert None not in rows[-1].values()
            elif path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as archive:
                    assert all(archive[name] is not None for name in archive.files)
            else:
                assert int(path.read_text()) > 0
        except Exception as error:
            bad.append(f"{path.name}: {error}")
    return bad


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def kills(work: Path, rounds: int, rng: random.Random) -> tuple[str, int, int]:
    """SIGKILL at random moments, then --resume, over and over; the end must be, in every bit, the unkilled run's."""
    done, lost, number = 0, 0, 0
    whole: dict[str, tuple[str, list[list[str]], float]] = {}
    for recipe in RECIPE_NAMES:
        begun = time.monotonic()
        run_ok(train(recipe, work / recipe))
        whole[recipe] = weights_digest(recipe, work / recipe), losses(work / recipe), time.monotonic() - begun
    while done < rounds:
        recipe = RECIPE_NAMES[number % len(RECIPE_NAMES)]
        folder, number = work / f"killed-{number}", number + 1
        for attempt in range(9):
            process = train(recipe, folder, "--resume")
            if attempt < 8:  # some die early, in the first writes, some late; the ninth is let finish
                process.kill_after(rng.uniform(0.05, 1.1 * whole[recipe][2]))
            status, text = process.finish()
            done += status == -signal.SIGKILL
            bad = torn(folder) if folder.exists() else []
            if bad or status not in (0, -signal.SIGKILL):
                lost += 1
                log(f"LOST: {recipe} status {status} {bad} {text[-500:]}")
            if status == 0:
                break
        if status != 0 or (weights_digest(recipe, folder), losses(folder)) != whole[recipe][:2]:
            lost += 1
            log(f"LOST: {recipe} ended in other numbers than the run never stopped")
        log(f"{done}/{rounds} kills")
        shutil.rmtree(folder)
    return "SIGKILL at a random moment, then --resume", done, lost


def ranks(work: Path, rounds: int, rng: random.Random) -> tuple[str, int, int]:
    """SIGKILL of one of torchrun's processes at random moments; the run ends by itself, as if nothing had been done."""
    done, lost, number = 0, 0, 0
    whole: dict[str, tuple[str, list[list[str]], float]] = {}
    while done < rounds:
        recipe = RECIPE_NAMES[number % len(RECIPE_NAMES)]
        folder, number = work / f"ranks-{number}", number + 1
        if recipe not in whole:
            begun = time.monotonic()
            subprocess.run(torchrun(recipe, work / f"ranks-{recipe}"), check=True, capture_output=True)
            place = work / f"ranks-{recipe}"
            whole[recipe] = weights_digest(recipe, place), losses(place), time.monotonic() - begun
        with (work / "output").open("w+") as output:
            process = subprocess.Popen(torchrun(recipe, folder), stdout=output, stderr=output)
            for _ in range(5):  # then it is let finish
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(0, 1.2 * whole[recipe][2]))
                done += process.poll() is None and kill_one(process.pid, rng)
            status = process.wait()
        if status or torn(folder) or (weights_digest(recipe, folder), losses(folder)) != whole[recipe][:2]:
            lost += 1
            log(f"LOST: {recipe} status {status} {torn(folder)} {(work / 'said').read_text()[-2000:]}")
        log(f"{done}/{rounds} processes of torchrun killed")
    return "SIGKILL of one of two processes under torchrun --max-restarts", done, lost


def torchrun(recipe: str, folder: Path) -> list[str]:
    script = str(Path(ae_train.__file__))
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "5", script]
    return [sys.executable, "-m", "torch.distributed.run", *options, *flags(recipe, folder, "--epochs", "120")]


def kill_one(launcher: int, rng: random.Random) -> bool:
    """Kill one of the processes that torchrun has started; False where there is none just now."""
    with contextlib.suppress(IndexError, OSError):
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        started = [child for child in children if b"LOCAL_RANK=" in Path(f"/proc/{child}/environ").read_bytes()]
        os.kill(int(rng.choice(started)), signal.SIGKILL)
        return True
    return False


def losses(folder: Path) -> list[list[str]]:
    """Every column of the history but the times."""
    with (folder / "history.csv").open() as file:
        return [[v for k, v in row.items() if "second" not in k] for row in csv.DictReader(file)]


def one_line(text: str) -> bool:
    """Whether a run printed one error line and no traceback."""
    return sum(line.startswith("error: ") for line in text.splitlines()) == 1 and "Traceback" not in text


def starve(work: Path, rng: random.Random) -> tuple[str, int, int]:
    """Fresh runs in which the disk is full at the write of one file, or for all beyond a size; then there is room."""
    rounds, lost = 0, 0
    for recipe in RECIPE_NAMES:
        whole = work / f"whole-{recipe}"
        run_ok(train(recipe, whole))
        names = sorted(path.name for path in whole.glob("[!.]*"))
        full = [(name, partial(no_room_for, name)) for name in names]
        full += [("cannot be written", partial(less_room, rng.randrange(1, 20_000))) for _ in range(3)]
        for number, (named, prepare) in enumerate(full):
            rounds += 1
            folder = work / f"starved-{recipe}-{number}"
            status, text = train(recipe, folder, prepare=prepare).finish()
            if torn(folder) or status != 1 or not one_line(text) or named not in text:
                lost += 1
                log(f"LOST: {recipe} {named} status {status} {torn(folder)} {text[-300:]}")
            status, text = train(recipe, folder, "--resume").finish()
            if status or weights_digest(recipe, folder) != weights_digest(recipe, whole) or "Finished" in text:
                lost += 1
                log(f"LOST: {recipe} {named} did not finish once there was room: {text[-300:]}")
        log(f"{rounds} full disks")
    return "no room for one file or for any, then --resume", rounds, lost


def no_room_for(name: str) -> None:
    """The file called `name` cannot be put in its place: the disk is full just then."""
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    Path.replace = full  # type: ignore[method-assign,assignment]


def less_room(limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def tiny_disk(work: Path) -> tuple[str, int, int]:
    """Runs on a real file system of a few blocks, which is then made larger; needs the right to mount."""
    rounds, lost = 0, 0
    disk = work / "disk"
    disk.mkdir()
    run_ok(train("symmetric", work / "roomy"))
    digest = weights_digest("symmetric", work / "roomy")
    for kilobytes in (64, 300, 700, 1000, 1500, 2500, 3200):
        small = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
        if subprocess.run(small, capture_output=True).returncode:
            log("no right to mount a small disk here: left out")
            break
        try:
            rounds += 1
            status, text = train("symmetric", disk / "run").finish()
            bad = torn(disk / "run") if (disk / "run").exists() else []
            if bad or status not in (0, 1) or (status == 1 and not one_line(text)):
                lost += 1
                log(f"LOST: disk of {kilobytes} kB, status {status} {bad} {text[-300:]}")
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            status, text = train("symmetric", disk / "run", "--resume").finish()
            if status or weights_digest("symmetric", disk / "run") != digest:
                lost += 1
                log(f"LOST: did not finish on the larger disk: {text[-300:]}")
        finally:
            subprocess.run(["umount", disk], check=True)
    return "a disk of a few hundred kilobytes, then a larger one", rounds, lost


def permissions(work: Path) -> tuple[str, int, int]:
    """Folders that may not be written or read, by a user who is not root."""
    rounds, lost = 0, 0
    work.chmod(0o755)
    for recipe in RECIPE_NAMES:
        folder = work / f"forbidden-{recipe}"
        run_ok(train(recipe, folder))
        before = weights_digest(recipe, folder)
        for mode in (0o555, 0o000):
            folder.chmod(mode)
            rounds += 1
            status, text = train(recipe, folder, prepare=not_root).finish()
            folder.chmod(0o755)
            if status != 1 or not one_line(text) or torn(folder) or weights_digest(recipe, folder) != before:
                lost += 1
                log(f"LOST: {recipe} mode {mode:o} status {status} {text[-300:]}")
    return "no permission to write or read the folder", rounds, lost


def not_root() -> None:
    if os.geteuid() == 0:
        os.setuid(65534)


def damage(data: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One way to damage a file: cut, flip, overwrite, or put another in its place."""
    kind = rng.choice(["cut", "cut", "flip", "flip", "flip", "overwrite", "swap", "empty", "append"])
    if kind == "cut":
        return kind, data[: rng.choice([1, 2, len(data) // 2, len(data) - 1, rng.randrange(len(data))])]
    if kind == "flip":
        place = rng.randrange(len(data))
        return kind, data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    if kind == "overwrite":
        place = rng.randrange(len(data))
        return kind, data[:place] + rng.randbytes(min(64, len(data) - place)) + data[place + 64 :]
    if kind == "append":
        return kind, data + rng.randbytes(rng.randrange(1, 100))
    return kind, other if kind == "swap" else b""


def damages(work: Path, rounds: int, rng: random.Random) -> tuple[str, int, int]:
    """Damaged files of every kind we read, each before the script that reads it."""
    lost, folder, spare = 0, work / "damaged", work / "sound"
    run_ok(train("symmetric", spare))
    run_ok(Process(ae_generate.main, ["--run", str(spare), "--interpolate", "3", "8"]))
    whole = {name: (spare / name).read_bytes() for name in READERS}
    picture, digest = (spare / "interpolation.png").read_bytes(), weights_digest("symmetric", spare)
    for number in range(rounds):
        name = list(READERS)[number % len(READERS)]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(spare, folder)
        kind, data = damage(whole[name], rng.choice(list(whole.values())), rng)
        (folder / name).write_bytes(data)
        if READERS[name] == "ae_generate":
            status, text = Process(ae_generate.main, ["--run", str(folder), "--interpolate", "3", "8"]).finish()
            right = (folder / "interpolation.png").read_bytes() == picture
        else:
            status, text = train("symmetric", folder, *READERS[name].split()).finish()
            right = weights_digest("symmetric", folder) == digest
        refused = status in (1, 2) and one_line(text) and name in text
        if not (refused or (status == 0 and right)):
            lost += 1
            log(f"LOST: {name} {kind} status {status} {text[-400:]}")
        if number % 50 == 49:
            log(f"{number + 1}/{rounds} damaged files")
    return "a file cut, flipped, overwritten or swapped", rounds, lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rank-kills", type=int, default=10)
    parser.add_argument("--damages", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="kills,ranks,starve,disk,permissions,damages")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    rows = []
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        work = Path(name)
        # Once in this very process: what is imported late is then there for every child, whoever it becomes.
        with contextlib.redirect_stdout(io.StringIO()):
            for _ in range(2):  # the second time reads what the first has written
                ae_train.main(["--dataset", "digits", "--epochs", "1", "--output-dir", f"{name}/warm"])
        acts: dict[str, Callable[[], tuple[str, int, int]]] = {
            "kills": lambda: kills(work, args.kills, rng),
            "ranks": lambda: ranks(work, args.rank_kills, rng),
            "starve": lambda: starve(work, rng),
            "disk": lambda: tiny_disk(work),
            "permissions": lambda: permissions(work),
            "damages": lambda: damages(work, args.damages, rng),
        }
        for act in args.only.split(","):
            rows.append(acts[act]())
    print("| what was done | rounds | losses |\n| --- | --- | --- |")
    for what, rounds, lost in rows:
        print(f"| {what} | {rounds} | {lost} |")
    raise SystemExit(any(lost for _, _, lost in rows))


if __name__ == "__main__":
    main()
