"""The plain training loop for any recipe, which `bench.py` compares the suite with.

torchvision's data set, ToTensor and Normalize image by image through a DataLoader, unfused Adam, `.item()` after every
step, the test set at the end, two pictures. As a script it is the complete process that a tutorial's reader runs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch import Tensor
from torchvision import datasets, transforms

from ae_models import Autoencoder
from autoencoders.recipes import Recipe
from autoencoders.vae import VAE
from benchmarks.common import sized
from benchmarks.plain_sparse import PlainEnsemble

Loader = torch.utils.data.DataLoader[tuple[Tensor, Tensor]]


def build(recipe: Recipe) -> Autoencoder:
    """The recipe's untrained model, from its seed."""
    torch.manual_seed(recipe.seed)
    return recipe.build()


def plain_loader(root: Path, train: bool, signed: bool, batch_size: int, count: int | None = None) -> Loader:
    """The first `count` images of MNIST, shuffled for training."""
    steps = [transforms.ToTensor(), *([transforms.Normalize((0.5,), (0.5,))] if signed else [])]
    images = datasets.MNIST(str(root), train=train, transform=transforms.Compose(steps))
    part = torch.utils.data.Subset(images, range(count or len(images)))
    return torch.utils.data.DataLoader(part, batch_size=batch_size, shuffle=train)


def plain_loss(model: Autoencoder, recipe: Recipe, x: Tensor) -> Tensor:
    """The recipe's loss as its write-up computes it: from the decoder's output, not from logits."""
    if isinstance(model, VAE):
        hidden = model.encoder(x)
        mean, logvar = model.mean(hidden), model.logvar(hidden)
        output = model.decode(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar))
        kl = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp()) / len(x)
        return F.binary_cross_entropy(output, x, reduction="sum") / len(x) + model.beta * kl
    noise = recipe.model_args["noise_factor"]
    output, _ = model(torch.clamp(x + noise * torch.randn_like(x), 0.0, 1.0) if noise else x)
    if recipe.model_args["loss"] == "bce":
        return F.binary_cross_entropy(output, (x + 1) / 2, reduction="sum") / len(x)
    return F.mse_loss(output, x)


def plain_epoch(model: Autoencoder, recipe: Recipe, loader: Loader) -> Callable[[], list[float]]:
    """A function that trains one epoch by the plain loop and returns the batch losses."""
    if model.selects:
        ensemble = PlainEnsemble(model.members)
        return lambda: [sum(ensemble.step(x.view(len(x), -1))) for x, _ in loader]
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(model.parameters(), lr=recipe.lr)

    def epoch() -> list[float]:
        losses = []
        for x, _ in loader:
            loss = plain_loss(model, recipe, x.view(len(x), -1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return epoch


def main() -> None:
    """Train a recipe and write two pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--output-dir", type=Path, default=Path("."))
    parser.add_argument("--recipe", default="symmetric")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, help="train on this many only, without test and pictures (default: all)")
    args = parser.parse_args()
    recipe = sized(args.recipe)
    model = build(recipe)
    signed = model.input_range == "signed"
    epoch = plain_epoch(model, recipe, plain_loader(args.data_root, True, signed, recipe.batch_size, args.images))
    losses: list[float] = []
    for number in range(args.epochs):
        losses += epoch()
        print(f"epoch {number + 1}: loss {losses[-1]:.4f}", flush=True)
    if args.images:
        return
    total, shown = 0.0, []
    with torch.no_grad():
        for x, _ in plain_loader(args.data_root, False, signed, recipe.batch_size):
            x = x.view(len(x), -1)
            rebuilt, _ = model(x)
            total += F.mse_loss(rebuilt, x).item() * len(x)
            shown.append((x[:1], rebuilt[:1]))
    error = total / 10_000 / (4 if signed else 1)  # of pixels in [0, 1]
    print(f"test MSE {error:.5f}")
    (args.output_dir / "plain_test_mse.txt").write_text(f"{error}\n")
    plt.plot(losses)
    plt.savefig(args.output_dir / "plain_loss.png")
    plt.figure()
    plt.imshow(torch.cat([torch.cat(pair).view(-1, 28) for pair in shown[:10]], dim=1), cmap="gray")
    plt.savefig(args.output_dir / "plain_reconstructions.png")


if __name__ == "__main__":
    main()
