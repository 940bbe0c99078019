"""Text from files cannot command a terminal, break a line, or grow a picture: every message, table, page and title."""

import json
import shutil

import filelock
import numpy as np
import pytest
from conftest import call_script
from mutations import RUN, SEARCH, make_folder, sealed
from PIL import Image

import ae_eval
import ae_generate
import ae_pca
import ae_reproduce
import ae_search
import ae_train
from autoencoders.runtime.files import write_npz
from autoencoders.training.checkpoint import load_checkpoint, save_checkpoint

NASTY = "\x1b[2J\x1b]0;title\x07\u202eevil\nerror: no" + "A" * 8000
NAME = NASTY.replace("/", "")[:60] + "A" * 40  # of a file or folder
EVIL = ("\x1b", "\x07", "\u202e", "A" * 2000)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "run"
    make_folder(folder)
    return folder


def record(folder, change):
    content = json.loads((folder / "run.json").read_text())
    del content["sha256"]
    change(content)
    (folder / "run.json").write_bytes(sealed(content))


def state(folder, change):
    content, _ = load_checkpoint(folder / "checkpoint.pt")
    change(content)
    save_checkpoint(folder / "checkpoint.pt", content)


def pca(folder, **changes):
    with np.load(folder / "pca.npz") as archive:
        write_npz(folder / "pca.npz", **{**archive, **{name: np.array(value) for name, value in changes.items()}})


def fold(folder):
    path = next(folder.glob("folds/*.json"))
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_bytes(sealed(content | {"result": {"val_mse_unit": None, "diverged": NASTY, "seconds": 1.0}}))


def columns(content):
    for row in content["trainer"]["history"]:
        row[NASTY] = 1.0


# What holds the text, and the script that meets it.
PLACES = {
    "title": (lambda f: record(f, lambda r: r["dataset"].update(title=NASTY)), ae_generate.main, "--interpolate 3 8"),
    "title, evaluated": (lambda f: record(f, lambda r: r["dataset"].update(title=NASTY, name=NASTY)), ae_eval.main, ""),
    "own": (lambda f: record(f, lambda r: r["dataset"].update(title=NASTY, source=NASTY)), ae_eval.main, ""),
    "fingerprint": (lambda f: record(f, lambda r: r["dataset"].update(fingerprint=NASTY)), ae_eval.main, ""),
    "recipe": (lambda f: record(f, lambda r: r["recipe"].update(name=NASTY)), ae_generate.main, "--interpolate 3 8"),
    "metric": (lambda f: record(f, lambda r: r["metrics"].update({NASTY: 1.0, "test_mse": NASTY})), ae_eval.main, ""),
    "optimizer": (lambda f: state(f, lambda s: s["recipe"].update(optimizer=NASTY)), ae_train.main, "--resume"),
    "precision": (lambda f: state(f, lambda s: s.update(precision=NASTY)), ae_train.main, "--resume"),
    "versions": (lambda f: state(f, lambda s: s.update(versions={NASTY: NASTY})), ae_train.main, "--resume"),
    "column": (lambda f: state(f, columns), ae_train.main, "--resume"),
    "PCA": (lambda f: pca(f, dataset=NASTY, fingerprint="other"), ae_train.main, "--code-size auto"),
    "count": (lambda f: (f / "n_components_95.txt").write_text(NASTY), ae_train.main, "--code-size auto"),
    "fold": (fold, ae_search.main, ""),
    "tracker": (lambda f: (f / "trackers" / "tensorboard.json").write_text(json.dumps({"id": NASTY, "epochs": 1})),
                ae_train.main, "--resume --epochs 3 --tracker tensorboard"),
}  # fmt: skip


def assert_clean(texts, folder, figures):
    for path in folder.rglob("*"):
        if path.suffix in (".csv", ".html", ".md", ".txt") and path.name != "n_components_95.txt":
            texts.append(path.read_text(errors="surrogateescape"))
    texts += [str(figure._suptitle.get_text()) for figure in figures if figure._suptitle]
    for text in texts:
        assert not any(evil in text for evil in EVIL), text[:500]
        assert "\nerror: no" not in text


@pytest.mark.parametrize("place", PLACES)
def test_text_in_a_file_of_a_run_is_shown_as_letters(place, sound, tmp_path, capsys, figures):
    change, main, flags = PLACES[place]
    folder = shutil.copytree(sound, tmp_path / "run")
    change(folder)
    where = {ae_train.main: (*RUN, "--output-dir", folder), ae_search.main: (*SEARCH, "--output-dir", folder)}
    arguments = where.get(main, ("--run", folder, "--device", "cpu"))
    status, out, err = call_script(capsys, main, *arguments, *flags.split())
    assert status in (0, 1, 2) and "Traceback" not in err
    assert_clean([out, err], folder, figures)


def test_the_holder_of_a_lock_is_shown_as_letters(sound, tmp_path, capsys):
    folder = shutil.copytree(sound, tmp_path / "run")
    with filelock.FileLock(folder / ".lock"):
        (folder / ".lock").write_text(NASTY)
        status, out, err = call_script(capsys, ae_train.main, *RUN, "--output-dir", folder)
    assert status == 2 and "in use" in err
    assert_clean([out, err], folder, [])


@pytest.mark.parametrize("main", [ae_pca.main, ae_train.main])
def test_names_of_files_and_folders_are_shown_as_letters(main, digits, tmp_path, capsys, figures):
    folder = tmp_path / NAME / ("b" + NAME)
    folder.mkdir(parents=True)
    (folder / f"{NAME}.png").write_bytes(b"no picture")
    for number, image in enumerate(digits.train_images[:12]):
        Image.fromarray(image.reshape(28, 28)).save(folder / f"{number}.png")
    flags = () if main is ae_pca.main else (*RUN[2:], "--epochs", 1)
    status, out, err = call_script(capsys, main, "--dataset", folder.parent, *flags, "--output-dir", tmp_path / "out")
    assert status == 0 and "left out" in err
    assert_clean([out, err], tmp_path / "out", figures)


def test_the_page_of_a_reproduction_shows_letters(tmp_path, capsys):
    flags = ("--only", "simple", "--dataset", "digits", "--device", "cpu", "--output-dir", tmp_path)
    assert call_script(capsys, ae_reproduce.main, *flags)[0] == 0
    folder = next(tmp_path.rglob("run.json")).parent
    record(folder, lambda r: r.update(precision=NASTY) or r["metrics"].update({NASTY: 1.0}) or r.update(device=NASTY))
    status, out, err = call_script(capsys, ae_reproduce.main, *flags)
    assert status in (0, 1) and "<html" in (tmp_path / "reproduction.html").read_text()
    assert_clean([out, err], tmp_path, [])
