"""The recipe table: every system of the suite as one row; no other file knows one by its name.

A row names a model of `ae_models.py` with its arguments, and says how to train it. What a row leaves out keeps
the default of `Recipe`. A flag of `ae_train.py` overrides the field, or the model argument, of the same name;
one that the row's model does not have is refused. Nothing here imports torch: the table feeds `--help`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ae_files import Mistake

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
    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-3
    seed: int = 42

    def build(self) -> "Autoencoder":
        """The untrained model, its weights drawn from torch's global random generator."""
        import ae_models

        arguments = dict(self.model_args)
        if "hidden_sizes" in arguments:
            arguments["layer_sizes"] = (PIXELS, *arguments.pop("hidden_sizes"), arguments.pop("code_size"))
        model: Autoencoder = getattr(ae_models, self.model)(**arguments)
        return model

    def override(self, flags: Mapping[str, Any]) -> "Recipe":
        """This recipe with the settings the user gave; a setting that it does not have is a Mistake."""
        fields = {f.name for f in dataclasses.fields(self)}
        for name in flags.keys() - fields - self.model_args.keys():
            owners = ", ".join(r.name for r in RECIPES.values() if name in r.model_args)
            raise Mistake(f"--{name.replace('_', '-')} does not apply to the recipe {self.name}, only to {owners}")
        arguments = {**self.model_args, **{k: v for k, v in flags.items() if k in self.model_args}}
        return dataclasses.replace(self, model_args=arguments, **{k: v for k, v in flags.items() if k in fields})

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON types, for `run.json` and for comparing two runs."""
        plain = dataclasses.asdict(self)
        plain["model_args"] = {k: list(v) if isinstance(v, tuple) else v for k, v in self.model_args.items()}
        return plain

    @property
    def weights_file(self) -> str:
        return "mnist_ae.pt" if self.name == DEFAULT else f"mnist_{self.name}.pt"

    @property
    def default_folder(self) -> str:
        return "outputs" if self.name == DEFAULT else f"outputs/{self.name}"


DEFAULT = "symmetric"

_ROWS = (
    Recipe(
        name="symmetric",
        summary="PCA-guided symmetric autoencoder",
        source='M. Faulkner, "Deep Learning: Autoencoders", 2024',
        model="SymmetricAutoencoder",
        model_args={"hidden_sizes": (2500,), "code_size": None},
        batch_size=256,
        seed=0,
    ),
)

RECIPES: dict[str, Recipe] = {row.name: row for row in _ROWS}
