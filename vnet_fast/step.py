"""One training step, and the forward pass of validation and prediction."""

import contextlib

import torch

from vnet_fast.augment import augment


class TrainingData:
    """Training volumes on a device, from which batches are made.

    Args:
        prepared: list of `cache.PreparedCase`, all of one size.
        num_classes: background included; 2 makes all labels above 0 one class.
        device: where the volumes are kept and augmented.
    """

    def __init__(self, prepared, num_classes, device):
        # ranks are kept in 16 bits; torch indexes with signed types only, so they are widened in use
        self.ranks = torch.stack([torch.from_numpy(case.ranks.view("int16")) for case in prepared]).to(device)
        self.tables = torch.stack([torch.from_numpy(case.table) for case in prepared]).to(device)
        self.masks = torch.stack([torch.from_numpy(case.mask) for case in prepared]).to(device)
        if num_classes == 2:
            self.masks.clamp_(max=1)
        self.num_classes = num_classes

    def batch(self, draw):
        """The batch of an `augment.Draw`: image (N, 1, D, H, W) float32, mask (N, 1, D, H, W) uint8."""
        device = self.ranks.device
        cases = torch.from_numpy(draw.cases).to(device)
        return augment(
            self.ranks[cases].to(torch.int32) & 0xFFFF,
            self.tables[torch.from_numpy(draw.intensities_of).to(device)],
            self.masks[cases],
            torch.from_numpy(draw.control_points).to(device),
            draw.deformed,
            self.num_classes,
        )


class Step:
    """Forward pass, loss, backward pass and update, run eagerly.

    Args:
        model: the network.
        loss: called with (logits, target).
        optimizer: over the model's parameters.
        autocast: the dtype of mixed precision, or None for full precision.
    """

    def __init__(self, model, loss, optimizer, autocast=None):
        self.model, self.loss, self.optimizer, self.autocast = model, loss, optimizer, autocast
        device = next(model.parameters()).device
        # float16 gradients underflow unscaled; bfloat16 has float32's range
        self.scaler = torch.amp.GradScaler(device.type, enabled=autocast is torch.float16)

    def __call__(self, image, target):
        """One update.

        Args:
            image: (N, C, D, H, W) on the model's device.
            target: (N, 1, D, H, W) labels.

        Returns:
            the loss, a scalar tensor that is not waited for.
        """
        self.optimizer.zero_grad(set_to_none=True)
        with mixed_precision(image.device, self.autocast):
            logits = self.model(image)
        loss = self.loss(logits, target)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


def mixed_precision(device, dtype):
    """The autocast context of a dtype, or one that does nothing for None."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@torch.inference_mode()
def predict_probabilities(model, image, autocast=None):
    """Softmax probabilities of one volume.

    Args:
        model: the network.
        image: (D, H, W) float32 array, normalised.
        autocast: the dtype of mixed precision, or None.

    Returns:
        (K, D, H, W) float32 array.
    """
    device = next(model.parameters()).device
    volume = torch.from_numpy(image)[None, None].to(device)
    model.eval()
    with mixed_precision(device, autocast):
        logits = model(volume)
    return torch.softmax(logits[0].float(), 0).cpu().numpy()


def choose_device(name):
    """The device of `auto`, `cpu` or `cuda`.

    Raises:
        RuntimeError: if there is no CUDA device where one is asked for.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is available")
    return torch.device(name)


def device_name(device):
    """The name of the processor behind a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def choose_precision(name, device):
    """The dtype of mixed precision.

    Args:
        name: `auto`, `bf16`, `fp16` or `off`.
        device: where the network runs.

    Returns:
        (dtype or None, words for the log).
    """
    if name == "off":
        return None, "float32"
    if name in ("bf16", "fp16"):
        return {"bf16": torch.bfloat16, "fp16": torch.float16}[name], f"mixed precision ({name})"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "mixed precision (bf16)"
        return torch.float16, "mixed precision (fp16: this GPU has no bfloat16 units)"
    if cpu_has_fast_bf16():
        return torch.bfloat16, "mixed precision (bf16)"
    return None, "float32: this CPU has no fast bfloat16, which --amp would use"


def cpu_has_fast_bf16():
    """Whether the CPU multiplies bfloat16 in hardware: AMX or AVX-512 BF16."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
