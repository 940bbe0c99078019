import numpy as np
import pytest
from conftest import call_script, is_one_error_line, run_script
from PIL import Image

import ae_pca
from autoencoders.evaluation.pca import fit_pca, read_pca


@pytest.fixture(scope="module")
def written(tmp_path_factory, dead_network):
    """(process, folder) of a run on a machine without MNIST and without a network."""
    folder = tmp_path_factory.mktemp("pca")
    return run_script(
        "ae_pca.py", "--dataset", "auto", "--data-root", folder / "data", "--output-dir", folder / "out", **dead_network
    ), folder / "out"


def test_without_a_network_auto_ends_well_on_digits_and_says_so(written):
    process, _ = written
    assert process.returncode == 0
    assert "MNIST IS NOT AVAILABLE" in process.stderr and "Traceback" not in process.stderr
    assert "in place of MNIST" in process.stdout


def test_it_prints_and_writes_the_count_and_leaves_its_three_files(written, digits):
    process, folder = written
    count = fit_pca(digits).components_for(0.95)
    assert process.stdout.splitlines()[0] == f"Number of components to explain 95% variance: {count}"
    assert (folder / "n_components_95.txt").read_text().strip() == str(count)
    names = {"n_components_95.txt", "pca.npz", "pca_cumulative_variance.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert np.asarray(Image.open(folder / "pca_cumulative_variance.png").convert("L")).std() > 10


def test_stdout_is_for_results_alone(written):
    assert len(written[0].stdout.splitlines()) == 2


def test_the_file_holds_the_pca_of_those_images(written, digits):
    pca = read_pca(written[1], digits)
    assert pca.samples == 1500 and pca.dataset == "digits"
    assert np.array_equal(pca.components, fit_pca(digits).components)


def test_another_variance_writes_a_file_of_its_name(tmp_path, capsys, digits):
    status, out, err = call_script(
        capsys, ae_pca.main, "--dataset", "digits", "--variance", 0.8, "--output-dir", tmp_path
    )
    count = fit_pca(digits).components_for(0.8)
    assert (status, err) == (0, "") and f"explain 80% variance: {count}\n" in out
    assert (tmp_path / "n_components_80.txt").read_text() == f"{count}\n"
    assert not (tmp_path / "n_components_95.txt").exists()


def test_max_samples_fits_on_that_many_images(tmp_path, capsys, digits):
    flags = ("--dataset", "digits", "--max-samples", 200, "--seed", 3, "--workers", 2, "--output-dir", tmp_path)
    assert call_script(capsys, ae_pca.main, *flags)[0] == 0
    assert read_pca(tmp_path, digits).samples == 200
    assert np.array_equal(read_pca(tmp_path, digits).mean, fit_pca(digits, 200, 3).mean)


@pytest.mark.parametrize(
    "flags",
    [
        *(("--max-samples", n) for n in ("0", "1", "-5", "abc", "1e3")),
        *(("--variance", v) for v in ("0", "-1", "1.01", "95", "nan", "inf", "x")),
        *(("--dataset", d) for d in ("imagenet", "", "MNIST ")),
        ("--workers", "-1"),
        ("--seed", "-1"),
        ("--seed", "1.5"),
        ("--no-such-flag",),
        ("--output-dir",),
        ("stray",),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_status_2_and_nothing_is_made(tmp_path, capsys, flags):
    folder = tmp_path / "out"
    status, out, err = call_script(capsys, ae_pca.main, "--output-dir", folder, "--dataset", "digits", *flags)
    assert status == 2 and out == "" and is_one_error_line(err)
    assert not folder.exists()


def test_a_damaged_image_file_is_status_1_and_nothing_is_made(fake_mnist, tmp_path):
    root, raw = fake_mnist
    path = raw / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    process = run_script("ae_pca.py", "--data-root", root, "--output-dir", tmp_path / "out")
    assert process.returncode == 1 and process.stdout == "" and is_one_error_line(process.stderr)
    assert str(path) in process.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_an_output_folder_that_cannot_be_written_is_status_1(tmp_path, capsys, place):
    (tmp_path / "file").write_text("mine")
    status, out, err = call_script(capsys, ae_pca.main, "--dataset", "digits", "--output-dir", tmp_path / place)
    assert status == 1 and out == "" and is_one_error_line(err) and place in err
    assert (tmp_path / "file").read_text() == "mine"
