"""What the tests share: the real scripts as processes, one trained folder, image sets small and real.

Starting torch costs seconds, so the slow processes run once a session and many tests look at what they left.
"""

import os

# One thread a process: two processes share the cores without waiting for one another, and the bits of a result
# depend on the number of threads. It is read when torch is imported, by us and by the scripts we start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import csv
import gc
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import ae_train
from autoencoders.data.sets import load_images
from autoencoders.recipes import RECIPES
from autoencoders.runtime import cli
from autoencoders.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ("--dataset", "digits", "--epochs", 2, "--hidden-sizes", 64)  # seconds of training, every file written


def run_script(*arguments, timeout=120, **environment):
    """A script of the suite in a process of its own; `environment` adds to ours."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def call_script(capsys, main, *arguments):
    """A script's `main` as its own process would run it, without paying for torch again: (status, stdout, stderr)."""
    capsys.readouterr()
    threshold = gc.get_threshold()
    try:
        cli.run(lambda: main([str(a) for a in arguments]), distributed=True)
        status = 0
    except SystemExit as stop:
        status = stop.code
    finally:  # what a script sets for its whole process
        gc.set_threshold(*threshold)
        gc.unfreeze()
        torch.set_flush_denormal(False)
    out, err = capsys.readouterr()
    return status, out, err


def make_trainer(name, images, **settings):
    """A trainer of the recipe called `name` with some settings changed, on the CPU in fp32."""
    return Trainer(replace(RECIPES[name].override(settings), image_size=images.side), images)


def same_bits(a, b):
    """Whether two state dicts, or two lists of tensors, hold the same names and the same bits."""
    a, b = (dict(enumerate(x)) if isinstance(x, list | tuple) else x for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def history(folder):
    """The rows of history.csv as numbers, without the times, which differ from run to run."""
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def is_one_error_line(text):
    return text.startswith("error: ") and text.count("\n") == 1 and text.endswith("\n")


def only_warnings(text):
    """Nothing on stderr but what the run's health gives cause to say."""
    return all(line.startswith("warning: ") and "--" not in line.split(":")[1] for line in text.splitlines())


def write_idx(path, array, rank=None):
    """`array` as an IDX file of bytes."""
    sizes = np.array(array.shape, ">u4").tobytes()
    path.write_bytes(bytes((0, 0, 8, rank or array.ndim)) + sizes + array.astype(np.uint8).tobytes())


@pytest.fixture
def fake_mnist(tmp_path):
    """A data root with a tiny MNIST: 30 training and 20 test images of noise. Yields (root, raw folder)."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 20)):
        write_idx(raw / f"{part}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", random.integers(0, 10, count))
    return tmp_path / "data", raw


@pytest.fixture(scope="session")
def digits():
    return load_images("digits", Path("unused"))


@pytest.fixture(scope="session")
def few(digits):
    """A set small enough to train on in a blink: 256 digits, 100 to test on."""
    return replace(
        digits,
        train_images=digits.train_images[:256],
        train_labels=digits.train_labels[:256],
        test_images=digits.test_images[:100],
        test_labels=digits.test_labels[:100],
    )


@pytest.fixture(scope="session")
def mnist():
    """The real MNIST, where AE_DATA_ROOT names a data root that holds it."""
    root = os.environ.get("AE_DATA_ROOT")
    if not root:
        pytest.skip("AE_DATA_ROOT is not set: no real MNIST here")
    return load_images("mnist", Path(root))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(finished process, output folder) of one real training run; for looking at, not for writing into."""
    folder = tmp_path_factory.mktemp("trained") / "new" / "folder"
    process = run_script("ae_train.py", *TRAIN, "--output-dir", folder)
    assert process.returncode == 0, process.stderr
    return process, folder


@pytest.fixture(scope="session")
def dead_network():
    """Environment of a machine whose every connection is refused at once."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{unused.getsockname()[1]}"  # bound, never listening
        yield {**dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy), "no_proxy": ""}


@pytest.fixture
def silent_network():
    """Environment of a machine whose every connection is taken and never answered."""
    held = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            try:
                while True:
                    held.append(server.accept()[0])
            except OSError:  # closed below
                pass

        threading.Thread(target=accept, daemon=True).start()
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield {**dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy), "no_proxy": ""}
        server.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


@pytest.fixture
def figures(monkeypatch):
    """The Figure objects saved while the test runs, in order; they are really drawn."""
    saved = []
    draw = FigureCanvasAgg.print_png

    def record(canvas, *args, **kwargs):
        saved.extend({canvas.figure}.difference(saved))  # a test may draw it again
        return draw(canvas, *args, **kwargs)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", record)
    return saved


FINISHED_RUN = ("--recipe", "denoising", "--dataset", "digits", "--epochs", 3)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished run; for copying, not for writing into."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    ae_train.main([str(a) for a in (*FINISHED_RUN, "--output-dir", folder)])
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished run, to write into."""
    return shutil.copytree(finished, tmp_path / "run")
