"""The autoencoder suite: what its scripts share, and the Python API, which is imported when it is first used."""

import contextlib
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoencoders.api import Model, load, train
    from autoencoders.estimator import AutoencoderTransformer

__all__ = ["AutoencoderTransformer", "Model", "load", "train"]

if "matplotlib" not in sys.modules and (backend := os.environ.pop("MPLBACKEND", None)):
    import matplotlib

    os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):  # such as that of a notebook that started us, which is not installed here
        matplotlib.rcParams["backend"] = backend


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "estimator" if name == "AutoencoderTransformer" else "api"
        return getattr(importlib.import_module(f"autoencoders.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
