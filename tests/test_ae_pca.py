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


def test_it_prints_and_writes_the_count_and_writes_its_three_files(written, digits):
    process, folder = written
    count = fit_pca(digits).components_for(0.95)
    first, _ = process.stdout.splitlines()  # stdout is for results alone
    assert first == f"Number of components to explain 95% variance: {count}"
    assert (folder / "n_components_95.txt").read_text().strip() == str(count)
    names = {"n_components_95.txt", "pca.npz", "pca_cumulative_variance.png"}
    assert {path.name for path in folder.iterdir() if path.name != ".lock"} == names
    assert np.asarray(Image.open(folder / "pca_cumulative_variance.png").convert("L")).std() > 10


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
    "flags", [("--max-samples", "1"), ("--variance", "0"), ("--variance", "1.01"), ("--workers", "-1")], ids=" ".join
)
def test_a_usage_error_is_one_line_and_status_2_and_nothing_is_written(tmp_path, capsys, flags):
    folder = tmp_path / "out"
    status, out, err = call_script(capsys, ae_pca.main, "--output-dir", folder, "--dataset", "digits", *flags)
    assert status == 2 and out == "" and is_one_error_line(err)
    assert not folder.exists()


def test_torch_is_never_imported(tmp_path):
    code = "import sys, ae_pca; ae_pca.main(); print('torch' in sys.modules)"
    process = run_script("-c", code, "--dataset", "digits", "--output-dir", tmp_path)
    assert process.stdout.splitlines()[-1] == "False", process.stderr


def test_a_damaged_image_file_is_status_1_and_nothing_is_written(fake_mnist, tmp_path, capsys):
    root, raw = fake_mnist
    path = raw / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    status, out, err = call_script(capsys, ae_pca.main, "--data-root", root, "--output-dir", tmp_path / "out")
    assert (status, out) == (1, "") and is_one_error_line(err)
    assert str(path) in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["file", "file/below", "/proc/none"])
def test_an_output_folder_that_cannot_be_written_is_status_1(tmp_path, capsys, path):
    (tmp_path / "file").write_text("mine")
    status, out, err = call_script(capsys, ae_pca.main, "--dataset", "digits", "--output-dir", tmp_path / path)
    assert status == 1 and out == "" and is_one_error_line(err) and path in err
    assert (tmp_path / "file").read_text() == "mine"
