"""How long Python takes for the operators of a training step, without its convolutions.

    python -m tests.gpu_rehearsal.host_time

Without a CUDA graph, a step takes at least as long as the host needs to launch its kernels. Here the launches end in
nothing (`device.py`), and volumes of eight voxels leave PyTorch's own operators little to compute. Convolutions are
replaced, and the time in them is left out. What a GPU adds is the driver's part of each launch, 2 to 3 µs.

Times are of the CPU, in which other processes do not count, and neither does reading the clock.
"""

import argparse
import contextlib
import functools
import statistics
import tempfile
import time
from collections import defaultdict

import torch

# milliseconds of the whole step
TARGET = 4.0
STEPS = 200
WARM_UP = 20
# calls of an empty function, by which one can tell how busy the machine is
EMPTY_CALLS = 10_000
CLOCK_READS = 1000
SHAPE = (2, 2, 2)
# host time does not depend on it, but the optimiser's arithmetic on a CPU does
BASE_CHANNELS = 1


class Clock:
    """Seconds and calls by name, of one step after the other.

    What is timed within something else counts for both, except for `convolutions`, which count for nothing else.
    """

    def __init__(self):
        self.steps, self.reads = [], 0
        start = time.thread_time()
        for _ in range(CLOCK_READS):
            time.thread_time()
        # in a virtual machine it can be as long as a launch
        self.seconds_per_read = (time.thread_time() - start) / CLOCK_READS
        self.start_step()

    def read(self):
        """Seconds of this thread, without those for reading them."""
        now = time.thread_time() - self.reads * self.seconds_per_read
        self.reads += 1
        return now

    def start_step(self):
        self.seconds, self.calls = defaultdict(float), defaultdict(int)
        self.steps.append((self.seconds, self.calls))

    @contextlib.contextmanager
    def time(self, name):
        start, left_out = self.read(), self.seconds["convolutions"]
        yield
        self.seconds[name] += self.read() - start
        if name != "convolutions":
            self.seconds[name] -= self.seconds["convolutions"] - left_out
        self.calls[name] += 1

    def timed(self, name, function):
        """The function, which is timed at every call."""

        @functools.wraps(function)
        def run(*args, **kwargs):
            with self.time(name):
                return function(*args, **kwargs)

        return run

    def milliseconds(self, name):
        """The median of all steps, and the calls in a step."""
        return statistics.median(1e3 * seconds[name] for seconds, _ in self.steps), self.steps[-1][1][name]


def replace_convolutions(clock, dtype):
    """Lets the network's convolutions return new memory of the input's extent, and their gradients too."""
    from vnet_fast.nn import convolution

    class Convolution(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, channels):
            ctx.save_for_backward(x, weight)
            shape = (x.shape[0], channels, *x.shape[2:])
            return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last_3d)

        @staticmethod
        def backward(ctx, grad_y):
            with clock.time("convolutions"):
                x, weight = ctx.saved_tensors
                return torch.empty_like(x) if ctx.needs_input_grad[0] else None, torch.empty_like(weight), None

    def convolve(module, x, weight, bias):
        with clock.time("convolutions"):
            return Convolution.apply(x, weight, module.out_channels)

    convolution._convolve = convolve


def timed_step(clock, dtype):
    """A training step of which the parts are timed, as a function without arguments."""
    from tests.gpu_rehearsal.configurations import STORED, fused_optimizer
    from vnet_fast.nn import convolution, vnet
    from vnet_fast.nn.losses import DiceLoss
    from vnet_fast.nn.vnet import VNet
    from vnet_fast.ops.augment import augment
    from vnet_fast.training.step import Step

    replace_convolutions(clock, dtype)
    for module, name in ((convolution, "add_prelu"), (vnet, "add_prelu_join")):
        setattr(module, name, clock.timed(f"{name}, forward", getattr(module, name)))
    torch.Tensor.backward = clock.timed("backward pass", torch.Tensor.backward)
    model = VNet(base_channels=BASE_CHANNELS)
    # so that nothing is padded
    model.size_multiples = (1, 1, 1)
    optimizer = fused_optimizer(model, "sgd")
    optimizer.step = clock.timed("update", optimizer.step)
    prepare = clock.timed("augment", functools.partial(augment, num_classes=2, dtype=dtype))
    step = Step(model, clock.timed("Dice loss, forward", DiceLoss.paper()), optimizer, dtype, prepare)
    ranks, masks = torch.zeros(STORED, *SHAPE, dtype=torch.int16), torch.zeros(STORED, *SHAPE, dtype=torch.uint8)
    numbers, control_points = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2, 5, 5, 5)
    inputs = ranks, torch.zeros(STORED, 1 << 16), masks, numbers, numbers, numbers > 0, control_points
    return clock.timed("whole step", functools.partial(step, *inputs))


def call_empty_function():
    """What a core is timed with."""

    def empty():
        pass

    for _ in range(EMPTY_CALLS):
        empty()


def measure(steps=STEPS):
    """Runs steps on a pretended device and prints the table."""
    clock = Clock()
    step = timed_step(clock, torch.bfloat16)
    for _ in range(WARM_UP):
        step()
    clock.steps.clear()
    for _ in range(steps):
        clock.start_step()
        step()
        with clock.time("empty"):
            call_empty_function()
    print(f"milliseconds of the host in a step of the paper's network in bfloat16, medians of {steps}, no convolutions")
    whole, rest = clock.milliseconds("whole step")[0], 0.0
    for name in (
        "augment",
        "add_prelu, forward",
        "add_prelu_join, forward",
        "Dice loss, forward",
        "backward pass",
        "update",
    ):
        milliseconds, calls = clock.milliseconds(name)
        rest += milliseconds
        print(f"{name:24} {milliseconds:7.3f}   {calls:2} calls, {1e3 * milliseconds / max(calls, 1):6.1f} µs each")
    print(f"{'rest of the step':24} {whole - rest:7.3f}")
    print(f"{'whole step':24} {whole:7.3f}   target {TARGET}")
    print(f"for comparison, {EMPTY_CALLS} calls of an empty function: {clock.milliseconds('empty')[0]:.3f}")


def main():
    from tests.gpu_rehearsal import device

    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    steps = parser.parse_args().steps
    if reason := device.missing():
        parser.error(reason)
    with tempfile.TemporaryDirectory() as folder:
        code = f"from tests.gpu_rehearsal import host_time\nhost_time.measure({steps})"
        result = device.Stub(folder).run(code, timeout=600)
    print(result.stdout, end="")
    if result.returncode:
        parser.error(result.stderr)


if __name__ == "__main__":
    main()
