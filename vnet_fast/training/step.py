"""One training step: eager, or one CUDA graph."""

import functools

import torch

from vnet_fast.devices import mixed_precision

# Iterations before the graph is captured: in the first, cuDNN chooses its algorithms, kernels are compiled
# and the optimiser makes its state; in the second all is as it stays; one to spare.
WARM_UP = 3
# below it float16's scaler has given up: gradients overflow that are not even scaled up
SMALLEST_SCALE = 1.0


class Step:
    """Batch, forward pass, loss, backward pass and update.

    With `graph`, on a CUDA device, the first iterations run eagerly and the next is captured: from then
    on an iteration is one replay. Inputs of another shape run eagerly between replays. Where capture
    fails, `refusal` says why, and all iterations run eagerly.

    Args:
        model: the network.
        loss: called with (logits, target).
        optimizer: over the model's parameters, as `make_optimizer` returns it where a graph is wanted.
        autocast: the dtype of mixed precision, or None for full precision.
        prepare: None, or what makes (image, target) of the inputs, within the step.
        graph: whether a CUDA graph is wanted; without a CUDA device there is none.
    """

    def __init__(self, model, loss, optimizer, autocast=None, prepare=None, graph=False):
        self.model, self.loss, self.optimizer, self.autocast = model, loss, optimizer, autocast
        self.prepare = prepare
        self.device = next(model.parameters()).device
        # float16 gradients underflow unscaled; bfloat16 has float32's range
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=autocast is torch.float16)
        self.refusal = None
        self.wants_graph = graph and self.device.type == "cuda"
        self._warmed, self._graph, self._inputs, self._loss = 0, None, None, None

    def __call__(self, *inputs):
        """One update.

        Args:
            *inputs: what `prepare` takes; without it an image (N, C, D, H, W) and a target
                (N, 1, D, H, W) of labels. On the model's device.

        Returns:
            the loss, a scalar tensor that is not waited for.
        """
        if not self.wants_graph:
            return self._iterate(inputs)
        if self._inputs is None:
            self._inputs = tuple(tensor.clone() for tensor in inputs)
        if _forms(inputs) != _forms(self._inputs):
            return self._iterate(inputs)
        for static, given in zip(self._inputs, inputs, strict=True):
            static.copy_(given)
        if self._graph is None and self._warmed < WARM_UP:
            self._warmed += 1
            return on_side_stream(lambda: self._iterate(self._inputs))
        if self._graph is None and not self._capture():
            return self._iterate(inputs)
        self._graph.replay()
        # the next replay overwrites it
        return self._loss.clone()

    @property
    def captured(self):
        """Whether iterations are replays of a graph."""
        return self._graph is not None

    def _iterate(self, inputs):
        # gradients that were None are written, not added to: the graph needs no pass that clears them
        self.optimizer.zero_grad(set_to_none=True)
        image, target = self.prepare(*inputs) if self.prepare else inputs
        with mixed_precision(self.device, self.autocast):
            logits = self.model(image)
        loss = self.loss(logits, target)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def _capture(self):
        scale = self.scaler.state_dict()
        self.optimizer.zero_grad(set_to_none=True)
        try:
            self._graph, self._loss = captured(lambda: self._iterate(self._inputs))
        except RuntimeError as error:
            # nothing has run; what the optimiser and the scaler noted of the iteration is undone
            self.optimizer.zero_grad(set_to_none=True)
            for name in ("grad_scale", "found_inf"):
                # the scaler takes them away where the optimiser's step returns
                if hasattr(self.optimizer, name):
                    delattr(self.optimizer, name)
            self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.scaler.is_enabled())
            self.scaler.load_state_dict(scale)
            self.wants_graph = False
            self.refusal = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return self._graph is not None

    def still_scales(self):
        """Whether float16's scaler may yet find a scale at which nothing overflows."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= SMALLEST_SCALE

    def release(self):
        """Gives up the graph and the gradients, and with them their memory."""
        self._graph, self._inputs, self._loss, self._warmed = None, None, None, 0
        self.optimizer.zero_grad(set_to_none=True)

    def set_learning_rate(self, rate):
        """Sets the rate of the iterations to come; each group's own is `rate` times its `scale`."""
        for group in self.optimizer.param_groups:
            value = rate * group.get("scale", 1.0)
            if isinstance(group["lr"], torch.Tensor):
                # a graph reads it where it lies
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def state_dict(self):
        """What a checkpoint keeps beside the weights: plain tensors and types."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state):
        """Restores what `state_dict` returned, on any device and in any precision.

        Raises:
            KeyError, ValueError: if it is of another network or optimiser.
        """
        # the groups' settings stay: which are tensors, for a graph to read, depends on the device
        groups = self.optimizer.state_dict()["param_groups"]
        if [group["params"] for group in groups] != [group["params"] for group in state["optimizer"]["param_groups"]]:
            raise ValueError("the optimiser's state is of other parameters")
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        # a graph would go on with the tensors that these replace
        self._graph, self._warmed = None, 0
        if state["scaler"]:
            # empty after a run in another precision
            self.scaler.load_state_dict(state["scaler"])


def on_side_stream(function):
    """Calls a function on a stream of its own, as iterations before a capture must run."""
    current, stream = torch.cuda.current_stream(), _side_stream(torch.cuda.current_device())
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = function()
    current.wait_stream(stream)
    return result


@functools.cache
def _side_stream(device):
    # one for all: the memory of each stream is kept apart
    return torch.cuda.Stream(device)


def captured(function):
    """A CUDA graph of what a function launches, and what it returned, which each replay fills anew."""
    graph = torch.cuda.CUDAGraph()
    # other threads may go on allocating, as those that pin memory do
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return graph, result


def _forms(tensors):
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def make_optimizer(model, name, learning_rate, momentum, weight_decay):
    """The optimiser, its rates as in the authors' release: with SGD biases learn twice as fast and do
    not decay.

    On a CUDA device it is one kernel, and the learning rate of each group a tensor that a graph reads.
    On a CPU PyTorch's fused optimisers copy weights that are channels-last: the loop takes half the time.

    Args:
        model: whose parameters it updates.
        name: `sgd` or `adamw`.
        learning_rate: of the first iteration.
        momentum: of SGD.
        weight_decay: of weights; biases have none.
    """
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    biases = [weight for key, weight in model.named_parameters() if key.endswith("bias")]
    others = [weight for key, weight in model.named_parameters() if not key.endswith("bias")]
    groups = [
        {"params": others, "weight_decay": weight_decay, "scale": 1.0},
        {"params": biases, "weight_decay": 0.0, "scale": 2.0 if name == "sgd" else 1.0},
    ]
    for group in groups:
        rate = learning_rate * group["scale"]
        group["lr"] = torch.tensor(rate, device=device) if on_gpu else rate
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=on_gpu, capturable=on_gpu)
    optimizer = torch.optim.SGD(groups, momentum=momentum, fused=on_gpu)
    if momentum:
        # fused, PyTorch leaves them unwritten where float16's scaler skips the first update
        for group in optimizer.param_groups:
            for weight in group["params"]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer
