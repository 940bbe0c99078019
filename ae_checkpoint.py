"""Model files: weights as a plain state dict, and the record of the run beside them."""

import io
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ae_files import write_atomic


def save_weights(path: Path, model: torch.nn.Module) -> None:
    """The model's state dict, on the CPU, so that anyone's PyTorch loads it anywhere."""
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def versions() -> dict[str, Any]:
    """The versions that a result may depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
