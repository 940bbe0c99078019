"""The export of a real run: its files, its one line for each, and what is refused before anything is written."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from conftest import call_script, is_one_error_line, run_script

import ae_export
from autoencoders import load
from autoencoders.training import export

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ae_export.FORMATS["onnx"]), reason="onnx is not installed"
)
needs_safetensors = pytest.mark.skipif(not importlib.util.find_spec("safetensors"), reason="not installed")


@needs_onnx
def test_a_run_becomes_three_graphs_and_nothing_is_said_on_stderr(finished, tmp_path, digits):
    import onnxruntime

    process = run_script("-W", "default", "ae_export.py", "--run", finished, "--output-dir", tmp_path / "out")
    assert (process.returncode, process.stderr) == (0, "")
    lines, names = process.stdout.splitlines(), ["encoder.onnx", "decoder.onnx", "autoencoder.onnx"]
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"{tmp_path / 'out' / name}: ") and "(batch, 784)" in line and "difference" in line
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "autoencoder.onnx")
    (found,) = session.run(None, {"images": (digits.test_images / 255).astype(np.float32)})
    np.testing.assert_allclose(found, load(finished).reconstruct(digits.test_images), atol=1e-5)


@needs_safetensors
def test_the_weights_go_into_the_folder_of_the_run(folder, capsys):
    status, out, err = call_script(capsys, ae_export.main, "--run", folder, "--format", "safetensors")
    assert (status, err) == (0, "") and out.startswith(f"{folder / 'autoencoder.safetensors'}: ")
    assert "(297 test images of scikit-learn digits, denoising)" in out


@needs_onnx
def test_a_graph_that_differs_from_pytorch_is_not_written(folder, capsys, monkeypatch):
    run_onnx = export._run_onnx

    def wrong(data, x):
        found, shapes = run_onnx(data, x)
        return found + 1e-3 * (found.shape[-1] == 784), shapes  # the decoder is the second file

    monkeypatch.setattr(export, "_run_onnx", wrong)
    status, out, err = call_script(capsys, ae_export.main, "--run", folder)
    assert (status, out) == (1, "") and is_one_error_line(err) and "decoder.onnx" in err
    assert not list(folder.glob("*.onnx"))


@pytest.mark.parametrize("name", ae_export.FORMATS)
def test_a_missing_package_is_one_line_with_the_command(name, folder, capsys, monkeypatch):
    find = importlib.util.find_spec
    needed = ae_export.FORMATS[name]
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in needed else find(n))
    status, out, err = call_script(capsys, ae_export.main, "--run", folder, "--format", name)
    assert (status, out) == (2, "") and is_one_error_line(err)
    assert err.endswith(f"python -m pip install {' '.join(needed)}\n")


@needs_safetensors
def test_images_that_are_not_there_must_be_named(folder, capsys, fake_mnist, tmp_path):
    flags = ("--run", folder, "--format", "safetensors", "--output-dir", tmp_path / "out")
    status, _, err = call_script(capsys, ae_export.main, *flags, "--dataset", "mnist", "--data-root", fake_mnist[0])
    assert status == 2 and is_one_error_line(err.splitlines(keepends=True)[-1]) and "--dataset" in err
    status, _, err = call_script(capsys, ae_export.main, "--run", tmp_path, "--format", "safetensors")
    assert status == 2 and is_one_error_line(err) and "train first" in err
    assert not Path(tmp_path / "out").exists()
