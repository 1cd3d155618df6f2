"""Training in several processes, as `torchrun` starts them."""

import gc
import os
import sys
import warnings
from datetime import timedelta

import torch
import torch.distributed

# here, before there is a process group: imported later, as DistributedDataParallel does, its functions
# would have the group as the default of their arguments and keep it from ending (PyTorch 2.13)
import torch.distributed.nn
from torch.nn.parallel import DistributedDataParallel

# the first process prepares the volumes while the others wait
TIMEOUT = timedelta(hours=12)


class Processes:
    """This process and those that train with it; alone where `torchrun` did not start it.

    What the processes tell each other goes through gloo, beside the gradients, and waits for no GPU.
    Of several, only the first writes to stdout.
    """

    def __init__(self):
        self.rank = int(os.environ.get("RANK", 0))
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self._stdout = None

    @property
    def several(self):
        return self.count > 1

    @property
    def is_first(self):
        return self.rank == 0

    def start(self, device):
        """Joins the others.

        Args:
            device: where the network trains.

        Returns:
            the device of this process: with several GPUs each has its own.

        Raises:
            RuntimeError: if there are more processes than GPUs on a machine.
        """
        if not self.several:
            return device
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

    def end(self, failed=False):
        """Leaves the others, and ends the threads that talked to them: one that still let go of a tensor
        of Python's while the interpreter ends would abort the process. What `wrap` returned must be let
        go of before.

        Args:
            failed: whether this process fails: then it does not wait for them, who may wait for it in the
                middle of a step, and its end tells them.
        """
        if self._stdout is not None:
            sys.stdout.close()
            sys.stdout, self._stdout = self._stdout, None
        if self.several and torch.distributed.is_initialized() and not failed:
            torch.distributed.destroy_process_group()
            gc.collect()

    def wrap(self, model):
        """The model that averages its gradients over the processes."""
        if not self.several:
            return model
        # of 1x1x1 weights, whose strides along axes of length 1 mean nothing
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def first(self, value):
        """The first process's value, on all."""
        if not self.several:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def gathered(self, value):
        """The values of all processes, on all, in the order of their ranks."""
        if not self.several:
            return [value]
        values = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def any(self, flag):
        """Whether the flag is set on any of them."""
        if not self.several:
            return flag
        tensor = torch.tensor(int(flag))
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return bool(tensor)

    def wait(self):
        """Waits until all have come here."""
        self.any(False)

    def share(self, items):
        """Those of a list that are this process's."""
        return items[self.rank :: self.count]


def is_loss_of_another(error):
    """Whether an exception is PyTorch's for a process that is no longer there."""
    words = str(error).lower()
    lost = ("gloo" in words or "nccl" in words) and ("connection" in words or "timed out" in words or "peer" in words)
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and lost)


def all_reduce_sum(tensor):
    """The sum of a tensor over the processes that train together, differentiable; alone the tensor itself.

    Each process's loss is made of the sums of all, and the gradients that come back are summed too: what
    averaging over the processes then makes of them is the gradient of the average loss.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return tensor
    return _Sum.apply(tensor)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return _summed(tensor)

    @staticmethod
    def backward(ctx, grad):
        return _summed(grad)


def _summed(tensor):
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(tensor)
    return tensor
