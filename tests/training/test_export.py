"""Exports of every recipe, small: what other programs compute from them is what PyTorch computes."""

import json

import numpy as np
import pytest
import torch
from conftest import make_trainer

from autoencoders.evaluation.metrics import to_pixels
from autoencoders.recipes import Recipe
from autoencoders.runtime.errors import RunError
from autoencoders.training import export
from autoencoders.training.trained import TrainedRun, UnitPixels

onnxruntime = pytest.importorskip("onnxruntime")
safetensors = pytest.importorskip("safetensors.torch")
safe_open = pytest.importorskip("safetensors").safe_open

SMALL = {
    "symmetric": {"hidden_sizes": (16,), "code_size": 4}, "tuned": {"hidden_sizes": (16,), "code_size": 4},
    "vae": {"hidden_sizes": (16,), "code_size": 4}, "conv": {},
    "sparse": {"num_saes": 2, "features": 32, "k": 4},
}  # fmt: skip


def run_of(name, few, folder):
    trainer = make_trainer(name, few, **SMALL[name])
    next(trainer.epochs())
    record = {"dataset": {"title": "digits"}, "weights_sha256": "0" * 64}
    return TrainedRun(folder, trainer.model.eval(), trainer.recipe, record, torch.device("cpu"))


def run_onnx(data, x):
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    return session.run(None, {session.get_inputs()[0].name: x})[0], facts


@pytest.mark.parametrize("name", SMALL)
def test_onnx_gives_pytorchs_numbers_for_any_batch_and_unit_pixels(name, few, tmp_path):
    run = run_of(name, few, tmp_path)
    images = torch.tensor(few.test_images)
    files = {file: data for file, data, _ in export.to_onnx(run, images)}
    assert list(files) == ["encoder.onnx", "decoder.onnx", "autoencoder.onnx"]
    for count in (1, 7):
        x = to_pixels(images[:count], "unit")
        with torch.no_grad():
            expected = UnitPixels(run.model)(x).numpy()
        whole, facts = run_onnx(files["autoencoder.onnx"], x.numpy())
        code, _ = run_onnx(files["encoder.onnx"], x.numpy())
        parts, _ = run_onnx(files["decoder.onnx"], code)
        assert whole.shape == expected.shape and whole.min() >= 0 and whole.max() <= 1
        assert np.abs(whole - expected).max() <= 1e-5 and np.abs(parts - expected).max() <= 1e-5
    assert facts["input_range"] == facts["output_range"] == "[0, 1]" and facts["recipe"] == name
    assert facts["code_size"] == str(code.shape[-1]) and facts["image_size"] == "28"


@pytest.mark.parametrize("name", ["tuned", "sparse"])
def test_safetensors_hold_the_state_dict_and_the_recipe(name, few, tmp_path):
    run = run_of(name, few, tmp_path)
    ((file, data, _),) = export.to_safetensors(run, torch.tensor(few.test_images))
    assert file == "autoencoder.safetensors"
    weights, expected = safetensors.load(data), run.model.state_dict()
    assert weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in weights)
    (tmp_path / file).write_bytes(data)
    with safe_open(tmp_path / file, "pt") as opened:
        settings = json.loads(opened.metadata()["settings"])
    assert Recipe.from_dict(settings).settings() == run.recipe.settings()


def test_a_difference_is_told_and_too_large_a_one_refused():
    expected = np.linspace(0, 1, 1000 * 4, dtype=np.float32).reshape(1000, 4)
    assert "largest difference to PyTorch 0.0e+00" in export.compare("a", expected, expected)
    for wrong in (expected + 2e-5, np.full_like(expected, np.nan)):
        with pytest.raises(RunError, match="nothing was written"):
            export.compare("a.onnx", wrong, expected)
    one = expected.copy()
    one[5] += 0.1
    assert "1 images with a tie" in export.compare("a", one, expected)
