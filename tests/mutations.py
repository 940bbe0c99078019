"""Changes one value inside a file that the scripts read, and seals the file again: its checksums match its content.

`KINDS` names each kind of file with the script that reads it; tests/test_mutations.py and `make torture` use them.
"""

import contextlib
import copy
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import ae_eval
import ae_generate
import ae_pca
import ae_search
import ae_train
from autoencoders.runtime.files import write_npz
from autoencoders.training import checkpoint

NASTY = "\x1b[2J\x1b]0;title\x07\u202eevil\nerror: no"
RUN = ("--dataset", "digits", "--recipe", "simple", "--hidden-sizes", "8", "--code-size", "4", "--epochs", "2",
       "--device", "cpu")  # fmt: skip
SEARCH = ("--dataset", "digits", "--hidden-sizes", "4", "--code-sizes", "2", "--folds", "2", "--epochs", "1",
          "--device", "cpu")  # fmt: skip
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.integers(-2, 3), st.floats(), st.text(max_size=20),
    st.sampled_from([NASTY, "A" * 8000, "../../escaped", "/etc/passwd", "\0", "\udcff", "=cmd|calc", 10**12, -5, []]),
    st.lists(st.integers(0, 5) | st.floats(), max_size=3), st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)  # fmt: skip
TENSORS: list[Callable[[torch.Tensor], Any]] = [
    lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else torch.full_like(t, -1),
    lambda t: torch.full_like(t, 1e38) if t.is_floating_point() else torch.full_like(t, 100),
    lambda t: t.double() if t.dtype != torch.double else t.float(),
    lambda t: t.to_sparse() if t.dtype != torch.uint8 else t[:0],
    lambda t: torch.zeros(1, dtype=t.dtype).expand(3 * 10**8),
    lambda t: t.to("meta"),
    lambda t: t.flatten()[:-1],
    lambda t: t.to(torch.complex64),
    lambda t: torch.nested.nested_tensor([t.float(), t.float()[:1]]) if t.ndim else t,
    lambda t: t.to_sparse_csr() if t.ndim == 2 else t[None],
    lambda t: t.clone().requires_grad_() if t.is_floating_point() else t.bool(),
]
ARRAYS: list[Callable[[np.ndarray], Any]] = [
    lambda a: np.full_like(a, np.nan) if a.dtype.kind == "f" else a,
    lambda a: np.full_like(a, -3) if a.dtype.kind in "fi" else a,
    lambda a: np.full_like(a, 1e30) if a.dtype.kind == "f" else a,
    lambda a: a.astype(complex) if a.dtype.kind in "fi" else a,
    lambda a: a.astype(str), lambda a: a.ravel()[:0], lambda a: np.atleast_1d(a)[..., :1], lambda a: np.array("abc"),
    lambda a: np.array(np.inf), lambda a: np.linspace(0, 1, 100_000), lambda a: np.array(NASTY), lambda a: np.flip(a),
    lambda a: np.array(10**12),
]  # fmt: skip


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of keys to every value inside a tree of dicts and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from _paths(value, (*path, key))


@st.composite
def changed(draw: Any, tree: Any) -> Any:
    """A copy of the tree in which one value is another, is missing, or has another name."""
    tree = copy.deepcopy(tree)
    *path, last = draw(st.sampled_from(list(_paths(tree))))
    parent = tree
    for key in path:
        parent = parent[key]
    old, action = parent[last], draw(st.sampled_from(["replace"] * 8 + ["delete", "rename"]))
    if action == "replace":
        special = TENSORS if isinstance(old, torch.Tensor) else ARRAYS if isinstance(old, np.ndarray) else []
        made = st.sampled_from(special).map(lambda make: make(old)) if special else st.nothing()
        parent[last] = draw(made | PLAIN)
    else:
        del parent[last]
        if action == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from([NASTY, "=1+1", "", "step"]))] = old
    return tree


def sealed(record: Any) -> bytes:
    plain = json.loads(json.dumps(record, default=str))  # what is no JSON becomes text; NaN stays
    return json.dumps({**plain, "sha256": checkpoint.checksum(plain)} if isinstance(plain, dict) else plain).encode()


def unsealed(path: Path) -> Any:
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"}


def _write_weights(path: Path, state: Any) -> None:
    path.write_bytes(checkpoint.to_bytes(state))
    record = unsealed(path.with_name("run.json"))
    record["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name("run.json").write_bytes(sealed(record))


def _read_npz(path: Path) -> Any:
    with np.load(path) as archive:
        return dict(archive)


def _write_npz(path: Path, arrays: Any) -> None:
    with contextlib.suppress(Exception):  # an object that no file without a pickle holds: the file stays as it was
        write_npz(path, **{str(name): np.asarray(array) for name, array in arrays.items()})


def _generate(folder: Path) -> list[str]:
    return ["--run", str(folder), "--device", "cpu", "--interpolate", "3", "8", "--steps", "2"]


def _evaluate(folder: Path) -> list[str]:
    return ["--run", str(folder), "--device", "cpu"]


def _train(*more: str) -> Callable[[Path], list[str]]:
    return lambda folder: [*RUN, "--output-dir", str(folder), *more]


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name, how its content is read and written again, and the script that reads it.

    `examples` is a share of 510, the smaller the longer the script takes; the quick tests take half of it, torture ten
    times it.
    """

    examples: int
    file: str
    read: Callable[[Path], Any]
    write: Callable[[Path, Any], object]
    main: Callable[[list[str]], None]
    arguments: Callable[[Path], list[str]]


_JSON: tuple[Any, Any] = unsealed, lambda path, record: path.write_bytes(sealed(record))
_PLAIN_JSON: tuple[Any, Any] = unsealed, lambda path, record: path.write_text(json.dumps(record, default=str))
_TENSORS: tuple[Any, Any] = lambda path: torch.load(path, weights_only=True), _write_weights
_NPZ: tuple[Any, Any] = _read_npz, _write_npz
_CHECKPOINT: tuple[Any, Any] = lambda path: checkpoint.load_checkpoint(path)[0], checkpoint.save_checkpoint
_TEXT: tuple[Any, Any] = (
    lambda path: [path.read_text()],
    lambda path, tree: path.write_text(str(tree[0]) if tree else "", errors="replace"),
)
_AUTO, _LONGER = _train("--code-size", "auto", "--dry-run"), ("--epochs", "3")
KINDS = {
    "record": Kind(100, "run.json", *_JSON, ae_generate.main, _generate),
    "record, evaluated": Kind(10, "run.json", *_JSON, ae_eval.main, _evaluate),
    "weights": Kind(60, "mnist_simple.pt", *_TENSORS, ae_eval.main, _evaluate),
    "checkpoint": Kind(60, "checkpoint.pt", *_CHECKPOINT, ae_train.main, _train("--resume")),
    "checkpoint, more epochs": Kind(60, "checkpoint.pt", *_CHECKPOINT, ae_train.main, _train("--resume", *_LONGER)),
    "PCA": Kind(120, "pca.npz", *_NPZ, ae_train.main, _AUTO),
    "PCA, measured": Kind(10, "pca.npz", *_NPZ, ae_train.main, _train("--epochs", "1")),
    "number of components": Kind(40, "n_components_95.txt", *_TEXT, ae_train.main, _AUTO),
    "fold": Kind(30, "folds/*.json", *_JSON, ae_search.main, lambda folder: [*SEARCH, "--output-dir", str(folder)]),
    "tracker": Kind(10, "trackers/tensorboard.json", *_PLAIN_JSON, ae_train.main,
                    _train("--resume", "--tracker", "tensorboard", *_LONGER)),
}  # fmt: skip


def make_folder(folder: Path) -> None:
    """A folder with every kind of file."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ae_pca.main(["--dataset", "digits", "--output-dir", str(folder)])
        ae_train.main(_train("--tracker", "tensorboard")(folder))
        ae_search.main([*SEARCH, "--output-dir", str(folder)])


def mutate(kind: Kind, folder: Path, data: st.DataObject) -> None:
    """Change one value in the file of this kind in `folder`, as `data` draws it."""
    path = sorted(folder.glob(kind.file))[0]
    tree = data.draw(changed(kind.read(path)))
    with contextlib.suppress(TypeError, UnicodeEncodeError, RuntimeError):  # a value that the format cannot hold
        kind.write(path, tree)


def is_harmless(status: int, out: str, err: str) -> bool:
    """Whether a script ended well, or with one line that says why; and printed nothing but lines of visible text."""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    shown = (out + err).replace("\n", "").isprintable()
    return shown and "Traceback" not in err and (status, len(errors)) in ((0, 0), (1, 1), (2, 1))
