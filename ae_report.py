"""What a finished run shows: its numbers beside PCA's, and the pictures that its model calls for.

Pictures follow from what a model can do (noise in, images drawn from nothing, a code one can plot), never from
the recipe's name.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import ae_figures
from ae_data import ImageSet
from ae_linear import Pca
from ae_loop import Trainer
from ae_metrics import denoise, encode, range_factor, reconstruct, reconstruction_error, restoration_error
from ae_models import VAE, to_range
from ae_recipes import Recipe
from ae_runtime import seed_for

_SHOWN = 10  # test images in a picture


def measure(trainer: Trainer, images: ImageSet, pca: Pca) -> dict[str, Any]:
    """Every metric of the trained model, by its name in `run.json`; PCA's error is that of the same code size."""
    model = trainer.model
    metrics = reconstruction_error(model, trainer.test_images)
    code_size = trainer.recipe.code_size or 0
    metrics["pca_test_mse"] = pca.test_mse(images.test_images, code_size) * range_factor(model)
    if model.noise_factor:
        metrics |= restoration_error(model, trainer.test_images, trainer.recipe.seed)
    last = trainer.history[-1]
    return metrics | {name: value for name, value in last.items() if name not in ("epoch", "seconds")}


def verdict(recipe: Recipe, metrics: dict[str, Any]) -> str:
    """The test error beside PCA's, in a sentence."""
    error = np.mean(metrics["test_mse"])
    ratio = error / max(metrics["pca_test_mse"], 1e-12)
    text = (
        f"Test MSE {error:.5f}; PCA with {recipe.code_size} components "
        f"{metrics['pca_test_mse']:.5f}: the autoencoder is {'behind' if ratio > 1 else 'ahead of'} PCA, "
        f"with {ratio:.2f} times its error"
    )
    if "noisy_mse" in metrics:
        times = metrics["noisy_mse"] / metrics["restored_mse"]
        text += (
            f"\nNoisy test images: MSE {metrics['noisy_mse']:.5f} to the clean ones, restored "
            f"{metrics['restored_mse']:.5f}: {times:.1f} times closer"
        )
    return text


def reconstructions(trainer: Trainer, images: ImageSet, when: str) -> bytes:
    """Test images above their reconstructions with the error of each; the noisy ones between where there is noise."""
    model, shown = trainer.model, trainer.test_images[:_SHOWN]
    clean = torch.from_numpy(images.test_images[:_SHOWN] / 255)
    if model.noise_factor:
        noisy, rebuilt = denoise(model, shown, trainer.recipe.seed)
        rows = {"clean": clean, "noisy": noisy.cpu(), "restored": rebuilt.cpu()}
    else:
        rebuilt = reconstruct(model, shown)
        rows = {"original": clean, "reconstruction": rebuilt.cpu()}
    errors = (rebuilt.cpu() - clean).square().mean(dim=1)
    notes = [f"MSE {error:.4f}" for error in errors.tolist()]
    title = f"{images.title}, {trainer.recipe.name}: {when} (MSE in unit range)"
    return ae_figures.image_rows({label: row.numpy() for label, row in rows.items()}, title, notes)


def pictures(trainer: Trainer, images: ImageSet, metrics: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The pictures of a finished run, as (file name, PNG)."""
    recipe, model = trainer.recipe, trainer.model
    name = f"{images.title}, {recipe.name}"
    title = f"{name}: test loss {metrics['test_loss']:.4f} after {recipe.epochs} epochs"
    yield "training_loss.png", ae_figures.loss_curve(trainer.batch_losses, trainer.history, title, "loss")
    factor = range_factor(model)
    when = f"test MSE {metrics['test_mse'] / factor:.4f}, PCA {metrics['pca_test_mse'] / factor:.4f}"
    yield "reconstructions.png", reconstructions(trainer, images, when)
    if isinstance(model, VAE):
        torch.manual_seed(seed_for(recipe.seed, 0, 2))
        with torch.no_grad():
            samples = model.sample(100).cpu().numpy()
        yield "samples.png", ae_figures.image_grid(samples, f"{name}: images decoded from N(0, I)")
    if recipe.code_size == 2:
        yield "latent_map.png", latent_map(trainer, images, f"{name}: a two-dimensional code")


def latent_map(trainer: Trainer, images: ImageSet, title: str) -> bytes:
    """The images decoded over the plane of a 2-D code, beside the test codes coloured by label."""
    model = trainer.model
    codes = encode(model, trainer.test_images)
    low, high = codes.quantile(0.02, dim=0), codes.quantile(0.98, dim=0)
    steps = torch.linspace(0, 1, 20, device=codes.device)
    across, up = torch.meshgrid(steps, steps.flip(0), indexing="xy")
    places = low + torch.stack((across, up), dim=-1).reshape(-1, 2) * (high - low)
    with torch.no_grad():
        decoded = to_range(model.decode(places), model.output_range, "unit")
    extent = tuple(torch.stack((low, high), dim=1).flatten().tolist())
    return ae_figures.latent_map(decoded.cpu().numpy(), extent, codes.cpu().numpy(), images.test_labels, title)
