"""Several processes, started by torchrun: each one computes a slice of every batch.

Without torchrun there is one process and everything here is the identity. `data_parallel` is the one point where a
training step meets several processes; only the main process (rank 0) prints and writes.
"""

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from autoencoders.runtime.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

T = TypeVar("T")
Loss = Callable[["Tensor"], "tuple[Tensor, dict[str, Tensor]]"]  # batch -> (scalar to minimise, values to log)

_TIMEOUT = timedelta(days=7)  # a dead process raises at once; a slow one is waited for
_ALONE = "unset RANK, WORLD_SIZE, LOCAL_RANK to run one process"
_rank, _size = 0, 1
_dist: Any = None  # torch.distributed; `setup` imports it where there are several processes


def torchrun_env(name: str) -> int:
    """The integer that torchrun set for this process, such as RANK or LOCAL_RANK; 0 where one process runs alone."""
    return int(os.environ.get(name, 0)) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 0


def launch_id() -> str:
    """The id of this torchrun launch, the same after a restart of its processes; empty without one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return name if name != "none" else ""  # torchrun's value where no --rdzv-id was given


def rank() -> int:
    return _rank


def size() -> int:
    return _size


def is_main() -> bool:
    return _rank == 0


def setup() -> None:
    """Join the other processes that torchrun started; without torchrun do nothing."""
    global _rank, _size, _dist
    if torchrun_env("WORLD_SIZE") < 2 or _size > 1:
        return
    import torch
    from torch.distributed.rendezvous import rendezvous

    _dist = torch.distributed
    # Waiting in C++ does not run Python's signal handlers, and there is nothing to save yet.
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    waiting = f"waiting for the other processes (WORLD_SIZE={os.environ['WORLD_SIZE']}); start them, or {_ALONE}"
    notice = threading.Timer(10, log.warning, [waiting])  # seconds
    notice.start()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, _rank, _size = next(rendezvous("env://", timeout=_TIMEOUT))
        # After a restart the store still holds the addresses of the dead processes: each attempt has its own names.
        store = _dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        _dist.init_process_group(backend, store=store, rank=_rank, world_size=_size, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"the processes cannot reach each other ({reason}); check MASTER_ADDR and MASTER_PORT, or set "
                       f"GLOO_SOCKET_IFNAME") from error  # fmt: skip
    finally:
        notice.cancel()
    for number, handler in handlers.items():  # the main process saves a checkpoint; the others end with it
        signal.signal(number, signal.SIG_IGN if _rank else handler)


def shutdown() -> None:
    """Leave the process group of several processes."""
    _dist.destroy_process_group()


def peer_is_gone(error: BaseException) -> bool:
    """Whether an error of torch says that another process has died."""
    if _size == 1 or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, _dist.DistError) or "gloo" in str(error) or "by peer" in str(error)


def on_main(action: Callable[[], T]) -> T:
    """Run `action` on the main process alone; its result on every process."""
    if _size == 1:
        return action()
    results: list[Any] = [action() if is_main() else None]
    _dist.broadcast_object_list(results, src=0)
    return results[0]


@contextlib.contextmanager
def local_main_first() -> Iterator[None]:
    """The first process of each machine runs the block before the others of that machine."""
    if _size > 1 and torchrun_env("LOCAL_RANK"):
        _dist.barrier()
    yield
    if _size > 1 and not torchrun_env("LOCAL_RANK"):
        _dist.barrier()


def all_reduce(values: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The sums of each process's values, in one message; the values themselves on one process."""
    if _size == 1:
        return values
    import torch

    flat = torch.cat([value.flatten() for value in values.values()])
    _dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in values.values()])
    return {name: part.view_as(value) for (name, value), part in zip(values.items(), parts)}


def data_parallel(loss: Any, model: Any, example: "Tensor") -> Loss:
    """`loss`, a module, on one process; on several, a loss that computes this process's slice of a batch.

    Backward through the loss returned gives every process the gradients of the whole batch
    (DistributedDataParallel), and the values returned are those of the whole batch. Noise is drawn for the whole
    batch and sliced, so the run equals that of one process up to the rounding of sums. `example` is any batch.
    """
    if _size == 1:
        return loss
    import torch

    # Gradients of images with channels last; the weights that they are copied for are small.
    warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)
    DDP = torch.nn.parallel.DistributedDataParallel
    averaging = DDP(loss, forward_sync_buffers=False, gradient_as_bucket_view=True)
    # A discarded pass fixes the order in which gradients are summed: a resumed run would sum in another order.
    with torch.random.fork_rng([example.device] if example.device.type == "cuda" else []):
        averaging(example)[0].backward()
    averaging.zero_grad()

    def loss_of_slice(batch: "Tensor") -> "tuple[Tensor, dict[str, Tensor]]":
        part, share = batch_slice(len(batch), _rank, _size)
        with noise_of_slice(model, len(batch), part):
            scalar, values = averaging(batch[part])
        # The averaging counts all slices as equal.
        return scalar * (share * _size), all_reduce({name: value * share for name, value in values.items()})

    return loss_of_slice


def batch_slice(batch: int, rank: int, size: int) -> tuple[slice, float]:
    """The images of a batch that a process computes, and their share of it; where none is left the first, share 0."""
    first, last = batch * rank // size, batch * (rank + 1) // size
    return (slice(first, last), (last - first) / batch) if first < last else (slice(0, 1), 0.0)


@contextlib.contextmanager
def noise_of_slice(model: Any, batch: int, part: slice) -> Iterator[None]:
    """Inside, the model draws noise for the whole batch and uses that of its slice: the noise of one process."""
    model.randn_like = lambda x: x.new_empty(batch, *x.shape[1:]).normal_()[part]
    model.rand_like = lambda x: x.new_empty(batch, *x.shape[1:]).uniform_()[part]
    yield
    del model.randn_like, model.rand_like  # the class's own again
