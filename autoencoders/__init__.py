"""The autoencoder suite: what its scripts share, and the Python API, which is imported when it is first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoencoders.api import Model, load, train
    from autoencoders.estimator import AutoencoderTransformer

__all__ = ["AutoencoderTransformer", "Model", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "estimator" if name == "AutoencoderTransformer" else "api"
        return getattr(importlib.import_module(f"autoencoders.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
