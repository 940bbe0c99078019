"""The loss of an untrained ensemble, compared with that of the mean image: the analysis of the sparse write-up."""

import numpy as np
import torch

from ae_models import Autoencoder
from autoencoders.data.batches import batch_order
from autoencoders.data.images import Images
from autoencoders.evaluation.metrics import Numbers, reconstruct, squared_error, to_pixels
from autoencoders.recipes import Recipe

ANALYSED = 10  # batches
_READ = 2**14  # images read at a time


def analyse_untrained(recipe: Recipe, images: Images, device: torch.device) -> Numbers:
    """`loss_analysis` of the ensemble that training would start from, on the first batches of images (n, 784) uint8."""
    torch.manual_seed(recipe.seed)
    model = recipe.build().to(device)
    order = batch_order(len(images), recipe.batch_size, recipe.seed, 0)
    return loss_analysis(model, images, torch.cat(order[:ANALYSED]).numpy())


def loss_analysis(model: Autoencoder, images: Images, chosen: np.ndarray) -> Numbers:
    """An ensemble's squared error on the chosen images, and that of the mean image of all images (n, 784) uint8.

    `mean_image` is the mean image's error on the chosen images, their variance; `mean_image_all` that on all images.
    `scale` is the number a that minimises |x - a y|^2, one for all reconstructions y of an autoencoder, `scaled_mse`
    the error that remains. Explained is 1 - MSE / variance.
    """
    starts = range(0, len(images), _READ)
    mean = sum(images[start : start + _READ].sum(axis=0, dtype=np.int64) for start in starts) / (255 * len(images))
    variances = [np.square(images[start : start + _READ] / 255 - mean).mean(axis=1) for start in starts]
    deviation = torch.from_numpy(np.concatenate(variances))
    variance = deviation[chosen].mean()
    picked = torch.from_numpy(images[np.sort(chosen)]).to(next(model.parameters()).device)
    x, y = to_pixels(picked, "unit").cpu().double(), reconstruct(model, picked).cpu().double()
    scale = (x * y).sum(dim=(1, 2)) / y.square().sum(dim=(1, 2)).clamp(min=1e-12)
    mse, scaled = (squared_error(x, a * y).mean(dim=-1) for a in (1, scale[:, None, None]))
    return {
        "mean_image_all": deviation.mean().item(), "mean_image": variance.item(), "scale": scale.tolist(),
        "mse": mse.tolist(), "explained": (1 - mse / variance).tolist(),
        "scaled_mse": scaled.tolist(), "scaled_explained": (1 - scaled / variance).tolist(),
    }  # fmt: skip
