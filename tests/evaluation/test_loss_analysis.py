import numpy as np
import pytest
import torch

from autoencoders.evaluation.loss_analysis import analyse_untrained, loss_analysis
from autoencoders.recipes import RECIPES
from autoencoders.sparse import SparseEnsemble


def test_the_best_scale_leaves_no_larger_error_and_the_mean_image_explains_nothing(digits):
    torch.manual_seed(0)
    found = loss_analysis(SparseEnsemble(num_saes=2, features=40, k=6), digits.test_images, np.arange(297))
    x = digits.test_images / 255
    assert found["mean_image"] == found["mean_image_all"] == pytest.approx(x.var(axis=0).mean(), rel=1e-6)
    for mse, scaled, explained in zip(found["mse"], found["scaled_mse"], found["explained"]):
        assert scaled <= mse and explained == pytest.approx(1 - mse / found["mean_image"])


def test_the_analysis_is_of_the_ensemble_that_training_starts_from(few):
    recipe, cpu = RECIPES["sparse"].override({"num_saes": 2, "features": 64, "k": 8}), torch.device("cpu")
    numbers = analyse_untrained(recipe, few.train_images, cpu)
    assert len(numbers["mse"]) == 2 and numbers == analyse_untrained(recipe, few.train_images, cpu)
    assert all(np.array(numbers["scaled_mse"]) <= np.array(numbers["mse"]) * (1 + 1e-12))  # up to rounding
