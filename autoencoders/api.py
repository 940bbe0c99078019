"""The Python API: load a trained run, or train a recipe, and use the model on arrays.

Images are (N, 28, 28) or (N, 784), or of the model's own size, as uint8 in 0..255 or floats in [0, 1]; NumPy arrays
give NumPy arrays, torch tensors give tensors on their device. Codes are (N, code_size) and reconstructions have the
shape of the images; both are float32, and pixels that come out are in [0, 1] for every recipe. Of an ensemble of S
autoencoders, codes and reconstructions get a leading S.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ae_models import Autoencoder
from autoencoders.data.binary import binarized
from autoencoders.data.images import ImageSet
from autoencoders.data.sets import DATASETS, load_images
from autoencoders.evaluation.metrics import to_pixels
from autoencoders.evaluation.pca import fit_pca
from autoencoders.recipes import RECIPES, SETTINGS, Recipe
from autoencoders.runtime.device import pick_device
from autoencoders.training.trained import UnitPixels, load_run
from autoencoders.training.trainer import Row, Trainer

_BATCH = 1000  # images per pass


class Model:
    """A trained autoencoder.

    `module` is the torch module, `recipe` how it was trained. `record` is the content of `run.json` for a run that was
    loaded, and empty otherwise; `history` has one row of numbers per epoch for a model trained here, else none.
    """

    def __init__(
        self,
        module: Autoencoder,
        recipe: Recipe,
        record: dict[str, Any] | None = None,
        history: list[Row] | None = None,
    ) -> None:
        self.module, self.recipe = module.eval(), recipe
        self.record, self.history = record or {}, history or []
        self._unit = UnitPixels(module)
        with torch.no_grad():
            code = self._unit.encode(torch.zeros(1, recipe.pixels, device=self._device))
        self._code_shape = tuple(code.shape)  # of one image: (1, code_size) or (S, 1, features)

    def __repr__(self) -> str:
        side = self.recipe.image_size
        return f"<Model {self.recipe.name}: {side} x {side} images, codes of {self._code_shape[-1]}>"

    def encode(self, images: Any) -> Any:
        """Codes (N, code_size), of an ensemble (S, N, features); ValueError for anything but images of this size."""
        x = _flat_images(images, self.recipe.image_size)
        return _like(images, self._in_batches(lambda batch: self._unit.encode(_unit_pixels(batch)), x))

    def decode(self, codes: Any) -> Any:
        """Images (N, 784) of codes as `encode` gives them; ValueError for codes of another shape, or not finite."""
        x, code_shape = _as_tensor(codes), self._code_shape
        if x.ndim != len(code_shape) or (*x.shape[:-2], 1, x.shape[-1]) != code_shape:
            expected = ", ".join((*map(str, code_shape[:-2]), "N", str(code_shape[-1])))
            raise ValueError(f"codes of shape {tuple(x.shape)}: expected ({expected})")
        if not x.isfinite().all():
            raise ValueError("codes: expected finite numbers, got NaN or infinity")
        return _like(codes, self._in_batches(lambda batch: self._unit.decode(batch.float()), x))

    def reconstruct(self, images: Any) -> Any:
        """The images decoded from the codes of `images`, of the same shape; ValueError as of `encode`."""
        x = _flat_images(images, self.recipe.image_size)
        y = self._in_batches(lambda batch: self._unit(_unit_pixels(batch)), x)
        return _like(images, y.reshape(*y.shape[:-1], *np.shape(images)[1:]))

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    @torch.no_grad()
    def _in_batches(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`function` of (..., N, D), a batch at a time on the model's device; the results together, on x's device."""
        parts = [function(batch.to(self._device)).to(x.device) for batch in x.split(_BATCH, dim=-2)]
        return torch.cat(parts, dim=-2)


def load(folder: str | Path, device: str = "cpu") -> Model:
    """The model of the finished run in `folder`; `device` is auto, cpu, cuda, cuda:N or mps.

    ValueError when there is no finished run or no such device, RunError when the files are damaged.
    """
    run = load_run(Path(folder), pick_device(device))
    return Model(run.model, run.recipe, record=run.record)


def train(
    recipe: str, images: Any, *, test_images: Any = None, data_root: str | Path = "data", device: str = "cpu",
    quiet: bool = False, **settings: Any,
) -> Model:  # fmt: skip
    """Train a recipe and write nothing; the model, with its history.

    images       an array of images, or the name of a set in `data_root`: mnist, fashion-mnist, kmnist, digits, ...
    test_images  are measured after every epoch; of an array a tenth is held out for that, drawn by the seed
    settings     override the recipe's, by the names of the flags of ae_train.py: epochs, hidden_sizes, lr, seed, ...

    As in the scripts, fewer than 10,000 images get ten times the recipe's epochs unless `epochs` is given, and a code
    size of None is the number of components that PCA needs for 95% of the variance. Floats are rounded to 256 levels
    for the training. With `quiet` no progress bar is drawn on a terminal. ValueError for wrong images or settings,
    RunError when the training diverges. torch's random state is left as it was.
    """
    row = _recipe(recipe, settings)
    data = binarized(_image_set(images, test_images, Path(data_root), row.seed), row.model_args.get("binarize"))
    if "epochs" not in settings:
        row = row.override({"epochs": data.epochs(row.epochs)})
    if row.code_size is None:
        row = row.override({"code_size": fit_pca(data).components_for(0.95)})
    target, row = pick_device(device), replace(row, image_size=data.side)
    with torch.random.fork_rng([target] if target.type == "cuda" else []):
        trainer = Trainer(row, data, target)
        for _ in tqdm(trainer.epochs(), total=row.epochs, unit="epoch", leave=False, disable=True if quiet else None):
            pass
    return Model(trainer.model, trainer.recipe, history=trainer.history)


def _recipe(name: str, settings: dict[str, Any]) -> Recipe:
    """The recipe with these settings; ValueError for one that it does not have."""
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r}: expected one of {', '.join(RECIPES)}")
    if unknown := sorted(settings.keys() - SETTINGS["model"].keys() - SETTINGS["training"].keys()):
        raise ValueError(f"{', '.join(unknown)}: no such setting; the flags of ae_train.py name them")
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    recipe = RECIPES[name].override(plain)  # ValueError for a setting that this recipe does not have
    if recipe.epochs < 1:
        raise ValueError(f"epochs {recipe.epochs}: expected at least 1")
    return recipe


def _image_set(images: Any, test_images: Any, root: Path, seed: int) -> ImageSet:
    """The images as a set; ValueError for images that cannot be trained on."""
    if isinstance(images, str):
        if images not in DATASETS:
            raise ValueError(f"images {images!r}: expected an array, or one of {', '.join(DATASETS)}")
        known = load_images(images, root)
        tests = known.test_images if test_images is None else _uint8(test_images, known.side)
        return replace(known, test_images=tests, test_labels=np.zeros(len(tests), np.uint8))
    train = _uint8(images)
    side = math.isqrt(train.shape[1])
    if test_images is None:
        order = np.random.default_rng(seed).permutation(len(train))
        held_out, rest = np.split(order, [max(1, len(order) // 10)])
        train, tests = train[rest], train[held_out]
    else:
        tests = _uint8(test_images, side)
    if len(train) < 2 or len(tests) < 1:
        raise ValueError(f"{len(train)} training and {len(tests)} test images: expected at least 2 and 1")
    labels = (np.zeros(len(part), np.uint8) for part in (train, tests))
    return ImageSet("array", "images in memory", train, next(labels), tests, next(labels))


def _uint8(images: Any, side: int | None = None) -> np.ndarray:
    """Images as (N, side * side) uint8, for the training."""
    x = _flat_images(images, side).cpu()
    parts = [part if part.dtype == torch.uint8 else _unit_pixels(part).mul(255).round().to(torch.uint8)
             for part in x.split(_BATCH)]  # fmt: skip
    return torch.cat(parts).numpy()


def _as_tensor(values: Any) -> Tensor:
    """A tensor of the numbers of an array, without a copy where that is possible."""
    if isinstance(values, Tensor):
        if values.layout != torch.strided or values.is_meta:
            raise ValueError(f"a tensor of layout {values.layout} on {values.device}: expected a dense one with values")
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind not in "fu" or array.dtype.itemsize > 8:
        raise ValueError(f"an array of {array.dtype}: expected uint8 or floats")
    if not (array.flags.writeable and array.flags.c_contiguous and array.dtype.isnative):
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array)


def _like(example: Any, result: Tensor) -> Any:
    return result if isinstance(example, Tensor) else result.numpy()


def _flat_images(images: Any, side: int | None) -> Tensor:
    """Images as (N, side * side), of any side if that is None; ValueError for another shape or type."""
    x, known = _as_tensor(images), side is not None
    shape, found = tuple(x.shape), f"images of {x.dtype} and shape {tuple(x.shape)}".replace("torch.", "")
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise ValueError(f"{found}: expected uint8 in 0..255 or floats in [0, 1]")
    if side is None:
        side = math.isqrt(math.prod(shape[1:]))
    if shape[1:] not in ((side, side), (side**2,)):
        wanted = f"(N, {side}, {side}) or (N, {side**2})" if known else "square images, (N, H, H) or (N, H * H)"
        raise ValueError(f"{found}: expected {wanted}; give a single image as images[None]")
    return x.flatten(1)


def _unit_pixels(x: Tensor) -> Tensor:
    """Pixels as floats in [0, 1]; ValueError for floats outside."""
    if x.dtype == torch.uint8:
        return to_pixels(x, "unit")
    low, high = x.aminmax() if x.numel() else (0, 0)
    if not (low >= 0 and high <= 1):  # both are NaN where one pixel is
        raise ValueError(f"pixels from {low:g} to {high:g}: expected uint8 in 0..255, or floats in [0, 1] without NaN")
    return x.float()
