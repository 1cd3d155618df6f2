"""Training in several processes, which `torchrun` starts."""

import gc
import os
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TextIO, TypeVar

import torch
import torch.distributed

# Imported before there is a process group. When DistributedDataParallel imports it later, the default arguments
# of its functions keep the group from ending (PyTorch 2.13).
import torch.distributed.nn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# the other processes wait while the first one prepares the volumes
TIMEOUT = timedelta(hours=12)
Value = TypeVar("Value")


class Processes:
    """This process and those that train with it; it is alone if `torchrun` did not start it.

    Besides the gradients, the processes exchange values through gloo, which waits for no GPU. Only the first
    process writes to stdout.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self._stdout: TextIO | None = None

    @property
    def several(self) -> bool:
        """Whether more than one process trains."""
        return self.count > 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def start(self, device: torch.device) -> torch.device:
        """Joins the other processes.

        Args:
            device: where the network trains.

        Returns:
            the device of this process: of several GPUs, each process has its own.

        Raises:
            RuntimeError: if a machine has more processes than GPUs, or the device can't be shared.
        """
        if not self.several:
            return device
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"several processes can't train on {device.type}")
        if device.type == "cuda":
            local = int(os.environ.get("LOCAL_RANK", self.rank))
            if local >= torch.cuda.device_count():
                raise RuntimeError(f"{torch.cuda.device_count()} GPUs for process {local + 1} of this machine")
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, timeout=TIMEOUT)
        if not self.is_first:
            self._stdout, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - closed by end()
        return device

    def end(self, failed: bool = False) -> None:
        """Leaves the other processes and ends the communication threads.

        A communication thread that frees a tensor at shutdown aborts Python. Delete the model that `wrap`
        returned first.

        Args:
            failed: whether this process fails. Then it does not wait for the others, which may wait for it in
                the middle of a step; its end tells them.
        """
        if self._stdout is not None:
            sys.stdout.close()
            sys.stdout, self._stdout = self._stdout, None
        if self.several and torch.distributed.is_initialized() and not failed:
            torch.distributed.destroy_process_group()
            gc.collect()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, with its gradients averaged over the processes."""
        if not self.several:
            return model
        # for 1x1x1 weights, whose strides along axes of length 1 mean nothing
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def share_buffers(self, model: nn.Module) -> None:
        """Gives the buffers of the first process to all, such as the running means of batch norm."""
        if self.several:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def first(self, value: Value) -> Value:
        """The first process's value, in all processes."""
        if not self.several:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes, in all processes, in the order of their ranks."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if not self.several:
            return flag
        tensor = torch.tensor(int(flag))
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return bool(tensor)

    def wait(self) -> None:
        """Waits until all processes have come here."""
        self.any(False)

    def share(self, items: Sequence[Value]) -> Sequence[Value]:
        """This process's share of a list."""
        return items[self.rank :: self.count]


def is_lost_process(error: BaseException) -> bool:
    """Whether an exception is PyTorch's for another process that has ended."""
    message = str(error).lower()
    is_connection = any(reason in message for reason in ("connection", "timed out", "peer"))
    lost = ("gloo" in message or "nccl" in message) and is_connection
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and lost)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the processes, differentiable; in a single process the tensor itself.

    Sums are all-reduced forward and backward, so that DDP's average is the gradient of the average loss.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return tensor
    total: Tensor = _AllReduceSum.apply(tensor)
    return total


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _all_reduced(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _all_reduced(grads[0])


def _all_reduced(tensor: Tensor) -> Tensor:
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(tensor)
    return tensor
