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

from ae_errors import Mistake

if TYPE_CHECKING:
    from ae_models import Autoencoder

PIXELS = 784  # 28 x 28


@dataclass(frozen=True)
class Recipe:
    """One way to train one model.

    `model_args` are the keyword arguments of the model, with one convenience: `hidden_sizes` and `code_size`
    become `layer_sizes = (784, *hidden_sizes, code_size)`. A code size of None is what the PCA says.
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
    seed: int = 42

    def build(self) -> "Autoencoder":
        """The untrained model, its weights drawn from torch's global random generator."""
        module, name = self.model.split(".")
        arguments = dict(self.model_args)
        if "hidden_sizes" in arguments:
            arguments["layer_sizes"] = (PIXELS, *arguments.pop("hidden_sizes"), arguments.pop("code_size"))
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
        plain = dataclasses.asdict(self)
        plain["model_args"] = {k: list(v) if isinstance(v, tuple) else v for k, v in self.model_args.items()}
        return plain

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> "Recipe":
        """The recipe that `as_dict` gave; ValueError, TypeError or KeyError for anything else."""
        row = RECIPES[plain["name"]]
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in plain["model_args"].items()}
        recipe = Recipe(**{**plain, "model_args": arguments})
        kinds = [(getattr(row, f.name), getattr(recipe, f.name)) for f in dataclasses.fields(row)]
        kinds += [(value, arguments[name]) for name, value in row.model_args.items() if value is not None]
        numbers = [n for value in arguments.values() for n in (value if isinstance(value, tuple) else (value,))]
        if len(numbers) > 100 or any(isinstance(n, int) and n > 10**7 for n in numbers):
            raise ValueError("its sizes are none that a run can have")
        if recipe.model != row.model or any(type(ours) is not type(theirs) for ours, theirs in kinds):
            raise ValueError(f"not a recipe for {row.model}")
        return recipe

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
        return "mnist_ae.pt" if self.name == DEFAULT else f"mnist_{self.name}.pt"

    @property
    def default_folder(self) -> str:
        return "outputs" if self.name == DEFAULT else f"outputs/{self.name}"


DEFAULT = "symmetric"

# Arguments that every fully connected row shares; a row says what differs.
_DENSE = {"code_activation": "relu", "output": "sigmoid", "loss": "mse", "noise_factor": 0.0, "test_noise": False}
_TUTORIAL = {**_DENSE, "hidden_sizes": (128, 64), "code_size": 32}

_ROWS = (
    Recipe(
        name="symmetric",
        summary="PCA-guided symmetric autoencoder",
        source='M. Faulkner, "Deep Learning: Autoencoders", 2024',
        model="ae_models.SymmetricAutoencoder",
        model_args={**_DENSE, "hidden_sizes": (2500,), "code_size": None, "output": "tanh"},
        batch_size=256,
        seed=0,
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
    ),
    Recipe(
        name="sparse",
        summary="ensemble of k-sparse autoencoders",
        source="a published write-up; Makhzani & Frey 2014",
        model="ae_sparse.SparseEnsemble",
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
    ),
)

RECIPES: dict[str, Recipe] = {row.name: row for row in _ROWS}

# What a flag may override: how to train, and every argument that some row's model has.
TRAINING = ("epochs", "batch_size", "optimizer", "lr", "lr_schedule", "weight_decay", "grad_clip", "seed")
SETTINGS = {*TRAINING, *(name for row in _ROWS for name in row.model_args)}


def owners(name: str) -> str:
    """The recipes whose models have the setting called `name`."""
    return ", ".join(row.name for row in RECIPES.values() if name in row.model_args)


def listing() -> str:
    """The table as text: name, architecture, loss, settings, source."""
    blocks = []
    for row in RECIPES.values():
        hidden, size = row.model_args.get("hidden_sizes", ()), row.code_size or "PCA"
        shape = row.shape or "-".join(map(str, (PIXELS, *hidden, size, *reversed(hidden), PIXELS)))
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
