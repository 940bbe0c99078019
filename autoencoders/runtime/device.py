"""Device, numeric precision and seeds: decided once, before anything is built."""

import contextlib
import ctypes
import math
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoencoders.data.stored import memory
from autoencoders.recipes import Recipe
from autoencoders.runtime import processes
from autoencoders.runtime.errors import Mistake

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names and numbers of glibc's malloc.h


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes CUDA, then MPS, then the CPU. One that is missing is a Mistake.

    Of several processes each takes the CUDA device of its own number; MPS is for one alone.
    """
    several = processes.size() > 1
    cuda, mps = torch.cuda.device_count(), torch.backends.mps.is_available() and not several
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    match = re.fullmatch(r"(cuda|mps|cpu)(?::([0-9]{1,3}))?", name)
    if not match:
        raise Mistake(f"--device {name}: expected auto, cuda, cuda:N, mps or cpu")
    kind, index = match.groups()
    if kind == "cuda" and several:
        if index:
            raise Mistake(f"--device {name}: each process of torchrun takes the device of its own number; use cuda")
        index = str(processes.launched("LOCAL_RANK"))
        name = f"cuda:{index}"
    if kind == "cuda" and several and int(index or 0) >= cuda:
        raise Mistake(f"torchrun has started more processes than this machine's {cuda} CUDA devices; start as many, or "
                      f"use --device cpu")  # fmt: skip
    if kind == "cuda" and int(index or 0) >= cuda:
        raise Mistake(f"--device {name}: PyTorch sees {cuda} CUDA devices here; use --device auto or cpu")
    if kind == "mps" and not mps:
        raise Mistake("--device mps: PyTorch sees no Apple GPU here; use --device auto or cpu")
    return torch.device(name)


def _has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free instead of returning it to the system (Linux; elsewhere nothing).

    A training step frees and asks for the same megabytes over and over; fetching them anew costs page faults,
    measured at a tenth of a step.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(_M_MMAP_THRESHOLD, 2**30)


class Precision:
    """fp32, or automatic mixed precision: bf16 where the hardware has it, else fp16 with gradient scaling.

    `mode` is `auto` (mixed on CUDA, fp32 elsewhere), `on` or `off`; `on` means bf16 on a CPU.
    """

    def __init__(self, mode: str, device: torch.device) -> None:
        self.device = device
        self.mixed = mode == "on" or (mode == "auto" and device.type == "cuda")
        half = device.type == "mps" or (device.type == "cuda" and not _has_bf16(device))
        self.dtype = (torch.float16 if half else torch.bfloat16) if self.mixed else torch.float32
        # fp16 underflows where gradients are small; a scaler that is not enabled passes everything through.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Inside of it the forward pass runs in the chosen precision."""
        if not self.mixed:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def backward(self, loss: Tensor) -> None:
        """The gradients of a loss, through the scaler when there is one."""
        self.scaler.scale(loss).backward()

    def update(self, optimizer: torch.optim.Optimizer, grad_clip: float = 0.0) -> None:
        """One optimiser step along the gradients there are.

        `grad_clip` is the longest gradient let through, as the norm over all weights; 0 is no limit.
        """
        if grad_clip:
            self.scaler.unscale_(optimizer)
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, grad_clip)
        self.scaler.step(optimizer)
        self.scaler.update()

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def check_memory(recipe: Recipe) -> None:
    """Raise Mistake when the recipe's weights, gradients and two moments could never fit into this machine."""
    parts = recipe.micro_batches if recipe.micro_batches > 1 else 0  # the gradients of each
    needed, there = (16.0 + 4 * parts) * parameters(recipe), memory()
    if needed > there:
        raise Mistake(
            f"the model needs {needed / 1e9:,.0f} GB to train and this machine has {there / 1e9:,.0f}; "
            f"use smaller --hidden-sizes, --code-size or --features"
        )


def parameters(recipe: Recipe) -> float:
    """How many the recipe's model has, counted without taking memory for them."""
    try:
        with torch.device("meta"):
            return sum(weight.numel() for weight in recipe.build().parameters())
    except RuntimeError:  # more than torch can count
        return math.inf


def seed_for(seed: int, *path: int) -> int:
    """A 64-bit seed for one place of a run, such as (seed, epoch): near seeds give unrelated streams."""
    return int(np.random.SeedSequence((seed, *path)).generate_state(1, np.uint64)[0])


def device_name(device: torch.device) -> str:
    """The device as a person knows it."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def machine_name() -> str:
    """The processor's type, its cores and torch's version: what a measured time belongs to."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line] or [platform.processor()]
    return f"{names[0]}, {os.cpu_count()} cores, torch {torch.__version__}"
