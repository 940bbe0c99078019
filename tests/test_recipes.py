import dataclasses
import io
import json

import pytest
import torch
from conftest import make_trainer, same_bits

from ae_models import LayeredAutoencoder, to_range
from autoencoders.recipes import DEFAULT, RECIPES, Recipe
from autoencoders.runtime.errors import UsageError

every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())


def settled(recipe):
    """The recipe with a code size, where PCA would decide it."""
    return recipe.override({"code_size": 25}) if recipe.model_args.get("code_size", 1) is None else recipe


@pytest.fixture
def unit_x():
    return torch.rand(6, 784, generator=torch.Generator().manual_seed(0))


@every_recipe
def test_every_recipe_lowers_its_own_loss_in_a_few_steps(recipe, few):
    settings = {"code_size": 25} if recipe.code_size is None else {}
    first, *_, last = make_trainer(recipe.name, few, epochs=3, batch_size=32, **settings).epochs()
    assert last["train_loss"] < first["train_loss"] and last["test_loss"] < first["test_loss"]


@every_recipe
def test_every_model_answers_the_contract(recipe, unit_x):
    model = settled(recipe).build().eval()
    x = to_range(unit_x, "unit", model.input_range)
    with torch.no_grad():
        reconstruction, code = model(x)
        loss, parts = model.loss(x)
    assert reconstruction.shape[-2:] == x.shape and code.shape[-2] == 6
    assert reconstruction.ndim == 2 or len(reconstruction) == model.members
    assert loss.ndim == 0 and loss.isfinite() and not any(part.requires_grad for part in parts.values())
    if isinstance(model, LayeredAutoencoder) and not model.selects:  # the others' last layer is linear
        low = -1 if model.output_range == "signed" else 0
        assert low <= reconstruction.min() and reconstruction.max() <= 1


@every_recipe
def test_forward_is_decode_after_encode(recipe, unit_x):
    model = settled(recipe).build().eval()
    x = to_range(unit_x, "unit", model.input_range)
    with torch.no_grad():
        reconstruction, code = model(x)
        assert torch.equal(code, model.encode(x)) and torch.equal(reconstruction, model.decode(code))


@every_recipe
def test_the_loss_reaches_every_parameter(recipe, unit_x):
    torch.manual_seed(0)
    model = settled(recipe).build().train()
    model.on_epoch(1, 2)  # where annealing has begun
    model.loss(to_range(unit_x, "unit", model.input_range))[0].backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


@every_recipe
def test_saved_and_loaded_weights_give_equal_codes(recipe, unit_x):
    file, model, other = io.BytesIO(), settled(recipe).build().eval(), settled(recipe).build().eval()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = to_range(unit_x, "unit", model.input_range)
    with torch.no_grad():
        assert torch.equal(other.encode(x), model.encode(x))


@every_recipe
def test_corrupted_images_stay_in_the_range_of_the_input(recipe, unit_x):
    model = settled(recipe).build()
    model.noise_factor = 5.0
    low = -1 if model.input_range == "signed" else 0
    noisy = model.corrupt(to_range(unit_x, "unit", model.input_range))
    assert noisy.min() == low and noisy.max() == 1


@every_recipe
def test_the_same_seed_builds_the_same_weights(recipe):
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(settled(recipe).build().state_dict())
    assert same_bits(*states)


@every_recipe
def test_a_recipe_survives_being_written_as_json(recipe):
    plain = recipe.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert Recipe.from_dict(plain) == recipe


@every_recipe
def test_an_override_changes_that_setting_and_leaves_the_table_alone(recipe):
    before = recipe.as_dict()
    other = recipe.override({"lr": 0.5, "epochs": 3})
    assert (other.lr, other.epochs) == (0.5, 3)
    assert dataclasses.replace(other, lr=recipe.lr, epochs=recipe.epochs) == recipe
    assert recipe.as_dict() == before


@every_recipe
def test_a_setting_that_the_model_does_not_have_is_refused_by_name(recipe):
    for name in {name for row in RECIPES.values() for name in row.model_args} - recipe.model_args.keys():
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} .*{recipe.name}"):
            recipe.override({name: 1})
    for name in ("unheard_of", "name", "model", "source"):
        with pytest.raises(UsageError):
            recipe.override({name: "x"})


def test_names_are_the_keys_and_no_two_recipes_write_the_same_weights_file():
    assert all(name == row.name for name, row in RECIPES.items())
    assert len({row.weights_file for row in RECIPES.values()}) == len(RECIPES)
    assert len({row.default_folder for row in RECIPES.values()}) == len(RECIPES)


def test_the_symmetric_recipe_has_the_published_settings():
    row = RECIPES[DEFAULT]
    assert (row.name, row.epochs, row.batch_size, row.lr) == ("symmetric", 10, 256, 1e-3)
    assert row.model_args["hidden_sizes"] == (2500,) and row.model_args["code_size"] is None
    assert (row.weights_file, row.default_folder) == ("mnist_ae.pt", "outputs")
    model = row.override({"code_size": 154}).build()
    assert [tuple(p.shape) for p in model.parameters() if p.ndim == 2] == [
        (2500, 784), (154, 2500), (2500, 154), (784, 2500),
    ]  # fmt: skip
    assert model.input_range == model.output_range == "signed"
