"""What is compared before an export is written, for every recipe."""

import json

import numpy as np
import pytest
import torch

from autoencoders.recipes import RECIPES, Recipe
from autoencoders.runtime.errors import RunError
from autoencoders.training.export import compare, to_onnx, to_safetensors
from autoencoders.training.trained import TrainedRun, UnitPixels

CPU = torch.device("cpu")


def run_of(name, tmp_path):
    """A run of the recipe `name`, small and untrained."""
    wanted = {"hidden_sizes": (16,), "code_size": 4, "num_saes": 2, "features": 32, "k": 4}
    recipe = RECIPES[name].override({k: v for k, v in wanted.items() if k in RECIPES[name].model_args})
    torch.manual_seed(0)
    record = {"dataset": {"title": "images"}, "weights_sha256": "0"}
    return TrainedRun(tmp_path, recipe.build().eval(), recipe, record, CPU)


@pytest.mark.parametrize("name", ["conv", "sparse", "tuned"])  # each kind of graph, both ranges of pixels
def test_the_graphs_of_a_recipe_take_and_give_pixels_in_the_unit_range(name, tmp_path, few):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run, images = run_of(name, tmp_path), torch.from_numpy(few.test_images)
    files = {file: data for file, data, _ in to_onnx(run, images)}
    x, session = images / 255, {file: runtime.InferenceSession(data) for file, data in files.items()}
    unit = UnitPixels(run.model)
    for count in (1, 100):  # the batch axis is free
        with torch.no_grad():
            code, expected = unit.encode(x[:count]).numpy(), unit(x[:count]).numpy()
        (found,) = session["encoder.onnx"].run(["code"], {"images": x[:count].numpy()})
        np.testing.assert_allclose(found, code, atol=1e-5)
        (decoded,) = session["decoder.onnx"].run(["reconstruction"], {"code": found})
        (whole,) = session["autoencoder.onnx"].run(["reconstruction"], {"images": x[:count].numpy()})
        np.testing.assert_allclose(whole, expected, atol=1e-5)
        np.testing.assert_allclose(decoded, whole, atol=1e-5)
    facts = {prop.key: prop.value for prop in onnx.load_from_string(files["encoder.onnx"]).metadata_props}
    assert facts["recipe"] == name and facts["image_size"] == "28" and facts["input_range"] == "[0, 1]"
    assert facts["code_size"] == str(code.shape[-1]) and int(facts["autoencoders"]) == run.model.members


@pytest.mark.parametrize("name", ["sparse", "tuned"])
def test_safetensors_rebuild_the_model_from_their_metadata(name, tmp_path, few):
    safetensors = pytest.importorskip("safetensors")
    run = run_of(name, tmp_path)
    ((file, data, _),) = to_safetensors(run, torch.from_numpy(few.test_images))
    (tmp_path / file).write_bytes(data)
    with safetensors.safe_open(tmp_path / file, "pt") as stored:
        model = Recipe.from_dict(json.loads(stored.metadata()["settings"])).build()
        model.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
        assert stored.metadata()["input_range"] == run.model.input_range
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), run.model.parameters()))


def test_a_difference_above_the_tolerance_is_refused_unless_one_image_in_500_has_it():
    expected = np.random.default_rng(0).random((2, 1000, 8))
    assert "largest difference to PyTorch 9.0e-06" in compare("x.onnx", expected + 9e-6, expected)
    assert "largest difference to PyTorch 9.0e-04" in compare("x.onnx", 100 * expected + 9e-4, 100 * expected)
    found = expected.copy()
    found[:, :2, 0] += 0.3
    assert compare("x.onnx", found, expected).endswith("3.0e-01, in 2 images with a tie")
    found[1, 2, 0] = np.nan
    with pytest.raises(RunError, match=r"x\.onnx: .* for 3 of 1,000 test images; nothing was written"):
        compare("x.onnx", found, expected)
    with pytest.raises(RunError, match=r"x\.onnx"):
        compare("x.onnx", expected + 2e-5, expected)
