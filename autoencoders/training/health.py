"""Warnings about a training whose numbers show a problem, each given once per run.

The thresholds leave alone a run that only fluctuates; where a number comes from is stated beside it.
"""

import logging
import math
from typing import Any

import numpy as np

from autoencoders.evaluation.metrics import encode
from autoencoders.training.trainer import Row, Trainer

log = logging.getLogger(__name__)

_MIN_KL = math.log(2)  # nats; the information a code needs to separate two kinds of images
_MIN_CHANGE = 1e-7  # of the test loss: the last digit of fp32; a converged run still fluctuates by 1e-4 and more
_MAX_DEAD = 0.2  # of the features of a sparse code, which has many more than it uses at once
_MIN_RISE = 0.01  # of the best test loss; on MNIST one epoch may rise by 0.02, but no two in a row
_CHECKED = 1000  # images to find dead code units with: more would cost a fiftieth of an epoch


class Health:
    """The problems reported about one run."""

    def __init__(self) -> None:
        self.reported: set[str] = set()

    def check(self, trainer: Trainer) -> None:
        """Warn about each problem that the last epoch is the first to show."""
        for problem in (posterior_collapse, not_learning, rising_test_loss, dead_features, dead_units):
            if problem.__name__ not in self.reported and (warning := problem(trainer)):
                self.reported.add(problem.__name__)
                log.warning(warning)


def posterior_collapse(trainer: Trainer) -> str:
    """The posterior has become the prior (Bowman et al. 2016)."""
    kl = trainer.history[-1].get("test_kl_loss", math.inf)
    text = f"posterior collapse: the KL is {kl:.3g} nats per image, the code carries no information; lower --kl-weight"
    return text if kl < _MIN_KL else ""


def _test_loss(row: Row) -> float:
    """The test loss with the KL term at full weight: annealing it in makes the loss itself rise."""
    return float(row["test_recon_loss"] + row["test_kl_loss"] if "test_kl_loss" in row else row["test_loss"])


def not_learning(trainer: Trainer) -> str:
    """The last epoch did not change the test loss, which is above zero."""
    losses = [_test_loss(row) for row in trainer.history[-2:]]
    changed = abs(losses[-1] - losses[0]) > _MIN_CHANGE * abs(losses[0])
    if len(losses) < 2 or changed or not losses[-1]:
        return ""
    return f"the test loss did not change in epoch {len(trainer.history)}: the model is not learning; try another --lr"


def rising_test_loss(trainer: Trainer) -> str:
    """The test loss has risen for three epochs, and by more than noise above its best."""
    losses = [_test_loss(row) for row in trainer.history]
    last, best = losses[-4:], min(losses)
    if len(last) < 4 or sorted(set(last)) != last or last[3] - best < _MIN_RISE * abs(best):
        return ""
    course = f"to {last[3]:.4g} from {best:.4g} at its best"
    return f"the test loss has risen for three epochs, {course}: train for fewer epochs, or with a smaller --lr"


def dead_features(trainer: Trainer) -> str:
    """More than a fifth of the features of a sparse code fire for no test image."""
    share = float(np.max(trainer.history[-1].get("dead_features", 0.0)))
    return f"{share:.0%} of an autoencoder's features are dead: no test image fires them" if share > _MAX_DEAD else ""


def dead_units(trainer: Trainer) -> str:
    """Units of a dense code have the same value for all images."""
    if "dead_features" in trainer.history[-1] or len(trainer.test_images) < 2:
        return ""
    code = encode(trainer.model, trainer.test_images[:_CHECKED])
    dead = int((code.amax(dim=0) == code.amin(dim=0)).sum())
    text = f"{dead} of the {code.shape[1]} code units are dead: they have the same value for every test image"
    relu = trainer.recipe.model_args.get("code_activation") == "relu"
    return text + ("; try --code-activation none" if relu else "") if dead else ""


def behind_pca(trainer: Trainer, metrics: dict[str, Any]) -> str:
    """The test error is larger than PCA's, for a model that is not trained to remove noise."""
    error, pca = float(np.mean(metrics["test_mse"])), metrics["pca_test_mse"]
    text = f"the autoencoder ends behind PCA: test MSE {error:.5f}, PCA {pca:.5f}; try more --epochs or another --lr"
    return text if error > pca and not trainer.model.noise_factor else ""
