"""Is this training well? What can be seen in its numbers, one line for each ailment, each said once.

The thresholds are set so that a run which only wavers says nothing; where the numbers come from stands beside them.
"""

import logging
import math
from typing import Any

import numpy as np

from autoencoders.evaluation.metrics import encode
from autoencoders.training.trainer import Row, Trainer

log = logging.getLogger(__name__)

_LEAST_KL = math.log(2)  # nats; the KL is at least what a code tells of its image: below, not even one of two kinds
_UNMOVED = 1e-7  # of the test loss: equal to the last digit of fp32; a converged run still wavers by 1e-4 and more
_MOST_DEAD = 0.2  # of the features of a sparse code, which has many more of them than it uses at once
_RISE = 0.01  # of the best test loss; on MNIST one epoch may rise by 0.02, but no two in a row
_LOOKED_AT = 1000  # images that pixels, and codes, are looked at on, or the look would cost a fiftieth of an epoch


class Health:
    """What has been said about one run."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    def check(self, trainer: Trainer) -> None:
        """Warn about the problems that the last epoch shows and no earlier epoch did."""
        history = trainer.history
        found = {"kl": collapsed(history[-1]), "unmoved": unmoved(history), "rising": rising(history)}
        if "dead" not in self.said:
            found["dead"] = dead(trainer)
        new = {name: line for name, line in found.items() if line and name not in self.said}
        self.said |= new.keys()
        for line in new.values():
            log.warning(line)


def collapsed(row: Row) -> str:
    """The posterior is all but the prior (posterior collapse: Bowman et al. 2016)."""
    kl = row.get("test_kl_loss", math.inf)
    if not kl < _LEAST_KL:
        return ""
    return f"posterior collapse: the KL is {kl:.3g} nats an image, so the code says all but nothing; lower --kl-weight"


def _test_loss(row: Row) -> float:
    """The test loss with a KL term at its full weight: one that is annealed in makes the loss itself rise."""
    return float(row["test_recon_loss"] + row["test_kl_loss"] if "test_kl_loss" in row else row["test_loss"])


def unmoved(history: list[Row]) -> str:
    """The last epoch has left the test loss where it was."""
    before, now = [_test_loss(row) for row in history[-2:]] if len(history) > 1 else (0, 1)
    if not abs(now - before) <= _UNMOVED * abs(before):
        return ""
    return f"the test loss has not moved in epoch {history[-1]['epoch']}: nothing is learnt; try another --lr"


def rising(history: list[Row]) -> str:
    """The test loss has risen for three epochs, and stands above its best by more than noise."""
    losses = [_test_loss(row) for row in history]
    last, best = losses[-4:], min(losses)
    if len(last) < 4 or sorted(set(last)) != last or last[3] - best < _RISE * abs(best):
        return ""
    return (
        f"the test loss has risen for three epochs, to {last[3]:.4g} from {best:.4g} at its best: train less, or slower"
    )


def dead(trainer: Trainer) -> str:
    """Code units that answer every image alike; of a sparse code, more than a fifth of features that never fire."""
    row = trainer.history[-1]
    if "dead_features" in row:
        share = float(np.max(row["dead_features"]))
        return (
            f"{share:.0%} of an autoencoder's features are dead: no test image fires them" if share > _MOST_DEAD else ""
        )
    code = encode(trainer.model, trainer.test_images[:_LOOKED_AT])
    alike = int((code.amax(dim=0) == code.amin(dim=0)).sum())
    if not alike or len(code) < 2:
        return ""
    return f"{alike} of the {code.shape[1]} code units are dead: they answer every test image alike"


def behind_pca(trainer: Trainer, metrics: dict[str, Any]) -> str:
    """The autoencoder ends with a larger error than PCA; one trained on noisy images answers another question."""
    error, pca = float(np.mean(metrics["test_mse"])), metrics["pca_test_mse"]
    if error <= pca or trainer.model.noise_factor:
        return ""
    return f"the autoencoder ends behind PCA: test MSE {error:.5f} against {pca:.5f}; try more --epochs or another --lr"
