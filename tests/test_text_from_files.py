"""Names of files and folders cannot command a terminal, break a line, or grow a picture."""

import filelock
import pytest
from conftest import call_script
from PIL import Image

import ae_pca
import ae_train

NASTY = "\x1b[2J\x1b]0;title\x07\u202eevil\nerror: no" + "A" * 8000
NAME = NASTY.replace("/", "")[:60] + "A" * 40  # of a file or folder
RUN = ("--recipe", "simple", "--hidden-sizes", "8", "--code-size", "4", "--epochs", "2", "--device", "cpu")
EVIL = ("\x1b", "\x07", "\u202e", "A" * 2000)


def assert_clean(texts, folder, figures):
    for path in folder.rglob("*"):
        if path.suffix in (".csv", ".html", ".md", ".txt") and path.name != "n_components_95.txt":
            texts.append(path.read_text(errors="surrogateescape"))
    texts += [str(figure._suptitle.get_text()) for figure in figures if figure._suptitle]
    for text in texts:
        assert not any(evil in text for evil in EVIL), text[:500]
        assert "\nerror: no" not in text


def test_the_holder_of_a_lock_is_shown_as_letters(tmp_path, capsys):
    with filelock.FileLock(tmp_path / ".lock"):
        (tmp_path / ".lock").write_text(NASTY)
        status, out, err = call_script(capsys, ae_train.main, "--dataset", "digits", *RUN, "--output-dir", tmp_path)
    assert status == 2 and "in use" in err
    assert_clean([out, err], tmp_path, [])


def test_a_number_of_components_is_shown_as_letters(tmp_path, capsys):
    (tmp_path / "n_components_95.txt").write_text(NASTY)
    flags = ("--dataset", "digits", *RUN, "--code-size", "auto", "--output-dir", tmp_path)
    status, out, err = call_script(capsys, ae_train.main, *flags)
    assert status == 2 and "n_components_95.txt" in err
    assert_clean([out, err], tmp_path, [])


@pytest.mark.parametrize("main", [ae_pca.main, ae_train.main])
def test_names_of_files_and_folders_are_shown_as_letters(main, digits, tmp_path, capsys, figures):
    folder = tmp_path / NAME / ("b" + NAME)
    folder.mkdir(parents=True)
    (folder / f"{NAME}.png").write_bytes(b"no picture")
    for number, image in enumerate(digits.train_images[:12]):
        Image.fromarray(image.reshape(28, 28)).save(folder / f"{number}.png")
    flags = () if main is ae_pca.main else (*RUN, "--epochs", 1)
    status, out, err = call_script(capsys, main, "--dataset", folder.parent, *flags, "--output-dir", tmp_path / "out")
    assert status == 0 and "left out" in err
    assert_clean([out, err], tmp_path / "out", figures)
