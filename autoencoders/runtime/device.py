"""Device, numeric precision, memory and seeds: decided once, before a model is built."""

import contextlib
import ctypes
import re
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoencoders.runtime import cli, processes
from autoencoders.runtime.errors import UsageError


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA if present, else MPS, else the CPU. UsageError for a missing device."""
    several = processes.size() > 1
    cuda, mps = torch.cuda.device_count(), torch.backends.mps.is_available() and not several
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    match = re.fullmatch(r"(cuda|mps|cpu)(?::(0|[1-9][0-9]{0,2}))?", name)
    if not match:
        raise UsageError(f"--device {name}: expected auto, cuda, cuda:N, mps or cpu")
    use_exact_kernels()
    if cli.is_running():
        flush_denormals()
    kind, index = match.groups()
    if kind == "cuda" and several:
        if index:
            raise UsageError(f"--device {name}: torchrun gives each process the device of its local rank; use cuda")
        if processes.torchrun_env("LOCAL_RANK") >= cuda:
            raise UsageError(f"there are more processes than this machine's {cuda} CUDA devices; use --device cpu")
        return torch.device("cuda", processes.torchrun_env("LOCAL_RANK"))
    if kind == "cuda" and int(index or 0) >= cuda:
        raise UsageError(f"--device {name}: PyTorch sees {cuda} CUDA devices here; use --device auto or cpu")
    if kind == "mps" and not mps:
        raise UsageError("--device mps: PyTorch sees no Apple GPU here; use --device auto or cpu")
    return torch.device(name)


def keep_freed_memory() -> None:
    """Keep freed tensor memory in the process instead of returning it to the system (Linux only).

    A training step frees and allocates the same megabytes; returning them costs page faults, a tenth of a step.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD in glibc's malloc.h
            libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD


def use_exact_kernels() -> None:
    """On CUDA: fp32 without TF32, whose mantissa has 10 bits, and convolutions that sum in a fixed order."""
    torch.backends.cudnn.allow_tf32 = False  # the older switch: torch.compile and torch.export fail unless both agree
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True


def flush_denormals() -> None:
    """On CPUs numbers below 1e-38 become 0, in this whole process; not for a program that only imports us.

    Adam's first moment of a weight without gradients gets there in 800 steps, and each such number costs 100 cycles.
    """
    torch.set_flush_denormal(True)  # the threads that compute inherit it when they start


class Precision:
    """fp32, or automatic mixed precision: bf16 where the hardware has it, else fp16 with gradient scaling.

    `mode` is `auto` (mixed on CUDA, fp32 elsewhere), `on` or `off`; `on` means bf16 on a CPU.
    """

    def __init__(self, mode: str, device: torch.device) -> None:
        use_exact_kernels()
        self.device = device
        self.mixed = mode == "on" or (mode == "auto" and device.type == "cuda")
        half = torch.float16 if device.type == "mps" else torch.bfloat16
        if device.type == "cuda":
            with torch.cuda.device(device):
                half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        self.dtype = half if self.mixed else torch.float32
        # fp16 underflows for small gradients; a disabled scaler passes everything through.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which the forward pass runs in the chosen precision."""
        return torch.autocast(self.device.type, self.dtype) if self.mixed else contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, scaled against underflow in fp16."""
        self.scaler.scale(loss).backward()

    def update(self, optimizer: torch.optim.Optimizer, grad_clip: float = 0.0) -> None:
        """One optimiser step; `grad_clip` is the maximum gradient norm over all weights, 0 for no clipping."""
        if grad_clip:
            self.scaler.unscale_(optimizer)
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, grad_clip)
        self.scaler.step(optimizer)
        self.scaler.update()

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def seed_for(seed: int, *path: int) -> int:
    """A 64-bit seed derived from a path such as (seed, epoch): nearby seeds give unrelated random streams."""
    return int(np.random.SeedSequence((seed, *path)).generate_state(1, np.uint64)[0])
