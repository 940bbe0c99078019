"""The results of a finished run: measures the model and PCA, and writes its numbers and pictures."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ae_models import Autoencoder, to_range
from autoencoders import figures
from autoencoders.data.images import ImageSet
from autoencoders.evaluation import metrics as measures
from autoencoders.evaluation.pca import Pca
from autoencoders.recipes import Recipe
from autoencoders.runtime import cli
from autoencoders.runtime.device import seed_for
from autoencoders.runtime.files import write_atomic
from autoencoders.training.checkpoint import save_record, save_weights, versions
from autoencoders.training.health import warn_if_behind_pca
from autoencoders.training.run import Run
from autoencoders.training.trackers import Trackers, flatten_lists
from autoencoders.training.trainer import Trainer


def measure(trainer: Trainer, images: ImageSet, pca: Pca) -> dict[str, Any]:
    """Every metric of the trained model, by its name in `run.json`; PCA's error is that of the same code size.

    `_unit` errors are of pixels in [0, 1], and what is printed and drawn; the others are in the model's own range.
    """
    model, test_images = trainer.model, trainer.test_images
    pca_mse = pca.test_mse(images.test_images, trainer.recipe.code_size or 0)
    metrics = measures.reconstruction_error(model, test_images)
    metrics |= {"pca_test_mse": pca_mse * measures.mse_scale(model), "pca_test_mse_unit": pca_mse,
                "pca_samples": pca.samples}  # fmt: skip
    if model.noise_factor:
        metrics |= measures.restoration_error(model, test_images, trainer.recipe.seed)
    if model.epoch_metrics:
        metrics |= measures.code_statistics(model, test_images)
    if model.members > 1:
        metrics["mmcs"] = measures.mmcs(model.state_dict()["weight"]).item()
    return metrics | {key: value for key, value in trainer.history[-1].items() if key not in ("epoch", "seconds")}


def format_summary(recipe: Recipe, metrics: dict[str, Any]) -> str:
    """The test errors of the model and PCA, in a sentence; one more on noise, one on the features of a sparse code."""
    error, pca = float(np.mean(metrics["test_mse_unit"])), metrics["pca_test_mse_unit"]
    components = min(recipe.code_size or 0, recipe.pixels, metrics["pca_samples"])  # few images have few
    counted = f"{components} component{'s' * (components != 1)}"
    unit, form = ("per number of a vector", ".4g") if recipe.vector_size else ("pixels in [0, 1]", ".5f")
    text = f"Test MSE {error:{form}} ({unit}); PCA with {counted} {pca:{form}}"
    if "noisy_mse" not in metrics and "test_kl_loss" not in metrics:  # what the model was trained for instead
        text += f": the autoencoder is {'behind' if error > pca else 'ahead of'} PCA"
        if pca > 1e-6 or recipe.vector_size > components:  # a ratio to almost zero would be meaningless
            text += f", with {error / pca:.2f} times its error"
    if "noisy_mse" in metrics:
        noisy, restored = metrics["noisy_mse"], metrics["restored_mse"]
        text += f"\nMSE to the clean test images: {noisy:.5f} of the noisy ones, {restored:.5f} of the restored ones: "
        text += f"{noisy / restored:.1f} times less" if restored < noisy else "the reconstruction increased it"
    if "dead_features" in metrics:
        correlations = ", ".join(f"{value:.4f}" for value in metrics["pearson"])
        dead = ", ".join(f"{value:.1%}" for value in metrics["dead_features"])
        text += f"\nCorrelation {correlations}; dead features (nothing in the test part activates them) {dead}"
        text += f"; MMCS of the dictionaries {metrics['mmcs']:.4f}" if "mmcs" in metrics else ""
        if any(metrics["undefined_pearson"]):
            counts = ", ".join(map(str, metrics["undefined_pearson"]))
            text += f"\nCorrelation leaves out {counts} test images: they, or their reconstructions, are constant"
    return text


def pictures(trainer: Trainer, images: ImageSet, pca: Pca, metrics: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The pictures of a finished run, as (file name, PNG): two of every run, and those that its recipe names."""
    recipe, name, pca_mse = trainer.recipe, f"{images.title}, {trainer.recipe.name}", metrics["pca_test_mse_unit"]
    yield "training_loss.png", loss_curve(trainer, name, pca_mse)
    if recipe.vector_size:  # vectors and their features are no pictures
        for picture in set(recipe.pictures) - {"sae_features"}:
            yield f"{picture}.png", PICTURES[picture](trainer, name)
        return
    result = f"test MSE {np.mean(metrics['test_mse_unit']):.4f}, PCA {pca_mse:.4f}"
    if "pearson" in metrics:
        result += f", mean correlation {np.mean(metrics['pearson']):.4f}"
    yield "reconstructions.png", reconstructions(trainer, images, pca, f"{name}: {result}")
    for picture in recipe.pictures:
        yield f"{picture}.png", PICTURES[picture](trainer, name)
    if recipe.model_args.get("code_size") == 2:
        yield "latent_map.png", latent_map(trainer, images.test_labels, f"{name}: two-dimensional code")


def loss_curve(trainer: Trainer, name: str, pca_mse: float) -> bytes:
    """The loss over the epochs; a mean squared error is of pixels in [0, 1], next to PCA's."""
    model, scale = trainer.model, measures.mse_scale(trainer.model)  # 1 where the loss is of another kind
    is_mse = model.loss_unit == Autoencoder.loss_unit
    train, test = np.array([(row["train_loss"], row["test_loss"]) for row in trainer.history]).T / scale
    epochs = f"{len(test)} epochs" if len(test) > 1 else "1 epoch"
    title = f"{name}: test {'MSE' if is_mse else 'loss'} {test[-1]:.4f} after {epochs}"
    # A model that removes noise has another aim; an error of almost 0 would stretch the axis.
    shows_pca = is_mse and not model.noise_factor and pca_mse > 1e-6
    return figures.loss_curve(np.array(trainer.batch_losses) / scale, train, test, title,
                              "MSE, pixels in [0, 1]" if is_mse else model.loss_unit,
                              pca_mse if shows_pca else None)  # fmt: skip


@torch.no_grad()
def reconstructions(trainer: Trainer, images: ImageSet, pca: Pca, title: str) -> bytes:
    """Test images and their reconstructions by PCA and by the model, with the error of each.

    Of a model that removes noise the noisy copies instead of PCA's, of a sparse code its active features, too.
    """
    model, shown = trainer.model, trainer.test_images[:10]
    x = measures.to_pixels(shown, "unit").cpu()
    by_pca = torch.from_numpy(pca.decode(pca.encode(images.test_images[:10], trainer.recipe.code_size or 0)))
    if model.epoch_metrics:
        rebuilt, codes = (part[0].cpu() for part in model(x.to(shown.device)))
        order = measures.firing_rates(model, trainer.test_images)[0].argsort(descending=True, stable=True)
        rows = {"original": x, "PCA": by_pca, "autoencoder 1": rebuilt}
        captions = {label: _correlations(rows[label], x) for label in ("PCA", "autoencoder 1")}
        return figures.sparse_rows(_arrays(rows), codes[:, order].numpy(), title, captions)
    if model.noise_factor:
        noisy, rebuilt = (part.cpu() for part in measures.denoise(model, shown, trainer.recipe.seed))
        rows = {"clean": x, "noisy": noisy, "restored": rebuilt}
    else:
        rows = {"original": x, "PCA": by_pca, "autoencoder": measures.reconstruct(model, shown).cpu()}
    captions = {label: [f"MSE {error:.4f}" for error in measures.squared_error(row, x).tolist()]
                for label, row in list(rows.items())[1:]}  # fmt: skip
    return figures.image_rows(_arrays(rows), f"{title} (pixels in [0, 1])", captions)


def _arrays(rows: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {label: images.numpy() for label, images in rows.items()}


def _correlations(rebuilt: Tensor, x: Tensor) -> list[str]:
    return ["undefined" if np.isnan(r) else f"r = {r:.3f}" for r in measures.pearson(rebuilt, x).tolist()]


def samples(trainer: Trainer, name: str) -> bytes:
    """Images decoded from codes drawn from the prior."""
    torch.manual_seed(seed_for(trainer.recipe.seed, 0, 2))
    with torch.no_grad():
        images = trainer.model.sample(100).cpu().numpy()
    return figures.image_grid(images, f"{name}: images decoded from N(0, I)")


def training_metrics(trainer: Trainer, name: str) -> bytes:
    """The metrics of every autoencoder of an ensemble after every epoch."""
    titles = {"pearson": "correlation", "test_recon_loss": "MSE", "dead_features": "share of dead features"}
    panels = {f"{title}, test images": np.array([row[key] for row in trainer.history]) for key, title in titles.items()}
    labels = [f"autoencoder {number}" for number in range(1, trainer.model.members + 1)]
    return figures.epoch_curves(panels, f"{name}: metrics of each autoencoder", labels)


def sae_features(trainer: Trainer, name: str) -> bytes:
    """The 50 features of the first autoencoder that fire most often; half of all fire so rarely that they are noise."""
    rates = measures.firing_rates(trainer.model, trainer.test_images)[0].cpu().numpy()
    order = np.argsort(-rates, kind="stable")[:50]
    weight = trainer.model.state_dict()["weight"][0].cpu().numpy()
    unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    title = f"{name}: the {len(order)} of {len(weight):,} features of autoencoder 1 that fire most often"
    return figures.feature_grid(unit[order], rates[order], title)


def feature_activity(trainer: Trainer, name: str) -> bytes:
    """The distribution of the firing rates of every autoencoder's features."""
    rates = measures.firing_rates(trainer.model, trainer.test_images).cpu().numpy()
    title = f"{name}: {(rates == 0).mean():.1%} of {len(rates)} x {rates.shape[1]} features are dead"
    return figures.firing_rate_histogram(rates, len(trainer.test_images), title)


PICTURES = {picture.__name__: picture for picture in (samples, training_metrics, sae_features, feature_activity)}


@torch.no_grad()
def latent_map(trainer: Trainer, labels: np.ndarray, title: str) -> bytes:
    """Images decoded over the plane of a two-dimensional code, next to the codes of the test images."""
    model = trainer.model
    codes = measures.encode(model, trainer.test_images)
    low, high = codes.quantile(0.02, dim=0), codes.quantile(0.98, dim=0)
    high = torch.maximum(high, low + 0.01)  # the range of a dead unit is empty
    steps = torch.linspace(0, 1, 20, device=codes.device)
    grid = torch.cartesian_prod(steps.flip(0), steps).flip(1)  # (x, y), the top row first
    decoded = to_range(model.decode(low + grid * (high - low)), model.output_range, "unit").cpu().numpy()
    return figures.latent_map(decoded, torch.stack((low, high)).cpu().numpy(), codes.cpu().numpy(), labels, title)


def write_epoch_files(
    run: Run, pca: Pca, trackers: Trackers, pictures_every: int | None, weights_every: int | None
) -> None:
    """Write the reconstructions and the weights after every N-th epoch; None for never."""
    trainer, epoch = run.trainer, len(run.trainer.history)
    if pictures_every and epoch % pictures_every == 0:
        path = run.folder / f"reconstructions_epoch_{epoch:03d}.png"
        title = f"{run.images.title}, {trainer.recipe.name}: epoch {epoch}"
        write_atomic(path, reconstructions(trainer, run.images, pca, title))
        trackers.log_picture(path, "epoch_reconstructions")
    if weights_every and epoch % weights_every == 0:
        save_weights(run.folder / f"{Path(trainer.recipe.weights_file).stem}_epoch_{epoch:03d}.pt", trainer.model)


def write_results(run: Run, pca: Pca, trackers: Trackers) -> dict[str, Any]:
    """Measure the trained model and PCA; write weights, history, pictures and, last, run.json; the metrics."""
    trainer, images, folder, recipe = run.trainer, run.images, run.folder, run.trainer.recipe
    metrics = measure(trainer, images, pca)
    history = cli.format_csv([flatten_lists(row) for row in trainer.history])
    weights_digest = save_weights(folder / recipe.weights_file, trainer.model)
    write_atomic(folder / "history.csv", history)
    for name, picture in pictures(trainer, images, pca, metrics):
        write_atomic(folder / name, picture)
        trackers.log_picture(folder / name)
    save_record(folder, {
        "recipe": recipe.as_dict(), "weights": recipe.weights_file, "weights_sha256": weights_digest,
        "history_sha256": hashlib.sha256(history).hexdigest(), "checkpoint_sha256": run.digest,
        "dataset": {"name": images.name, "title": images.title, "fingerprint": images.fingerprint, **images.source,
                    "leave_out": images.left_out, "only": images.only},
        "device": str(trainer.device), "precision": str(trainer.precision), "versions": versions(),
        "seconds": round(sum(row["seconds"] for row in trainer.history), 3), "metrics": metrics,
    })  # fmt: skip
    trackers.log_summary(metrics)
    warn_if_behind_pca(trainer, metrics)
    return metrics


def print_epoch(row: dict[str, Any], epochs: int, always: bool) -> None:
    """Print one epoch in one line, unless --quiet; of an ensemble the mean. Not `always`: 20 epochs at most."""
    titles = {"train_loss": "average loss", "test_loss": "test loss"}
    hidden = ("epoch", "seconds", "images_per_second")
    means = {name: fmean(v if isinstance(v, list) else [v]) for name, v in row.items() if name not in hidden}
    numbers = ", ".join(f"{titles.get(name, name)} {value:{'.4f' if abs(value) >= 1e-3 or not value else '.3g'}}"
                        for name, value in means.items())  # fmt: skip
    if cli.is_verbose() and (always or (epochs - row["epoch"]) % -(-epochs // 20) == 0):
        print(f"Epoch {row['epoch']}/{epochs}: {numbers}, {row['seconds']:.2f} s", flush=True)


def print_summary(run: Run, metrics: dict[str, Any], started: float) -> None:
    """Print the results of a run that began at `started` (monotonic), where its files are, and which to open."""
    recipe = run.trainer.recipe
    print(format_summary(recipe, metrics))
    print(f"Wrote {recipe.weights_file}, run.json, history.csv and the pictures into {run.folder} ({run.images.title})")
    print(f"Took {time.monotonic() - started:.0f} s; now open {run.folder / 'reconstructions.png'}")
