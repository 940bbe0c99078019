"""A fold of the cross-validation: its number is that of training it oneself, and only the same fold finds it again."""

import json
from dataclasses import replace

import pytest
import torch
from sklearn.model_selection import KFold

from autoencoders.recipes import RECIPES
from autoencoders.runtime import signals
from autoencoders.runtime.device import seed_for
from autoencoders.runtime.errors import RunError
from autoencoders.training import folds
from autoencoders.training.trainer import Trainer

CPU = torch.device("cpu")
RECIPE = RECIPES["symmetric"].override({"hidden_sizes": (8,), "code_size": 3, "epochs": 2})


@pytest.fixture
def three():
    return [folds.Fold("8, code 3", RECIPE, number, 3, 0, CPU, 1) for number in range(3)]


@pytest.fixture(scope="module")
def stored(few, tmp_path_factory):
    """(results, folder) of the three folds of the small set."""
    folder = tmp_path_factory.mktemp("folds")
    three = [folds.Fold("8, code 3", RECIPE, number, 3, 0, CPU, 1) for number in range(3)]
    return folds.cross_validate(three, few, folder, jobs=1), folder


def test_a_fold_is_the_suites_own_training_on_the_other_folds(few, stored):
    for number, (train, held_out) in enumerate(KFold(3, shuffle=True, random_state=0).split(few.train_images)):
        own = replace(few, train_images=few.train_images[train], test_images=few.train_images[held_out])
        *_, last = Trainer(replace(RECIPE, seed=seed_for(RECIPE.seed, number)), own).epochs()
        assert stored[0][number]["val_mse_unit"] == pytest.approx(last["test_loss"] / 4, rel=1e-5)  # of [-1, 1]


def test_each_fold_has_a_seed_of_its_own_which_all_candidates_share(three):
    wider = [replace(fold, recipe=RECIPE.override({"hidden_sizes": (9,)})) for fold in three]
    assert [fold.seeded_recipe.seed for fold in wider] == [fold.seeded_recipe.seed for fold in three]
    first, *others = [fold.seeded_recipe for fold in three]
    torch.manual_seed(first.seed)
    weights = first.build().state_dict()
    for recipe in others:
        torch.manual_seed(recipe.seed)
        drawn = recipe.build().state_dict()
        assert not any(torch.equal(drawn[name], weights[name]) for name in weights)


def test_the_test_images_are_never_used(few, stored, three, tmp_path):
    other = replace(few, test_images=255 - few.test_images)
    again = folds.cross_validate(three, other, tmp_path, jobs=1)
    assert [result["val_mse_unit"] for result in again] == [result["val_mse_unit"] for result in stored[0]]


def test_labels_go_with_their_images(few, three):
    split = three[1].split(few)
    assert len(split.train_labels) == len(split.train_images) and len(split.test_labels) == len(split.test_images)
    held_out = {image.tobytes(): label for image, label in zip(split.test_images, split.test_labels)}
    every = {image.tobytes(): label for image, label in zip(few.train_images, few.train_labels)}
    assert held_out == {image: every[image] for image in held_out}


def test_stored_folds_are_read_and_missing_or_changed_ones_trained_again(few, stored, three, tmp_path, caplog):
    for file in stored[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    sound, changed, cut = sorted(tmp_path.iterdir())
    record = json.loads(changed.read_text())
    record["result"]["val_mse_unit"] /= 2
    changed.write_text(json.dumps(record))
    cut.write_text(cut.read_text()[:100])
    before = sound.stat().st_mtime_ns
    again = folds.cross_validate(three, few, tmp_path, jobs=1)
    assert [result["val_mse_unit"] for result in again] == [result["val_mse_unit"] for result in stored[0]]
    assert sound.stat().st_mtime_ns == before
    assert all(name in caplog.text for name in (changed.name, cut.name)) and sound.name not in caplog.text


def test_only_the_same_fold_of_the_same_images_under_the_same_versions_is_found(few, stored, three, monkeypatch):
    fold, (_, folder) = three[0], stored
    assert folds.load_result(fold.cache_key(few), folder)
    others = [
        replace(fold, number=1, of=4), replace(fold, seed=1), replace(fold, threads=2),
        replace(fold, recipe=RECIPE.override({"lr": 0.1})), replace(fold, recipe=RECIPE.override({"epochs": 7})),
    ]  # fmt: skip
    assert not any(folds.load_result(other.cache_key(few), folder) for other in others)
    swapped = replace(few, train_images=few.train_images[::-1].copy())
    assert not folds.load_result(fold.cache_key(swapped), folder)
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert not folds.load_result(fold.cache_key(few), folder)


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt(), 130), (signals.Stopped("", 143), 143)], ids=str)
def test_a_signal_while_a_fold_trains_leaves_the_finished_ones(few, three, tmp_path, monkeypatch, stop, status):
    results = iter([{"val_mse_unit": 0.1, "seconds": 1.0}])

    def train(fold, images):
        for result in results:
            return result
        raise stop

    monkeypatch.setattr(folds.Fold, "train", train)
    with pytest.raises(signals.Stopped, match="1 of 3 folds") as stopped:
        folds.cross_validate(three, few, tmp_path, jobs=1)
    assert stopped.value.status == status and len(list(tmp_path.iterdir())) == 1


def test_a_link_in_place_of_the_folder_of_folds_is_not_followed(few, three, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folds").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link"):
        folds.cross_validate(three, few, tmp_path / "folds", jobs=1)
    assert not list((tmp_path / "elsewhere").iterdir())
