"""The providers that are measured: a network, its precision and layout, and how its steps run."""

import contextlib
import functools
import statistics
import time
from dataclasses import dataclass

import pytest
import torch
import torch._functorch.config

from benchmarks import runtimes
from benchmarks.measure import DEVICE, ON_GPU, SHAPE, synchronize, time_limit
from benchmarks.peers import CommonVNet, PlainVNet, dice_loss
from vnet_fast import DiceLoss, VNet
from vnet_fast.devices import choose_precision, mixed_precision, prepare_gpu
from vnet_fast.ops import cpu_convolution_choice
from vnet_fast.prediction.passes import EAGER_PASSES, Passes
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import Step

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-4, 0.99, 5e-4
HALF, PRECISION = choose_precision("auto", DEVICE)
# the machine's fastest precision, in which floors are computed
FASTEST = HALF or torch.float32
# the largest error of logits against the plain network in float32, relative to their norm
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}
# seconds that torch.compile may take for one provider
COMPILE_LIMIT = 120
# the heading of how many times faster a provider is than any that computes direct sums could be on the machine
TIMES_DIRECT = "times the direct limit"


@dataclass(frozen=True)
class Provider:
    """An implementation whose step or forward pass is measured.

    Args:
        network: a key of NETWORKS.
        amp: whether it runs in mixed precision.
        channels_last: whether its layout is channels-last; vnet_fast's always is.
        compiled: None, or a mode of `torch.compile`.
        graph: whether a step, or a forward pass, is one CUDA graph, for vnet_fast only.
        runtime: None, or a name of `runtimes.MODULES`: the program that runs the network, for prediction on a CPU.
    """

    network: str
    amp: bool = False
    channels_last: bool = False
    compiled: str | None = None
    graph: bool = False
    runtime: str | None = None

    @property
    def ours(self):
        """Whether it is vnet_fast."""
        return self.network == "vnet_fast"

    @property
    def saves_products(self):
        """Whether its convolutions need fewer products than direct sums, for which a floor is the least time."""
        return self.ours and not ON_GPU and cpu_convolution_choice.kernels_run()

    @property
    def autocast(self):
        """The dtype of mixed precision, or None."""
        return HALF if self.amp else None

    def require(self):
        """Skips the benchmark with a reason if the provider can't run."""
        if self.network == "MONAI":
            pytest.importorskip("monai", reason="MONAI is not installed")
        if self.runtime:
            runtimes.require(self.runtime)
        if self.graph and not ON_GPU:
            pytest.skip("a CUDA graph needs a CUDA device")
        if self.amp and HALF is None:
            pytest.skip(PRECISION)

    def model(self):
        """The network with its initial weights, which are always the same."""
        if self.runtime:
            return runtimes.Runtime(self.runtime, self.autocast or torch.float32)
        torch.manual_seed(0)
        model = NETWORKS[self.network]()
        if self.ours:
            return model.to(DEVICE)
        return model.to(DEVICE, memory_format=torch.channels_last_3d if self.channels_last else torch.contiguous_format)

    def loss(self):
        """The loss, a function of logits and target."""
        if self.network == "MONAI":
            return _monai_loss()
        return DiceLoss.paper() if self.ours else dice_loss


def _plain():
    model = PlainVNet()
    torch.manual_seed(0)
    model.take_weights(VNet())
    return model


def _monai():
    from monai.networks.nets import VNet as MonaiVNet

    return MonaiVNet(out_channels=2)


def _monai_loss():
    import monai.losses

    return monai.losses.DiceLoss(include_background=False, to_onehot_y=True, softmax=True, squared_pred=True)


NETWORKS = {"vnet_fast": VNet, "plain": _plain, "common": CommonVNet, "MONAI": _monai}
# the provider that the others are compared with
BASELINE = "plain PyTorch, float32"
EAGER = {
    BASELINE: Provider("plain"),
    "plain PyTorch, AMP": Provider("plain", amp=True),
    "plain PyTorch, AMP, channels-last": Provider("plain", amp=True, channels_last=True),
    "common V-Net, float32": Provider("common"),
    "common V-Net, AMP, channels-last": Provider("common", amp=True, channels_last=True),
    "MONAI VNet as shipped": Provider("MONAI"),
    "MONAI VNet, AMP, channels-last": Provider("MONAI", amp=True, channels_last=True),
    "vnet_fast, float32": Provider("vnet_fast"),
    "vnet_fast, AMP": Provider("vnet_fast", amp=True),
}
# whose step, or forward pass, is one CUDA graph
GRAPH = {"vnet_fast, AMP, graph": Provider("vnet_fast", amp=True, graph=True)}
COMPILED_ON_CPU = {"plain PyTorch, float32, torch.compile default": Provider("plain", compiled="default")}
# of prediction on a CPU
OTHER_PROGRAMS = {
    "ONNX Runtime, float32": Provider("plain", runtime=runtimes.ONNX_RUNTIME),
    "OpenVINO, float32": Provider("plain", runtime=runtimes.OPENVINO),
    "OpenVINO, bfloat16": Provider("plain", runtime=runtimes.OPENVINO, amp=True),
}


class PlainTraining:
    """Training iterations of a plain PyTorch loop."""

    def __init__(self, provider):
        self.provider = provider
        self.model, self.loss = provider.model(), provider.loss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        self.forward, self.logits = self.model, None
        if provider.compiled:
            torch._dynamo.reset()
            self.forward = torch.compile(self.model, mode=provider.compiled)
            self.loss = torch.compile(self.loss, mode=provider.compiled)

    def __call__(self, image, target):
        """Makes one update; returns the loss."""
        self.optimizer.zero_grad()
        with mixed_precision(DEVICE, self.provider.autocast):
            self.logits = self.forward(image)
            # the name is for the profiler
            with torch.profiler.record_function("loss"):
                loss = self.loss(self.logits, target)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def first(self, image, target):
        """Makes the first update; returns the logits before it."""
        if not self.provider.compiled:
            logits = _logits(self.model, image, self.provider.autocast)
            self(image, target)
            return logits
        # a backward pass runs once here, so it may reuse the buffers of the forward pass
        with torch._functorch.config.patch(donated_buffer=True), time_limit(COMPILE_LIMIT):
            self(image, target)
            synchronize()
        # a copy, because the next iteration of a compiled network may overwrite them
        return self.logits.detach().clone()


class OurTraining:
    """Training iterations of vnet_fast's own step."""

    def __init__(self, provider):
        self.model = provider.model()
        optimizer = make_optimizer(self.model, "sgd", LEARNING_RATE, MOMENTUM, WEIGHT_DECAY)
        self.step = Step(self.model, provider.loss(), optimizer, provider.autocast, graph=provider.graph)

    def __call__(self, image, target):
        """Makes one update; returns the loss."""
        with as_ours():
            return self.step(image, target)

    def first(self, image, target):
        """Makes the first update; returns the logits before it."""
        with as_ours():
            logits = _logits(self.model, image, self.step.autocast)
            self.step(image, target)
        return logits


@contextlib.contextmanager
def as_ours(ours=True):
    """A context in which cuDNN chooses its kernels as in vnet_fast: by its heuristics, without PyTorch's search.

    Args:
        ours: whether that is wanted; if not, nothing changes.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before and not ours
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def exactly(autocast):
    """The context of a check. In float32 it turns off TF32, which would hide mistakes, and cuDNN's search."""
    if autocast is not None:
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)


@torch.no_grad()
def _logits(model, image, autocast):
    with exactly(autocast), mixed_precision(DEVICE, autocast):
        return model(image)


def training_of(provider):
    """The PlainTraining or OurTraining of a provider."""
    return (OurTraining if provider.ours else PlainTraining)(provider)


def predictor_of(provider, model=None):
    """A function from images to logits without gradients, of the provider's network or of `model`."""
    model = (provider.model() if model is None else model).eval()
    forward = model
    if provider.compiled:
        torch._dynamo.reset()
        forward = torch.compile(model, mode=provider.compiled)

    @torch.inference_mode()
    def predict(image):
        with as_ours(provider.ours), mixed_precision(DEVICE, provider.autocast):
            return forward(image)

    return _replayed(predict, model) if provider.graph else predict


def _replayed(predict, model):
    """A function that does what another one does, as prediction runs it; from its first result on by a CUDA graph."""
    passes = Passes()

    def replay(image):
        # eager passes come before the capture
        for _ in range(1 if passes.captured else EAGER_PASSES + 1):
            (logits,) = passes(lambda x: (predict(x),), model, image, None)
        assert passes.captured, "its forward pass is not captured"
        return logits

    return replay


class Beside:
    """Runs and times the baseline before each round of another provider, so that both meet the same state of a machine.

    Args:
        make: returns the baseline, a function of no arguments; None beside the baseline itself, where nothing runs.
    """

    def __init__(self, make):
        self.make, self.seconds, self.failed = make, [], False

    def __call__(self):
        """Runs the baseline once, unless it failed."""
        if self.make is None or self.failed:
            return
        try:
            run = self.make()
            began = time.perf_counter()
            run()
            synchronize()
        except Exception:
            # its own row says why
            self.failed = True
        else:
            self.seconds.append(time.perf_counter() - began)

    def ratio(self, median, warm_up):
        """How many times as long the baseline takes; None if it failed.

        Args:
            median: seconds of the provider.
            warm_up: the number of rounds at the start that do not count.
        """
        if self.failed:
            return None
        return statistics.median(self.seconds[warm_up:]) / median if self.make else 1.0


def limit_cells(provider, seconds, least):
    """The cells of a row that compare a time with the least time of direct sums on this machine.

    Args:
        provider: that was measured.
        seconds: that it takes.
        least: seconds of `floor`.
    """
    if provider.saves_products:
        return {"floor, ms": 1e3 * least, TIMES_DIRECT: least / seconds}
    return {"floor, ms": 1e3 * least, "share of floor, %": 100 * least / seconds}


@functools.cache
def fixed_batch(batch):
    """An image and a target on the device, which are the same for every provider."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, 1, *SHAPE, generator=generator)
    target = (torch.rand(batch, 1, *SHAPE, generator=generator) > 0.9).to(torch.uint8)
    return image.to(DEVICE), target.to(DEVICE)


@functools.cache
def _expected(batch):
    """The logits of the plain network in float32."""
    return _logits(EAGER[BASELINE].model(), fixed_batch(batch)[0], None)


def check_logits(provider, logits):
    """Raises AssertionError if logits of `fixed_batch` differ from those of the plain network.

    Networks of another topology have no reference: their logits need only be finite.
    """
    assert logits.isfinite().all(), "its logits are not finite"
    if provider.network not in ("plain", "vnet_fast"):
        return
    expected = _expected(len(logits))
    error = ((logits.float() - expected).norm() / expected.norm()).item()
    tolerance = TOLERANCE[provider.autocast or torch.float32]
    assert error <= tolerance, f"its logits differ from the plain network's by {100 * error:.2g} % of their norm"


def meta_model(network):
    """A network on the meta device, for `floor`."""
    with torch.device("meta"):
        return NETWORKS[network]()


if ON_GPU:
    prepare_gpu()
    # for the other providers, as their users do; see `as_ours`
    torch.backends.cudnn.benchmark = True
