"""A finished run's numbers and pictures: measures the model beside PCA, and writes everything but the checkpoint.

Which pictures a run has beyond the two of every run is a column of the recipe table (`Recipe.pictures`).
"""

import csv
import hashlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ae_models import to_range
from autoencoders import figures
from autoencoders.data.batches import batch_order, to_device
from autoencoders.data.images import ImageSet
from autoencoders.evaluation.metrics import (
    code_statistics,
    denoise,
    encode,
    firing_rates,
    loss_analysis,
    mse_scale,
    pearson,
    range_label,
    reconstruct,
    reconstruction_error,
    restoration_error,
    to_pixels,
)
from autoencoders.evaluation.pca import Pca
from autoencoders.recipes import Recipe
from autoencoders.runtime.device import seed_for
from autoencoders.runtime.files import write_atomic
from autoencoders.sparse import mmcs
from autoencoders.training.checkpoint import save_record, save_weights, versions
from autoencoders.training.health import behind_pca
from autoencoders.training.run import Run
from autoencoders.training.trackers import Trackers, flatten_lists
from autoencoders.training.trainer import Trainer

log = logging.getLogger(__name__)

ANALYSED = 10  # batches that the loss analysis looks at
_SHOWN = 10  # test images in a picture
_FEATURES = 100  # features in a picture, spread over how often they fire


def measure(trainer: Trainer, images: ImageSet, pca: Pca) -> dict[str, Any]:
    """Every metric of the trained model, by its name in `run.json`; PCA's error is that of the same code size."""
    model = trainer.model
    metrics = reconstruction_error(model, trainer.test_images)
    code_size = trainer.recipe.code_size or 0
    metrics["pca_test_mse"] = pca.test_mse(images.test_images, code_size) * mse_scale(model)
    metrics["pca_samples"] = pca.samples
    if model.noise_factor:
        metrics |= restoration_error(model, trainer.test_images, trainer.recipe.seed)
    if model.epoch_metrics:
        metrics |= code_statistics(model, trainer.test_images)
    if model.members > 1:
        metrics["mmcs"] = mmcs(model.state_dict()["weight"]).item()
    last = trainer.history[-1]
    return metrics | {name: value for name, value in last.items() if name not in ("epoch", "seconds")}


def analyse_untrained(recipe: Recipe, images: ImageSet, device: torch.device) -> dict[str, Any]:
    """`loss_analysis` of the ensemble that training would start from, on its first batches."""
    torch.manual_seed(recipe.seed)
    model = recipe.build().to(device)
    train_images = to_device(images.train_images, device)
    order = batch_order(len(train_images), recipe.batch_size, recipe.seed, 0)
    return loss_analysis(model, torch.as_tensor(train_images), torch.cat(order[:ANALYSED]))


def format_summary(recipe: Recipe, metrics: dict[str, Any]) -> str:
    """The test error beside PCA's, in a sentence."""
    error, pca = float(np.mean(metrics["test_mse"])), metrics["pca_test_mse"]
    text = f"Test MSE {error:.5f}; PCA with {recipe.code_size} components {pca:.5f}: the autoencoder is "
    text += f"{'behind' if error > pca else 'ahead of'} PCA"
    # Where PCA is all but exact, a ratio says nothing.
    text += f", with {error / pca:.2f} times its error" if pca > 1e-6 else ", which is exact at this size"
    if "noisy_mse" in metrics:
        times = metrics["noisy_mse"] / metrics["restored_mse"]
        text += (
            f"\nNoisy test images: MSE {metrics['noisy_mse']:.5f} to the clean ones, restored "
            f"{metrics['restored_mse']:.5f}: {times:.1f} times closer"
        )
    if "dead_features" in metrics:
        text += "\n" + _format_sparse_summary(metrics)
    return text


def _format_sparse_summary(metrics: dict[str, Any]) -> str:
    """Correlation and dead features of each autoencoder, and how alike the dictionaries are."""
    correlations = ", ".join(f"{value:.4f}" for value in metrics["pearson"])
    dead = ", ".join(f"{value:.1%}" for value in metrics["dead_features"])
    text = f"Correlation {correlations}; features that no test image makes fire {dead}"
    if "mmcs" in metrics:
        text += f"; MMCS of the dictionaries {metrics['mmcs']:.4f}"
    if any(metrics["undefined_pearson"]):
        counts = ", ".join(map(str, metrics["undefined_pearson"]))
        text += (
            f"\nCorrelation is undefined, and left out, for {counts} test images: they, or their answers, are constant"
        )
    return text


def reconstructions(trainer: Trainer, images: ImageSet, when: str) -> bytes:
    """Test images above their reconstructions with the error of each; the noisy ones between where there is noise."""
    model, shown = trainer.model, trainer.test_images[:_SHOWN]
    if model.members > 1:
        return _sparse_reconstructions(trainer, f"{images.title}, {trainer.recipe.name}: {when}")
    clean = torch.from_numpy(images.test_images[:_SHOWN] / 255)
    if model.noise_factor:
        noisy, rebuilt = denoise(model, shown, trainer.recipe.seed)
        rows = {"clean": clean, "noisy": noisy.cpu(), "restored": rebuilt.cpu()}
    else:
        rebuilt = reconstruct(model, shown)
        rows = {"original": clean, "reconstruction": rebuilt.cpu()}
    errors = (rebuilt.cpu() - clean).square().mean(dim=1) * mse_scale(model)
    notes = [f"MSE {error:.4f}" for error in errors.tolist()]
    title = f"{images.title}, {trainer.recipe.name}: {when} ({range_label(model)})"
    return figures.image_rows({label: row.numpy() for label, row in rows.items()}, title, notes)


@torch.no_grad()
def _sparse_reconstructions(trainer: Trainer, title: str) -> bytes:
    """Test images, the first autoencoder's reconstructions with their correlations, and the features that fired."""
    shown = trainer.test_images[:_SHOWN]
    x = to_pixels(shown, "unit")
    rebuilt, codes = (part[0] for part in trainer.model(x))
    order = firing_rates(trainer.model, trainer.test_images)[0].argsort(descending=True, stable=True)
    notes = ["undefined" if np.isnan(r) else f"r = {r:.3f}" for r in pearson(rebuilt, x).tolist()]
    rows = {"original": x.cpu().numpy(), "autoencoder 1": rebuilt.cpu().numpy()}
    return figures.sparse_rows(rows, codes[:, order].cpu().numpy(), title, notes)


def pictures(trainer: Trainer, images: ImageSet, metrics: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The pictures of a finished run, as (file name, PNG)."""
    recipe, model = trainer.recipe, trainer.model
    name = f"{images.title}, {recipe.name}"
    title = f"{name}: test loss {metrics['test_loss']:.4f} after {recipe.epochs} epochs"
    yield "training_loss.png", figures.loss_curve(trainer.batch_losses, trainer.history, title, model.loss_unit)
    when = f"test MSE {np.mean(metrics['test_mse']):.4f}, PCA {metrics['pca_test_mse']:.4f}"
    if model.members > 1:
        when += f", mean correlation {np.nanmean(metrics['pearson']):.4f}"
        yield from _sparse_pictures(trainer, name)
    yield "reconstructions.png", reconstructions(trainer, images, when)
    if model.generative:
        torch.manual_seed(seed_for(recipe.seed, 0, 2))
        with torch.no_grad():
            samples = model.sample(100).cpu().numpy()
        yield "samples.png", figures.image_grid(samples, f"{name}: images decoded from N(0, I)")
    if recipe.model_args.get("code_size") == 2:
        yield "latent_map.png", latent_map(trainer, images, f"{name}: a two-dimensional code")


def _sparse_pictures(trainer: Trainer, name: str) -> Iterator[tuple[str, bytes]]:
    """How an ensemble trained, what the first autoencoder's features look like, and how often all of them fire."""
    panels = {"correlation, test images": ("pearson", 1), "loss (MSE), test images": ("test_recon_loss", 1),
              "dead features, % of all": ("dead_features", 100)}  # fmt: skip
    courses = {k: np.array([row[key] for row in trainer.history]) * by for k, (key, by) in panels.items()}
    yield "training_metrics.png", figures.curves(courses, f"{name}: every autoencoder, every epoch")
    rates = firing_rates(trainer.model, trainer.test_images).cpu().numpy()
    order = np.argsort(-rates[0], kind="stable")
    order = order[np.linspace(0, len(order) - 1, min(_FEATURES, len(order))).round().astype(int)]
    weight = trainer.model.state_dict()["weight"][0].cpu().numpy()
    unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    title = f"{name}: {len(order)} of {len(weight)} features of autoencoder 1"
    yield "sae_features.png", figures.feature_grid(unit[order], rates[0][order], title)
    title = f"{name}: {(rates == 0).mean():.1%} of features dead on {len(trainer.test_images):,} test images"
    yield "feature_activity.png", figures.activity(rates, len(trainer.test_images), title)


def latent_map(trainer: Trainer, images: ImageSet, title: str) -> bytes:
    """The images decoded over the plane of a 2-D code, beside the test codes coloured by label."""
    model = trainer.model
    codes = encode(model, trainer.test_images)
    low, high = codes.quantile(0.02, dim=0), codes.quantile(0.98, dim=0)
    high = torch.maximum(high, low + 0.01)  # a unit that never fires has no range of its own
    steps = torch.linspace(0, 1, 20, device=codes.device)
    across, up = torch.meshgrid(steps, steps.flip(0), indexing="xy")
    places = low + torch.stack((across, up), dim=-1).reshape(-1, 2) * (high - low)
    with torch.no_grad():
        decoded = to_range(model.decode(places), model.output_range, "unit")
    extent = tuple(torch.stack((low, high), dim=1).flatten().tolist())
    return figures.latent_map(decoded.cpu().numpy(), extent, codes.cpu().numpy(), images.test_labels, title)


def write_epoch_files(run: Run, trackers: Trackers, pictures_every: int | None, weights_every: int | None) -> None:
    """Write the reconstructions and the weights of this epoch, every N epochs as asked for; None for never."""
    trainer, epoch = run.trainer, len(run.trainer.history)
    if pictures_every and epoch % pictures_every == 0:
        path = run.folder / f"reconstructions_epoch_{epoch:03d}.png"
        write_atomic(path, reconstructions(trainer, run.images, f"epoch {epoch}"))
        trackers.log_picture(path, "epoch_reconstructions")
    if weights_every and epoch % weights_every == 0:
        save_weights(run.folder / f"{Path(trainer.recipe.weights_file).stem}_epoch_{epoch:03d}.pt", trainer.model)


def write_results(run: Run, pca: Pca, trackers: Trackers) -> None:
    """Measure the trained model beside PCA, then write weights, history, pictures and, last, run.json."""
    trainer, images, folder, recipe = run.trainer, run.images, run.folder, run.trainer.recipe
    metrics = measure(trainer, images, pca)
    weights_digest = save_weights(folder / recipe.weights_file, trainer.model)
    history = format_history(trainer.history)
    write_atomic(folder / "history.csv", history)
    for name, picture in pictures(trainer, images, metrics):
        write_atomic(folder / name, picture)
        trackers.log_picture(folder / name)
    dataset = {"name": images.name, "title": images.title, "fingerprint": images.fingerprint, **images.source,
               "leave_out": images.left_out}  # fmt: skip
    save_record(folder, {
        "recipe": recipe.as_dict(), "weights": recipe.weights_file, "weights_sha256": weights_digest,
        "history_sha256": hashlib.sha256(history).hexdigest(), "checkpoint_sha256": run.digest, "dataset": dataset,
        "device": str(trainer.device), "precision": str(trainer.precision), "versions": versions(),
        "seconds": round(sum(row["seconds"] for row in trainer.history), 3), "metrics": metrics,
    })  # fmt: skip
    trackers.log_summary(metrics)
    print(format_summary(recipe, metrics))
    print(f"Wrote {recipe.weights_file}, run.json, history.csv and the pictures into {folder} ({images.title})")
    if warning := behind_pca(trainer, metrics):
        log.warning(warning)


def format_history(history: list[dict[str, Any]]) -> bytes:
    """The history as CSV: a header, then one row per epoch; an ensemble's values in a column each."""
    rows, text = [flatten_lists(row) for row in history], io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
