"""Warnings about a training whose numbers show a problem; the thresholds leave alone a run that only fluctuates."""

import logging
import math
from typing import Any

import numpy as np

from autoencoders.evaluation.metrics import encode
from autoencoders.recipes import BEST
from autoencoders.training.trainer import Trainer

log = logging.getLogger(__name__)


def check(trainer: Trainer, reported: set[str]) -> None:
    """Warn about each problem that the last epoch is the first to show; `reported` holds the names of the others."""
    for problem in (posterior_collapse, not_learning, rising_test_loss, dead_features, dead_units):
        if problem.__name__ not in reported and (warning := problem(trainer)):
            reported.add(problem.__name__)
            log.warning(warning)


def posterior_collapse(trainer: Trainer) -> str:
    """The posterior is almost the prior (Bowman et al. 2016): the code cannot even separate two kinds of images."""
    kl = trainer.history[-1].get("test_kl_loss", math.inf)
    text = f"posterior collapse: the KL is {kl:.3g} nats per image, the code carries no information; lower --kl-weight"
    return text if kl < math.log(2) else ""


def _test_losses(trainer: Trainer) -> list[float]:
    """The test loss of every epoch, with the KL term at full weight: annealing it in makes the loss itself rise."""
    annealed = trainer.recipe.model_args.get("kl_anneal") == "linear"
    return [row["test_recon_loss"] + row["test_kl_loss"] if annealed else row["test_loss"] for row in trainer.history]


def not_learning(trainer: Trainer) -> str:
    """The last epoch did not change the test loss, which is above zero; late in a schedule that is no problem."""
    losses, recipe = _test_losses(trainer), trainer.recipe
    if recipe.lr_schedule != "constant" and 2 * len(losses) > recipe.epochs:
        return ""
    # 1e-7 is the last digit of fp32; a converged run still fluctuates by 1e-4 and more.
    stuck = len(losses) > 1 and losses[-1] and abs(losses[-1] - losses[-2]) <= 1e-7 * abs(losses[-2])
    text = f"the test loss did not change in epoch {len(losses)}: the model is not learning; try another --lr"
    return text if stuck else ""


def rising_test_loss(trainer: Trainer) -> str:
    """The test loss has risen for three epochs, and by more than noise above its best."""
    losses = _test_losses(trainer)
    last, best = losses[-4:], min(losses)
    # On MNIST one epoch may rise by 0.02 of the best, but no two in a row.
    rising = len(last) == 4 and sorted(set(last)) == last and last[-1] - best >= 0.01 * abs(best)
    text = f"the test loss has risen for three epochs, to {last[-1]:.4g} from {best:.4g} at its best"
    return f"{text}; try a smaller --lr" if rising else ""


def dead_features(trainer: Trainer) -> str:
    """More than a fifth of the features of a sparse code fire for no test image."""
    share = float(np.max(trainer.history[-1].get("dead_features", 0.0)))
    return f"{share:.0%} of an autoencoder's features are dead: no test image activates them" if share > 0.2 else ""


def dead_units(trainer: Trainer) -> str:
    """Units of a code that keeps all its numbers have the same value for all images."""
    if trainer.model.selects or len(trainer.test_images) < 2:
        return ""
    code = encode(trainer.model, trainer.test_images[:1000])  # more would cost a fiftieth of an epoch
    dead = int((code.amax(dim=0) == code.amin(dim=0)).sum())
    text = f"{dead} of the {code.shape[1]} code units are dead: they have the same value for every test image"
    relu = trainer.recipe.model_args.get("code_activation") == "relu"
    return text + ("; try --code-activation none" if relu else "") if dead else ""


def warn_if_behind_pca(trainer: Trainer, metrics: dict[str, Any]) -> None:
    """Warn about a test error larger than PCA's, unless the model was trained for noisy images or a likelihood."""
    error, pca = float(np.mean(metrics["test_mse_unit"])), metrics["pca_test_mse_unit"]
    recipe = trainer.recipe
    wide = (recipe.code_size or 0) >= recipe.pixels and trainer.model.selects  # PCA would be exact
    if error > pca and not (trainer.model.noise_factor or trainer.model.generative or wide):
        advice, form = [f"--recipe {BEST}"] * (recipe.name != BEST), ".5f"
        if recipe.vector_size:
            advice, form = ["--center", "--standardize", "more --epochs"], ".4g"
        elif pca < 1e-4:
            advice = ["a smaller --code-size: with this one PCA is almost exact"]
        elif recipe.model_args.get("code_activation") == "relu":
            advice.insert(0, "--code-activation none")
        log.warning(f"the autoencoder ends behind PCA: test MSE {error:{form}}, PCA {pca:{form}}; try "
                    f"{' or '.join(advice) or 'more --epochs'}")  # fmt: skip
