"""The recipe table: every system of the suite as one row; the loop, the models and the metrics know none by name.

A row names a model, as module.class, with its arguments, and says how to train it. What a row leaves out keeps
the default of `Recipe`. A flag of `ae_train.py` overrides the field, or the model argument, of the same name;
one that the row's model does not have is refused. Nothing here imports torch: the table feeds `--help`.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autoencoders.reproduction.claims import Claim
from autoencoders.runtime.errors import Mistake

if TYPE_CHECKING:
    from ae_models import Autoencoder


@dataclass(frozen=True)
class Recipe:
    """One way to train one model.

    `model_args` are the keyword arguments of the model, with one convenience: `hidden_sizes` and `code_size`
    become `layer_sizes = (784, *hidden_sizes, code_size)`; a model without them is told the `image_size`, the pixels
    along a side. A code size of None is what the PCA says.
    """

    name: str
    summary: str
    source: str
    model: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    shape: str = ""  # the architecture in words where it is not 784-hidden-code and back
    objective: str = ""  # the loss in words where it is more than `loss`
    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adam"
    lr: float = 1e-3
    lr_schedule: str = "constant"
    weight_decay: float = 0.0
    grad_clip: float = 0.0
    micro_batches: int = 1
    seed: int = 42
    image_size: int = 28
    claims: tuple[Claim, ...] = ()

    def build(self) -> "Autoencoder":
        """The untrained model, its weights drawn from torch's global random generator."""
        module, name = self.model.rsplit(".", 1)
        arguments = dict(self.model_args)
        if "hidden_sizes" in arguments:
            arguments["layer_sizes"] = (self.pixels, *arguments.pop("hidden_sizes"), arguments.pop("code_size"))
        else:
            arguments["image_size"] = self.image_size
        try:
            model: Autoencoder = getattr(importlib.import_module(module), name)(**arguments)
        except ValueError as error:
            raise Mistake(f"recipe {self.name}: {error}") from error
        return model

    def has(self, name: str) -> bool:
        """Whether `name` is a setting of this recipe."""
        return name in TRAINING or name in self.model_args

    def shown(self, name: str) -> str:
        """The value of a setting as its flag would be given."""
        value = getattr(self, name) if name in TRAINING else self.model_args[name]
        if value is None or value is False:
            return "auto" if name == "code_size" else "off"
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    def override(self, flags: Mapping[str, Any]) -> "Recipe":
        """This recipe with the settings the user gave; a setting that it does not have is a Mistake."""
        for name in sorted(flags.keys() - self.model_args.keys() - set(TRAINING)):
            flag = f"--{name.replace('_', '-')}"
            raise Mistake(f"{flag} does not apply to the recipe {self.name}, only to {owners(name)}")
        training = {name: value for name, value in flags.items() if name in TRAINING}
        arguments = {name: flags.get(name, value) for name, value in self.model_args.items()}
        return dataclasses.replace(self, model_args=arguments, **training)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON types, for `run.json` and for comparing two runs."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "claims"}
        plain["model_args"] = {k: list(v) if isinstance(v, tuple) else v for k, v in self.model_args.items()}
        return plain

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> "Recipe":
        """The recipe that `as_dict` gave; ValueError, TypeError or KeyError for anything else."""
        row = RECIPES[plain["name"]]
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in plain["model_args"].items()}
        recipe = Recipe(**{**plain, "model_args": arguments, "claims": row.claims})
        kinds = [(getattr(row, f.name), getattr(recipe, f.name)) for f in dataclasses.fields(row)]
        kinds += [(value, arguments[name]) for name, value in row.model_args.items() if value is not None]
        numbers = [n for value in arguments.values() for n in (value if isinstance(value, tuple) else (value,))]
        if len(numbers) > 100 or any(isinstance(n, int) and n > 10**7 for n in numbers) or recipe.image_size < 1:
            raise ValueError("its sizes are none that a run can have")
        if recipe.model != row.model or any(type(ours) is not type(theirs) for ours, theirs in kinds):
            raise ValueError(f"not a recipe for {row.model}")
        return recipe

    @property
    def pixels(self) -> int:
        """Of an image."""
        return self.image_size**2

    @property
    def code_size(self) -> int | None:
        """Numbers kept of an image: the code's size, or how many of a sparse code are not zero; None until known."""
        size: int | None = self.model_args.get("code_size", self.model_args.get("k"))
        return size

    @property
    def length_dependence(self) -> str:
        """The setting whose course depends on the number of epochs, or an empty string."""
        if self.lr_schedule != "constant":
            return f"the learning rate schedule {self.lr_schedule}"
        return "the annealing of the KL term" if self.model_args.get("kl_anneal") == "linear" else ""

    @property
    def weights_file(self) -> str:
        """The name of the weights' file in the output folder."""
        return "mnist_ae.pt" if self.name == DEFAULT else f"mnist_{self.name}.pt"

    @property
    def default_folder(self) -> str:
        """The output folder where the flags name none."""
        return "outputs" if self.name == DEFAULT else f"outputs/{self.name}"


DEFAULT = "symmetric"

_SETTINGS = "what its settings gave before"
_PUBLISHED_SPARSE = ("--revive", "off", "--consistency-weight", "0")  # silent features were not revived, nor pulled

# Arguments that every fully connected row shares; a row says what differs.
_DENSE = {
    "activation": "relu", "code_activation": "relu", "linear_path": False, "output": "sigmoid", "loss": "mse",
    "noise_factor": 0.0, "test_noise": False,
}  # fmt: skip
_TUTORIAL = {**_DENSE, "hidden_sizes": (128, 64), "code_size": 32}
_OURS = {**_DENSE, "activation": "gelu", "code_activation": "none", "linear_path": True, "output": "tanh"}

_ROWS = (
    Recipe(
        name="symmetric",
        summary="PCA-guided symmetric autoencoder",
        source='M. Faulkner, "Deep Learning: Autoencoders", 2024',
        model="ae_models.SymmetricAutoencoder",
        model_args={**_DENSE, "hidden_sizes": (2500,), "code_size": None, "output": "tanh"},
        batch_size=256,
        seed=0,
        claims=(
            Claim("components for 95 % of the variance", "pca.components", 154),
            Claim("code of 150: compression", "compression.150", 5.2, 0.05, unit=": 1"),
            Claim("test MSE", "metrics.test_mse", 0.0142, 0.00005, spread=0.000246, source=_SETTINGS),
            Claim("average batch loss, epoch 1", "1.train_loss", 0.0989, 0.00005, spread=0.00201, source=_SETTINGS),
            Claim("average batch loss, epoch 10", "10.train_loss", 0.0129, 0.00005, spread=0.000347, source=_SETTINGS),
            Claim("test MSE of PCA, 154 components", "metrics.pca_test_mse", 0.01321, 0.000005, source=_SETTINGS),
        ),
    ),
    Recipe(
        name="simple",
        summary="tutorial autoencoder",
        source="a published tutorial; Hinton & Salakhutdinov 2006",
        model="ae_models.SymmetricAutoencoder",
        model_args=_TUTORIAL,
    ),
    Recipe(
        name="conv",
        summary="convolutional autoencoder",
        source="a published tutorial; Masci et al. 2011",
        model="ae_models.ConvAutoencoder",
        shape="convolutions 1-16-32 to a code of 64 x 1 x 1, and back",
        model_args={"code_size": 64, "loss": "mse", "noise_factor": 0.0, "test_noise": False},
        claims=(
            Claim("test MSE, below that of simple", "metrics.test_mse", relation="<", against=("simple",)),
            Claim(
                "test MSE, below that of simple with a code of 64",
                "metrics.test_mse",
                relation="<",
                against=("simple", "--code-size", "64"),
                source="its fair comparison",
            ),
        ),
    ),
    Recipe(
        name="denoising",
        summary="denoising autoencoder",
        source="a published tutorial; Vincent et al. 2010",
        model="ae_models.SymmetricAutoencoder",
        model_args={**_TUTORIAL, "noise_factor": 0.5},
    ),
    Recipe(
        name="bce",
        summary="cross-entropy autoencoder",
        source="a published write-up with its losses of every epoch",
        model="ae_models.SymmetricAutoencoder",
        model_args={
            **_DENSE,
            "hidden_sizes": (400,),
            "code_size": 20,
            "code_activation": "none",
            "loss": "bce",
            "pixels": "signed",
        },
        claims=(
            Claim("train loss, epoch 9", "9.train_loss", 69.1569, 0.00005, spread=0.0815, unit="nats"),
            Claim("test loss, epoch 9", "9.test_loss", 69.0569, 0.00005, spread=0.154, unit="nats"),
            Claim("train loss, epoch 10", "10.train_loss", 68.6832, 0.00005, spread=0.0706, unit="nats"),
            Claim("test loss, epoch 10", "10.test_loss", 68.4474, 0.00005, spread=0.0326, unit="nats"),
        ),
    ),
    Recipe(
        name="vae",
        summary="variational autoencoder",
        source="a published write-up; Kingma & Welling 2014",
        model="ae_models.VAE",
        objective="bce + beta KL(q(code | x) || N(0, I))",
        model_args={"hidden_sizes": (256,), "code_size": 20, "kl_weight": 1.0, "kl_anneal": "linear"},
        epochs=50,
        optimizer="adamw",
        weight_decay=0.01,
        claims=(
            Claim("loss, epoch 50", "50.train_loss", 103.5454, 0.00005, spread=0.195, unit="nats"),
            Claim("BCE, epoch 50", "50.recon_loss", 77.1958, 0.00005, spread=0.123, unit="nats"),
            Claim("KL, epoch 50", "50.kl_loss", 26.8873, 0.00005, spread=0.113, unit="nats"),
        ),
    ),
    Recipe(
        name="sparse",
        summary="ensemble of k-sparse autoencoders",
        source="a published write-up; Makhzani & Frey 2014",
        model="autoencoders.sparse.SparseEnsemble",
        shape="5 times 784-1024, 50 features kept, tied decoder",
        objective="mse + consistency + revival",
        model_args={
            "num_saes": 5,
            "features": 1024,
            "k": 50,
            "consistency_weight": 0.01,
            "consistency_warmup": 100,
            "revive": "lift",
            "reinit_threshold": None,
        },
        epochs=5,
        claims=(
            Claim(
                "MSE of the mean image", "analysis.mean_image", 0.067, 0.0005, spread=0.000499, flags=_PUBLISHED_SPARSE
            ),
            Claim(
                "MSE untrained, 0.081 to 0.083", "analysis.mse", 0.082, 0.0015, spread=0.00168, flags=_PUBLISHED_SPARSE
            ),
            Claim(
                "correlation after 5 epochs", "metrics.pearson", 0.97, 0.005, spread=0.000189, flags=_PUBLISHED_SPARSE
            ),
            Claim(
                "correlation after epoch 1",
                "1.pearson",
                0.96,
                flags=_PUBLISHED_SPARSE,
                spread=0.000299,
                known=0.9497,
                relation=">",
                why="under the published settings the correlation passes 0.96 in the second epoch; the write-up does "
                "not say over which images it was taken",
            ),
        ),
    ),
    Recipe(
        name="tuned",
        summary="the budget of symmetric, the best quality",
        source="ours",
        model="ae_models.SymmetricAutoencoder",
        shape="784-1024-PCA-1024-784, and a linear map beside either half",
        model_args={**_OURS, "hidden_sizes": (1024,), "code_size": None},
        batch_size=64,
        lr=2e-3,
        lr_schedule="one-cycle",
        seed=0,
    ),
    Recipe(
        name="speedrun",
        summary="the quality of symmetric, the least time",
        source="ours",
        model="ae_models.SymmetricAutoencoder",
        shape="784-128-154-128-784, and a linear map beside either half",
        model_args={**_OURS, "hidden_sizes": (128,), "code_size": 154},
        epochs=1,
        batch_size=64,
        lr=4e-3,
        lr_schedule="one-cycle",
        seed=0,
    ),
)

RECIPES: dict[str, Recipe] = {row.name: row for row in _ROWS}

PUBLISHED = tuple(row.name for row in _ROWS if row.source != "ours")
STUDIED = (DEFAULT, "tuned")  # over code sizes, beside PCA

# What a flag may override: how to train, and every argument that some row's model has.
TRAINING = ("epochs", "batch_size", "micro_batches", "optimizer", "lr", "lr_schedule", "weight_decay", "grad_clip",
            "seed")  # fmt: skip
SETTINGS = {*TRAINING, *(name for row in _ROWS for name in row.model_args)}


def owners(name: str) -> str:
    """The recipes whose models have the setting called `name`."""
    return ", ".join(row.name for row in RECIPES.values() if name in row.model_args)


def listing() -> str:
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
