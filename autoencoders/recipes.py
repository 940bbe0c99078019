"""The recipe table: every system of the suite is one row, every setting is defined once.

A row names a model, as module.class, with its arguments, and says how to train it. `SETTINGS` lists what a flag of
`ae_train.py` may override: a field of `Recipe` or an argument of the model. Nothing here imports torch.
"""

import argparse
import dataclasses
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autoencoders.runtime import cli
from autoencoders.runtime.errors import UsageError

if TYPE_CHECKING:
    from ae_models import Autoencoder


_COUNT: dict[str, Any] = {"type": cli.integer(1), "metavar": "N"}
_COUNT_OR_0: dict[str, Any] = {"type": cli.integer(0), "metavar": "N"}
_NUMBER: dict[str, Any] = {"type": cli.number(0), "metavar": "X"}


@dataclass(frozen=True)
class Recipe:
    """One way to train one model.

    `model_args` are the model's keyword arguments, but `hidden_sizes` and `code_size` become `layer_sizes = (pixels,
    *hidden_sizes, code_size)`; any other model gets `inputs`, the pixels of an image. A code size of None means the
    number of components that PCA needs for 95% of the variance.
    """

    name: str
    summary: str
    source: str
    model: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    shape: str = ""  # the architecture in words, unless it is pixels-hidden-code and back
    objective: str = ""  # the loss in words, unless `loss` names it
    pictures: tuple[str, ...] = ()  # beyond the two of every run: names in training/report.py
    dataset: str = "mnist"  # the image set where no flag names one
    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adam"
    lr: float = 1e-3
    lr_schedule: str = "constant"
    weight_decay: float = 0.0
    grad_clip: float = 0.0
    seed: int = 42
    image_size: int = 28
    vector_size: int = 0  # numbers of a vector, where the recipe is trained on vectors instead of images

    def build(self) -> "Autoencoder":
        """The untrained model; its weights are drawn from torch's global random generator."""
        module, name = self.model.rsplit(".", 1)
        arguments = dict(self.model_args)
        if "hidden_sizes" in arguments:
            arguments["layer_sizes"] = (self.pixels, *arguments.pop("hidden_sizes"), arguments.pop("code_size"))
        else:
            arguments["inputs"] = self.pixels
        try:
            return getattr(importlib.import_module(module), name)(**arguments)
        except ValueError as error:
            raise UsageError(f"recipe {self.name}: {error}") from error

    def count_parameters(self) -> float:
        """Number of weights, which are not allocated; infinite beyond what torch can count. PCA's code counts as 1."""
        import torch

        recipe = self.override({"code_size": 1}) if self.code_size is None else self
        try:
            with torch.device("meta"):
                return sum(weight.numel() for weight in recipe.build().parameters())
        except RuntimeError:
            return math.inf

    def format_value(self, name: str) -> str:
        """The value of a setting, written as its flag takes it."""
        value = getattr(self, name) if name in TRAINING else self.model_args[name]
        if value is None or value is False:
            return "auto" if name == "code_size" else "off"
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    def override(self, flags: Mapping[str, Any]) -> "Recipe":
        """This recipe with the given settings; UsageError for a setting that it does not have."""
        for name in sorted(flags.keys() - self.model_args.keys() - set(TRAINING)):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} does not apply to the recipe {self.name}, only to {owners(name)}")
        training = {name: value for name, value in flags.items() if name in TRAINING}
        arguments = {name: flags.get(name, value) for name, value in self.model_args.items()}
        return dataclasses.replace(self, model_args=arguments, **training)

    def settings(self) -> dict[str, Any]:
        """What a result depends on, by name and in JSON types: how the model is trained, and its arguments."""
        plain = self.as_dict()
        return {name: plain[name] for name in ("name", *TRAINING)} | plain["model_args"]

    def as_dict(self) -> dict[str, Any]:
        """The recipe in JSON types, for `run.json`."""
        arguments = {name: list(v) if isinstance(v, tuple) else v for name, v in self.model_args.items()}
        known_by_name = ("pictures", "dataset")
        return {k: v for k, v in vars(self).items() if k not in known_by_name} | {"model_args": arguments}

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> "Recipe":
        """The recipe that `as_dict` wrote."""
        row, stored = RECIPES[plain["name"]], plain["model_args"]
        arguments = {name: tuple(stored[name]) if isinstance(stored[name], list) else stored[name]
                     for name in row.model_args}  # fmt: skip
        training = {name: plain[name] for name in (*TRAINING, "image_size", "vector_size")}
        return dataclasses.replace(row, model_args=arguments, **training)

    @property
    def pixels(self) -> int:
        return self.vector_size or self.image_size**2

    @property
    def code_size(self) -> int | None:
        """Numbers kept of an image: the code's size, or the k of a sparse code; None until PCA has decided."""
        return self.model_args.get("code_size", self.model_args.get("k"))

    @property
    def length_dependence(self) -> str:
        """The setting whose schedule depends on the number of epochs, or an empty string."""
        if self.lr_schedule != "constant":
            return f"the learning rate schedule {self.lr_schedule}"
        return "the annealing of the KL term" if self.model_args.get("kl_anneal") == "linear" else ""

    @property
    def weights_file(self) -> str:
        return "mnist_ae.pt" if self.name == DEFAULT else f"mnist_{self.name}.pt"

    @property
    def default_folder(self) -> str:
        """The output folder where no flag names one."""
        return "outputs" if self.name == DEFAULT else f"outputs/{self.name}"


# fmt: off
# Every setting that a flag overrides, with its help and further arguments for argparse.
SETTINGS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "model": {
        "hidden_sizes": ("layer widths between pixels and code, '' for none",
                         {"type": cli.sizes, "action": cli.ListAction, "metavar": "N"}),
        "code_size": ("a number, or auto for the number of components that PCA needs",
                      {"type": cli.code_size, "metavar": "N"}),
        "activation": ("between the layers of a fully connected model",
                       {"choices": ("relu", "gelu", "tanh", "leaky-relu")}),
        "code_activation": ("after the last layer of the encoder", {"choices": ("relu", "none")}),
        "linear_path": ("linear skip connections around the layers of encoder and decoder", {"action": "store_true"}),
        "loss": ("mse: squared error; bce: cross-entropy", {"choices": ("mse", "bce")}),
        "shift": ("pixels by which training images are moved at most, in each direction",
                  {"type": cli.integer(0, 27), "metavar": "N"}),
        "lifetime_sparsity": ("share of a training batch for which a unit of the code stays active",
                              {"type": cli.number(0, 1, exclusive=True), "metavar": "X"}),
        "noise_factor": ("standard deviation of the noise added to training images", _NUMBER),
        "test_noise": ("add the noise to the test images too", {"action": "store_true"}),
        "kl_weight": ("beta, the weight of the KL term", _NUMBER),
        "kl_anneal": ("how beta grows over the epochs", {"choices": ("linear", "none")}),
        "binarize": ("train on binary pixels: one fixed draw for each image, or a new one at every step, with the grey "
                     "levels as probabilities", {"choices": ("none", "static", "dynamic")}),
        "init": ("first weights: torch's own, or those of Glorot & Bengio with a decoder that starts at the mean image",
                 {"choices": ("default", "mean-image")}),
        "importance_samples": ("codes drawn per image for the importance-weighted bound; 1 is the ELBO", _COUNT),
        "num_saes": ("number of autoencoders trained together", {"type": cli.integer(1, 100), "metavar": "N"}),
        "features": ("number of features of each sparse autoencoder", _COUNT),
        "k": ("number of active features of a code", _COUNT),
        "consistency_weight": ("weight of the term that makes the dictionaries similar", _NUMBER),
        "consistency_warmup": ("steps until that weight is reached", _COUNT_OR_0),
        "revive": ("how dead features are revived", {"choices": ("lift", "off")}),
        "center": ("subtract the mean training image before encoding", {"action": "store_true"}),
        "standardize": ("subtract the mean training image, and divide every pixel by its standard deviation",
                        {"action": "store_true"}),
        "init_scale": ("factor of the first weights", {"type": cli.number(0, exclusive=True), "metavar": "X"}),
        "reinit_threshold": ("re-initialise an autoencoder when mean(|firing rate - 0.0625| / 0.0625)^3 exceeds this",
                             _NUMBER),
    },
    "training": {
        "batch_size": ("images per step", _COUNT),
        "epochs": ("passes over the images; ten times the recipe's for fewer than 10,000 images", _COUNT_OR_0),
        "lr": ("learning rate", {"type": cli.number(0, exclusive=True), "metavar": "X"}),
        "lr_schedule": ("how the learning rate changes", {"choices": ("constant", "one-cycle", "cosine")}),
        "optimizer": ("Adam, or Adam with decoupled weight decay", {"choices": ("adam", "adamw")}),
        "weight_decay": ("of the optimizer", _NUMBER),
        "grad_clip": ("maximum gradient norm, 0 for no clipping", _NUMBER),
        "seed": ("of weights, order and noise", _COUNT_OR_0),
    },
}
TRAINING = tuple(SETTINGS["training"])

DEFAULT, BEST, BEST_SPARSE = "symmetric", "tuned", "sparse_tuned"  # a warning recommends BEST: the lowest test error

# Arguments that every fully connected row shares; a row says what differs.
_DENSE = {"activation": "relu", "code_activation": "relu", "linear_path": False, "output": "sigmoid", "loss": "mse",
          "noise_factor": 0.0, "test_noise": False, "shift": 0}
_TUTORIAL = {**_DENSE, "hidden_sizes": (128, 64), "code_size": 32}
_OURS = {**_DENSE, "activation": "gelu", "code_activation": "none", "linear_path": True, "output": "tanh"}

_VAE = {"activation": "relu", "loss": "bce", "kl_weight": 1.0, "kl_anneal": "none", "binarize": "none",
        "importance_samples": 1, "init": "default"}

_SPARSE = {"num_saes": 5, "features": 1024, "k": 50, "consistency_weight": 0.01, "consistency_warmup": 100,
           "revive": "lift", "reinit_threshold": None, "center": False,
           "standardize": False, "init_scale": 1.0}

_FIRST = "a PyTorch tutorial without a known address, which prints no number; "

_BURDA = "schedule ours; network of Burda et al. 2016, https://arxiv.org/abs/1509.00519"
_BURDAS_NETWORK = {"hidden_sizes": (200, 200), "code_size": 50, "activation": "tanh", "binarize": "dynamic",
                   "init": "mean-image"}
_BINARY: dict[str, Any] = {"objective": "bce + KL(q(code | x) || N(0, I)) of binary pixels", "pictures": ("samples",)}

_ROWS = (
    Recipe("symmetric", "PCA-guided symmetric autoencoder",
           'M. Faulkner, "Deep Learning: Autoencoders", 2024-07-26, '
           "https://mfaulk.github.io/2024/07/26/pytorch-ae.html", "ae_models.SymmetricAutoencoder",
           {**_DENSE, "hidden_sizes": (2500,), "code_size": None, "output": "tanh"}, batch_size=256, seed=0),
    Recipe("simple", "tutorial autoencoder",
           _FIRST + "idea: Hinton & Salakhutdinov 2006, https://doi.org/10.1126/science.1127647",
           "ae_models.SymmetricAutoencoder", _TUTORIAL),
    Recipe("conv", "convolutional autoencoder",
           _FIRST + "idea: Masci et al. 2011, https://doi.org/10.1007/978-3-642-21735-7_7",
           "ae_models.ConvAutoencoder",
           {"code_size": 64, "loss": "mse", "noise_factor": 0.0, "test_noise": False, "shift": 0},
           shape="convolutions 1-16-32 to a code of 64 x 1 x 1, and back"),
    Recipe("denoising", "denoising autoencoder",
           _FIRST + "idea: Vincent et al. 2010, https://jmlr.org/papers/v11/vincent10a.html",
           "ae_models.SymmetricAutoencoder", {**_TUTORIAL, "noise_factor": 0.5}),
    Recipe("bce", "cross-entropy autoencoder",
           "a PyTorch tutorial without a known address, which prints the losses of every epoch",
           "ae_models.SymmetricAutoencoder", {**_DENSE, "hidden_sizes": (400,), "code_size": 20,
                                              "code_activation": "none", "loss": "bce", "pixels": "signed"}),
    Recipe("vae", "variational autoencoder", "a write-up with SwanLab of https://github.com/owenliang/torch-vae; "
           "idea: Kingma & Welling 2014, https://arxiv.org/abs/1312.6114", "autoencoders.vae.VAE",
           {**_VAE, "hidden_sizes": (256,), "code_size": 20, "kl_anneal": "linear"},
           objective="bce + beta KL(q(code | x) || N(0, I))", pictures=("samples",),
           epochs=50, optimizer="adamw", weight_decay=0.01),
    Recipe("vae_static", "variational autoencoder of binary pixels that are drawn once",
           "schedule ours; network of pythae, https://github.com/clementchadebec/benchmark_VAE", "autoencoders.vae.VAE",
           {**_VAE, "hidden_sizes": (400,), "code_size": 40, "binarize": "static", "init": "mean-image"}, **_BINARY,
           dataset="binarized-mnist", epochs=60, lr=2e-3, lr_schedule="one-cycle"),
    Recipe("vae_dynamic", "variational autoencoder of binary pixels that are drawn anew at every step",
           _BURDA, "autoencoders.vae.VAE",
           {**_VAE, **_BURDAS_NETWORK}, **_BINARY, epochs=600, lr=1.5e-3, lr_schedule="one-cycle"),
    Recipe("iwae", "importance-weighted autoencoder of binary pixels", _BURDA, "autoencoders.vae.VAE",
           {**_VAE, **_BURDAS_NETWORK, "importance_samples": 5},
           objective="importance-weighted bound of binary pixels", pictures=("samples",),
           epochs=600, lr=1.5e-3, lr_schedule="one-cycle"),
    Recipe("sparse", "ensemble of k-sparse autoencoders",
           '"MNIST稀疏自编码器 (Sparse Autoencoder)", https://github.com/electrixoul/sae_demo; '
           "idea: Makhzani & Frey 2014, https://arxiv.org/abs/1312.5663", "autoencoders.sparse.SparseEnsemble",
           _SPARSE,
           shape="5 times 784-1024, 50 active features, tied decoder", objective="mse + consistency + revival",
           pictures=("training_metrics", "sae_features", "feature_activity"), epochs=5),
    Recipe("hinton", "a code of 30 through the network of Hinton & Salakhutdinov",
           "all ours but the widths: Hinton & Salakhutdinov 2006, https://doi.org/10.1126/science.1127647",
           "ae_models.SymmetricAutoencoder", {**_OURS, "hidden_sizes": (1000, 500, 250), "code_size": 30, "shift": 1},
           epochs=16, batch_size=64, lr=2e-3, lr_schedule="one-cycle"),
    Recipe("novelty", "a narrow code that fits no other images than those it is trained on",
           "for the scores of Kim et al. 2020 (RaPP, ICLR); network and schedule ours",
           "ae_models.SymmetricAutoencoder",
           {**_DENSE, "hidden_sizes": (512, 256, 128, 64), "code_size": 10, "activation": "leaky-relu",
            "code_activation": "none", "shift": 1}, epochs=12, lr=2e-3, lr_schedule="one-cycle"),
    Recipe("wta", "features of which each is active for the images that it fits best, for a linear classifier",
           "schedule ours; Makhzani & Frey 2015, https://arxiv.org/abs/1409.2752", "autoencoders.wta.WinnerTakeAll",
           {name: value for name, value in _DENSE.items() if name != "linear_path"}
           | {"hidden_sizes": (), "code_size": 2000, "output": "linear", "lifetime_sparsity": 0.05},
           shape="784-2000 and back, no hidden layer", epochs=50, batch_size=100, lr_schedule="one-cycle"),
    Recipe("tuned", "best test MSE within the training budget of symmetric", "ours", "ae_models.SymmetricAutoencoder",
           {**_OURS, "hidden_sizes": (1024,), "code_size": None},
           shape="784-1024-PCA-1024-784, with linear skip connections",
           batch_size=64, lr=2e-3, lr_schedule="one-cycle", seed=0),
    Recipe("sparse_tuned", "one k-sparse autoencoder, the best correlation within the budget of sparse", "ours",
           "autoencoders.sparse.SparseEnsemble", {**_SPARSE, "num_saes": 1, "init_scale": 0.01},
           shape="784-1024, 50 active features, tied decoder", objective="mse + revival",
           pictures=("training_metrics", "sae_features", "feature_activity"), epochs=5, batch_size=64, lr=6e-3,
           lr_schedule="one-cycle"),
    Recipe("speedrun", "the test MSE of symmetric in the least time", "ours", "ae_models.SymmetricAutoencoder",
           {**_OURS, "hidden_sizes": (128,), "code_size": 154},
           shape="784-128-154-128-784, with linear skip connections",
           epochs=1, batch_size=64, lr=4e-3, lr_schedule="one-cycle", seed=0),
)
# fmt: on

RECIPES: dict[str, Recipe] = {row.name: row for row in _ROWS}


def owners(name: str) -> str:
    """The recipes whose models have the setting `name`."""
    return ", ".join(row.name for row in RECIPES.values() if name in row.model_args)


def add_setting_flags(group: argparse._ArgumentGroup, kind: str, recipe: Recipe, only_own: bool = False) -> None:
    """Add a flag for every setting of one kind (`model` or `training`); its help shows the default of `recipe`.

    The settings that `recipe` does not have are hidden in the help, so that `override` can refuse them by name;
    `only_own` leaves them out. A flag that is not given is absent from the result.
    """
    for name, (help, options) in SETTINGS[kind].items():
        is_own = kind == "training" or name in recipe.model_args
        if is_own or not only_own:
            flag = f"--{name.replace('_', '-')}"
            shown = f"{help} (default: {recipe.format_value(name)})" if is_own else argparse.SUPPRESS
            group.add_argument(flag, default=argparse.SUPPRESS, help=shown, **options)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that parsed flags name, with the settings they give; `--code-size auto` becomes None."""
    flags = {name: value for name, value in vars(args).items() if name in {**SETTINGS["model"], **SETTINGS["training"]}}
    if flags.get("code_size") == "auto":
        flags["code_size"] = None
    return RECIPES[args.recipe].override(flags)


def recipe_named_in(arguments: list[str] | None) -> Recipe:
    """The recipe that a command line names, before it is parsed: --help shows that recipe's defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", nargs="?")
    return RECIPES.get(parser.parse_known_args(arguments)[0].recipe, RECIPES[DEFAULT])


def format_recipes() -> str:
    """The table as text: name, architecture, loss, settings, source."""
    blocks = []
    for row in RECIPES.values():
        hidden, size = row.model_args.get("hidden_sizes", ()), row.code_size or "PCA"
        shape = row.shape or "-".join(map(str, (row.pixels, *hidden, size, *reversed(hidden), row.pixels)))
        arguments = {k: v for k, v in row.model_args.items() if k not in ("hidden_sizes", "code_size", "loss")}
        blocks.append(
            f"{row.name}: {row.summary}\n"
            f"  model     {shape}\n"
            f"  loss      {row.objective or row.model_args['loss']}\n"
            f"  arguments {', '.join(f'{k} {v}' for k, v in arguments.items())}\n"
            f"  training  {', '.join(f'{k} {getattr(row, k)}' for k in TRAINING)}\n"
            f"  source    {row.source}"
        )
    return "\n\n".join(blocks)
