"""The Python API on real models: arrays of any form in, the same form out, and errors that name what was given."""

import pickle

import numpy as np
import pytest
import torch
from conftest import make_trainer, run_script, same_bits

from autoencoders import load, train
from autoencoders.evaluation.metrics import encode, reconstruct
from autoencoders.recipes import RECIPES
from autoencoders.runtime.errors import RunError

SMALL = {"epochs": 1, "code_size": 4}


@pytest.fixture(scope="module")
def tuned(digits):
    return train("tuned", digits.train_images, hidden_sizes=[16], **SMALL)


@pytest.fixture(scope="module")
def sparse(digits):
    return train("sparse", digits.train_images[:200], epochs=1, num_saes=2, features=32, k=4)


def test_the_package_loads_neither_torch_nor_scikit_learn_until_the_api_is_used():
    code = (
        "import sys, autoencoders; print('torch' in sys.modules, 'sklearn' in sys.modules, end=' ')\n"
        "from autoencoders import load; print('torch' in sys.modules, hasattr(autoencoders, 'nothing'))"
    )
    assert run_script("-c", code).stdout == "False False True False\n"


def test_a_run_is_loaded_and_its_codes_and_reconstructions_are_those_of_the_metrics(finished, digits):
    model, images = load(str(finished)), digits.test_images[:50]
    assert model.recipe.name == "denoising" and model.record["metrics"] and not model.module.training
    x = torch.from_numpy(images)
    np.testing.assert_allclose(model.encode(images), encode(model.module, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.reconstruct(images), reconstruct(model.module, x), atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_gives_pixels_in_the_unit_range(name, few):
    settings = {"code_size": 4} if "code_size" in RECIPES[name].model_args else {"features": 16, "k": 2}
    model = train(name, few.train_images[:64], test_images=few.test_images, epochs=1, **settings)
    for images in (model.reconstruct(few.test_images), model.decode(10 * model.encode(few.test_images))):
        assert images.shape[-2:] == (100, 784) and images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize("shape", [(784,), (28, 28)])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_what_comes_out_is_of_the_kind_and_shape_that_went_in(tuned, digits, shape, kind, dtype):
    bytes_ = digits.test_images[:7]
    images = bytes_ if dtype == "uint8" else (bytes_ / 255).astype(dtype)
    images = images.reshape(7, *shape)
    given = torch.tensor(images) if kind == "torch" else images
    code, rebuilt = tuned.encode(given), tuned.reconstruct(given)
    assert type(code) is type(rebuilt) is type(given) and str(code.dtype).endswith("float32")
    assert code.shape == (7, 4) and rebuilt.shape == given.shape
    np.testing.assert_allclose(code, tuned.encode(bytes_), atol=1e-5)
    np.testing.assert_allclose(tuned.decode(code), rebuilt.reshape(7, 784), atol=1e-6)


def test_many_images_give_what_one_batch_of_them_gives(tuned, digits):
    images = np.tile(digits.test_images, (8, 1))
    codes = tuned.encode(images)
    assert len(codes) == len(images) > 2000
    np.testing.assert_allclose(codes, np.tile(tuned.encode(digits.test_images), (8, 1)), atol=1e-5)


def test_an_ensemble_adds_a_leading_dimension(sparse, digits):
    images = digits.test_images[:5].reshape(5, 28, 28)
    code = sparse.encode(images)
    assert code.shape == (2, 5, 32) and (code != 0).sum(axis=-1).max() <= 4
    assert sparse.reconstruct(images).shape == (2, 5, 28, 28) and sparse.decode(code).shape == (2, 5, 784)
    with pytest.raises(ValueError, match=r"\(5, 32\): expected \(2, N, 32\)"):
        sparse.decode(code[0])


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (np.zeros((28, 28)), r"shape \(28, 28\): expected \(N, 28, 28\) or \(N, 784\).*images\[None\]"),
        (np.zeros((2, 32, 32)), r"\(2, 32, 32\)"),
        (np.full((2, 784), 1.5), r"pixels from 1.5 to 1.5: .*\[0, 1\]"),
        (np.full((2, 784), -0.5), "pixels from -0.5"),
        (np.full((2, 784), np.nan), "NaN"),
        (np.zeros((2, 784), int), "int64: expected uint8 or floats"),
        (torch.zeros(2, 784, dtype=torch.int64), "int64 .*expected uint8"),
        (["a digit"], "expected uint8 or floats"),
    ],
)
def test_other_images_are_refused_with_what_was_given(tuned, digits, images, text):
    for use in (tuned.encode, tuned.reconstruct, lambda x: train("simple", digits.train_images, test_images=x)):
        with pytest.raises(ValueError, match=text):
            use(images)


def test_other_codes_are_refused(tuned):
    with pytest.raises(ValueError, match=r"codes of shape \(3, 5\): expected \(N, 4\)"):
        tuned.decode(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="finite"):
        tuned.decode(np.full((3, 4), np.inf))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epochs": 0}, "epochs 0"),
        ({"k": 3}, "only to sparse"),
        ({"epoch": 3}, "epoch: no such setting"),
    ],
)
def test_a_setting_that_the_recipe_does_not_have_is_refused(few, settings, text):
    with pytest.raises(ValueError, match=text):
        train("simple", few.train_images, **settings)


def test_what_cannot_be_trained_on_or_loaded_is_refused(few, tmp_path):
    for recipe, images, text in (
        ("nothing", few.train_images, "'nothing': expected one of symmetric"),
        ("simple", "pictures", "'pictures': expected an array, or one of mnist"),
        ("simple", few.train_images[:1], "0 training and 1 test images"),
        ("simple", np.zeros((5, 10)), "expected square images"),
        ("conv", np.zeros((5, 8, 8)), "28 x 28"),
    ):
        with pytest.raises(ValueError, match=text):
            train(recipe, images, **SMALL)
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path)
    with pytest.raises(ValueError, match="--device abacus"):
        load(tmp_path, device="abacus")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json"):
        load(tmp_path)


def test_training_is_that_of_the_scripts_and_leaves_files_and_random_state_alone(few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    model = train("denoising", few.train_images, test_images=few.test_images, epochs=2, seed=7, code_size=4)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    trainer = make_trainer("denoising", few, epochs=2, seed=7, code_size=4)
    rows = list(trainer.epochs())
    assert same_bits(model.module.state_dict(), trainer.model.state_dict())
    assert [row["test_loss"] for row in model.history] == [row["test_loss"] for row in rows]
    assert not list(tmp_path.iterdir())


def test_a_set_is_named_and_pca_decides_the_code_size(digits):
    model = train("symmetric", "digits", epochs=1, hidden_sizes=(8,), code_size=None)
    assert model.recipe.code_size == 25 and model.history[0]["epoch"] == 1
    assert train("simple", "digits", epochs=1, code_size=None).recipe.code_size == 25


def test_a_few_small_images_get_more_epochs_and_a_tenth_is_held_out(few):
    images = few.train_images.reshape(-1, 28, 28)[:40, ::2, ::2]
    model = train("speedrun", images, hidden_sizes=(8,), code_size=2)
    assert len(model.history) == 10 and model.reconstruct(images).shape == (40, 14, 14)
    same = train("speedrun", images, hidden_sizes=(8,), code_size=2)
    assert same_bits(model.module.state_dict(), same.module.state_dict())


def test_a_model_can_be_pickled(tuned, digits):
    again = pickle.loads(pickle.dumps(tuned))
    assert np.array_equal(again.encode(digits.test_images), tuned.encode(digits.test_images))
    assert repr(again) == "<Model tuned: 28 x 28 images, codes of 4>"


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 784, device="meta"),
        torch.zeros(3, 784).to_sparse(),
        np.zeros((3, 784), np.longdouble),
        np.zeros((3, 784), complex),
    ],
    ids=["without values", "sparse", "long doubles", "complex"],
)
def test_numbers_that_torch_cannot_compute_with_are_refused(trained, images):
    with pytest.raises(ValueError, match="expected"):
        load(trained[1]).encode(images)


def test_static_pixels_are_drawn_of_grey_arrays_and_binary_arrays_stay(digits):
    grey = digits.train_images[:60]

    def loss(images, binarize):
        settings = {"hidden_sizes": (8,), "code_size": 2, "epochs": 1, "binarize": binarize}
        return train("vae_static", images, quiet=True, **settings).history[0]["train_loss"]

    binary = np.where(grey > 99, 255, 0).astype(np.uint8)
    assert loss(grey, "static") != loss(grey, "none") and loss(binary, "static") == loss(binary, "none")
