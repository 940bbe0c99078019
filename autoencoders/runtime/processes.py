"""One run on several processes: torchrun starts them, each takes its share of every batch, and the sums are one run's.

The first process alone speaks and writes; the others only compute. A script calls `join` once; without torchrun there
is one process, its share is everything, and nothing here does anything. Torch is imported when there are several.
"""

import contextlib
import json
import os
import platform
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from autoencoders.runtime.errors import Fault

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

T = TypeVar("T")
_PATIENCE = timedelta(days=7)  # one that has died is noticed at once, and one that is slow is waited for
_SPEECH = 30.0  # seconds that the first process of a machine gets to say what is wrong with the command line
_rank, _size = 0, 1
_store: Any = None  # a few words that all processes can read, also when one of them has gone


class Share(NamedTuple):
    """Which images of a batch of so many are this process's, and how many of them count.

    Where there is no image left for a process it takes the first, which counts for nothing.
    """

    first: int
    last: int
    batch: int
    images: int

    @property
    def weight(self) -> float:
        """What a mean over this share counts in the mean over the batch."""
        return self.images / self.batch


def launched(name: str) -> int:
    """What torchrun says of this process, such as RANK or LOCAL_RANK; without torchrun 0."""
    by_torchrun = {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()
    return int(os.environ.get(name, 0)) if by_torchrun else 0


def launch() -> str:
    """The name of this launch of torchrun, by which processes that it starts anew know their run; empty without one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return name if name != "none" else ""  # what torchrun calls those that it was given no --rdzv-id for


def size() -> int:
    return _size


def rank() -> int:
    return _rank


def is_first() -> bool:
    return _rank == 0


def share(batch: int, parts: int = 1) -> Share:
    """This process's share of a batch: one after the other, as equal as can be; of one in parts, whole parts."""
    mine = parts_here(parts) if parts > 1 else range(_rank, _rank + 1)
    return part(batch, mine, parts if parts > 1 else _size)


def parts_here(parts: int) -> range:
    """The numbers of the parts of a batch that this process computes."""
    return range(parts * _rank // _size, parts * (_rank + 1) // _size)


def part(batch: int, numbers: range, parts: int) -> Share:
    """These parts, one after the other, of a batch that is cut into so many."""
    first, last = (batch * number // parts for number in (numbers.start, numbers.stop))
    return Share(first, last, batch, last - first) if first < last else Share(0, 1, batch, 0)


def join() -> None:
    """Wait for the other processes that torchrun has started, and be one of them; without torchrun do nothing."""
    global _rank, _size, _store
    if launched("WORLD_SIZE") < 2 or _size > 1:
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    hush("RANK")
    # Who waits for others in C++ hears no signal in Python, and there is nothing yet to save.
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    store, _rank, _size = next(rendezvous("env://", timeout=_PATIENCE))
    _store = dist.PrefixStore(_password(store), store)  # type: ignore[attr-defined]
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backends, store=_store, rank=_rank, world_size=_size, timeout=_PATIENCE)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise Fault(f"the processes cannot reach one another ({reason}); see GLOO_SOCKET_IFNAME, or NCCL's") from error
    for number, handler in handlers.items():  # the first one saves its place; the others end with it
        signal.signal(number, signal.SIG_IGN if _rank else handler)


def _password(store: Any) -> str:
    """A word that these processes share, and those before them did not.

    Processes that torchrun starts anew find the store as the dead have left it, their addresses included. So each other
    process shows the first one a word of its own until it is answered with the first one's.
    """
    mine = uuid.uuid4().hex
    if _rank:
        store.set(f"ask/{_rank}", mine)
        word: str = store.get(f"answer/{mine}").decode()
        store.set(f"thanks/{word}/{_rank}", "")
        return word
    waiting = list(range(1, _size))
    while waiting:
        for other in waiting:
            if store.check([f"ask/{other}"]):
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", mine)
        time.sleep(0.02)
        waiting = [other for other in waiting if not store.check([f"thanks/{mine}/{other}"])]
    return mine


def hush(name: str) -> None:
    """Let nothing be heard of a process that is not the first by the number called `name`."""
    if launched(name):
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (it lives as long as the process)


def leave() -> None:
    """Part from the others when all is done."""
    if _size > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


def last_words(message: str, status: int) -> tuple[str, int]:
    """The error that the run ends with: that of the process which failed first, for the others fail because of it."""
    if launched("LOCAL_RANK") and _size == 1:  # not joined yet: let the first one say it before torchrun ends us all
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_SPEECH)
    if launched("LOCAL_RANK") != _rank:
        message += f" (on {platform.node()})"
    with contextlib.suppress(Exception):  # without a store, or when that has gone too, they are our own
        message, status = json.loads(_store.compare_set("last words", "", json.dumps([message, status])))
    return message, status


def broken(error: BaseException) -> bool:
    """Whether an error says that another process has gone."""
    if _size == 1:
        return False
    import torch.distributed as dist

    if isinstance(error, Fault):
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "by peer" in str(error)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside of it this process works by itself, as if there were no others."""
    global _rank, _size
    before, (_rank, _size) = (_rank, _size), (0, 1)
    try:
        yield
    finally:
        _rank, _size = before


def first(act: Callable[[], T]) -> T:
    """What `act` gives on the first process, for all of them."""
    if _size == 1:
        return act()
    import torch.distributed as dist

    given: list[Any] = [None]
    if is_first():
        with alone():
            given = [act()]
    dist.broadcast_object_list(given, src=0)
    result: T = given[0]
    return result


def gathered(value: T) -> list[T]:
    """The value of every process, in their order; who asks has waited for all of them."""
    values: list[Any] = [value] * _size
    if _size > 1:
        import torch.distributed as dist

        dist.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def local_first() -> Iterator[None]:
    """The first process of every machine goes through this before its others."""
    if launched("LOCAL_RANK"):
        gathered(None)
    try:
        yield
    finally:
        if not launched("LOCAL_RANK"):
            gathered(None)


def summing(*tensors: "Tensor") -> "Callable[[], list[Tensor]]":
    """Begin to add up tensors over the processes; what is returned waits for the sums."""
    if _size == 1:
        return lambda: list(tensors)
    import torch
    import torch.distributed as dist

    flat = torch.cat([tensor.flatten() for tensor in tensors])
    work = dist.all_reduce(flat, async_op=True)

    def sums() -> "list[Tensor]":
        work.wait()
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors)]

    return sums


def add_up(*arrays: "np.ndarray") -> None:
    """Let arrays hold their sums over the processes."""
    if _size > 1:
        import torch
        import torch.distributed as dist

        for array in arrays:
            dist.all_reduce(torch.from_numpy(array))


def spread(loss: "nn.Module", images: "Tensor") -> "nn.Module":
    """A loss, from images to (scalar, anything), whose gradients are averaged over the processes.

    Gradients are put into the order in which they are added up after the first backward pass. That is done here, in a
    pass that counts for nothing, or a resumed run would add them in another order than one never stopped.
    """
    import torch

    averaging = torch.nn.parallel.DistributedDataParallel(
        loss, forward_sync_buffers=False, gradient_as_bucket_view=True
    )
    with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
        averaging(images)[0].backward()
    averaging.zero_grad()
    return averaging
