"""The small tensors on which each operation is compared with its definition, see `trials`."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)
# what is compared, what the operation gave, and what is right
Pairs = Iterator[tuple[str, Tensor | None, Tensor | None]]


def _try_add_prelu(device: torch.device) -> Pairs:
    from vnet_fast.ops.add_prelu import add_prelu, add_prelu_definition

    for dtype in DTYPES:
        for channels, one_channel in ((16, True), (2, False)):
            shape = (2, channels, 5, 6, 7)
            x, residual, grad = (_volume(shape, dtype, device) for _ in range(3))
            if one_channel:
                residual = residual[:, :1].contiguous()
            leaves = [x, torch.randn(channels, device=device), torch.randn(channels, device=device), residual]
            ours = [leaf.clone().requires_grad_() for leaf in leaves]
            # in float64, because a rounded sum may have another sign
            theirs = [leaf.double().requires_grad_() for leaf in leaves]
            y, expected = add_prelu(*ours), add_prelu_definition(*theirs)
            yield f"{dtype} output", y, expected.to(dtype)
            gradients = torch.autograd.grad(y, ours, grad), torch.autograd.grad(expected, theirs, grad.double())
            for leaf, found, wanted in zip(("x", "slope", "bias", "residual"), *gradients, strict=True):
                yield f"{dtype} gradient of {leaf}", found.to(dtype), wanted.to(dtype)


def _try_norm_prelu(device: torch.device) -> Pairs:
    from vnet_fast.ops.norm_prelu import norm_prelu
    from vnet_fast.ops.norm_prelu_definition import Sets, norm_prelu_definition

    for dtype in DTYPES:
        for channels, sets in ((16, Sets(16, True, 1e-5)), (16, Sets(4, False, 1e-5)), (2, Sets(2, False, 1e-5))):
            shape = (2, channels, 5, 6, 7)
            # a mean that is large beside the spread
            x, residual, grad = _volume(shape, dtype, device) + 8, *(_volume(shape, dtype, device) for _ in range(2))
            leaves = [x, *(torch.randn(channels, device=device) for _ in range(3)), residual]
            ours = [leaf.clone().requires_grad_() for leaf in leaves]
            theirs = [leaf.double().requires_grad_() for leaf in leaves]
            y = norm_prelu(ours[0], ours[1], ours[2], ours[3], ours[4], sets)[0]
            expected = norm_prelu_definition(theirs[0], theirs[1], theirs[2], theirs[3], theirs[4], sets)
            yield f"{dtype} output", y, expected.to(dtype)
            gradients = torch.autograd.grad(y, ours, grad), torch.autograd.grad(expected, theirs, grad.double())
            for leaf, found, wanted in zip(("x", "weight", "bias", "slope", "residual"), *gradients, strict=True):
                yield f"{dtype} gradient of {leaf}", found.to(dtype), wanted.to(dtype)


def _try_dice(device: torch.device) -> Pairs:
    from vnet_fast.ops.dice import DiceOptions, dice_sums, dice_sums_definition

    labels = torch.randint(0, 3, (2, 1, 5, 6, 7), dtype=torch.uint8, device=device)
    for dtype in DTYPES:
        for options in (
            DiceOptions("softmax", labels=True, first_class=1, squared=True),
            DiceOptions("sigmoid", labels=True),
            DiceOptions("softmax", labels=True, entropy="softmax", smoothed=True),
            DiceOptions("softmax", labels=True, entropy="sigmoid", gamma=2.0),
        ):
            logits = _volume((2, 3, 5, 6, 7), dtype, device)
            ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
            sums, expected = dice_sums(ours, labels, options), dice_sums_definition(theirs, labels, options)
            yield f"{dtype} sums", sums, expected
            weights = torch.randn_like(expected)
            (grad,), (wanted,) = (
                torch.autograd.grad(sums, ours, weights),
                torch.autograd.grad(expected, theirs, weights),
            )
            yield f"{dtype} gradient", grad, wanted


def _try_augment(device: torch.device) -> Pairs:
    from vnet_fast.ops.augment import augment, augment_definition

    shape = (2, 6, 9, 11)
    ranks = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, device=device)
    tables = torch.randn(2, 65536, device=device)
    masks = torch.zeros(shape, dtype=torch.uint8, device=device)
    masks[:, :, 3:7, 4:8] = 1
    points = torch.randn(2, 2, 5, 5, 5, device=device)
    swapped = torch.tensor([1, 0], device=device)
    for deformed in (False, True):
        flags = torch.full((2,), deformed, device=device)
        image, mask = augment(ranks, tables, masks, swapped, swapped, flags, points, 2)
        wanted = augment_definition(
            ranks[swapped].int() & 0xFFFF, tables[swapped], masks[swapped], points, flags.cpu().numpy(), 2
        )
        yield "image", image, wanted[0]
        if not deformed:
            # at an edge between labels, a rounding decides
            yield "mask", mask, wanted[1]


def _try_transform(device: torch.device) -> Pairs:
    from vnet_fast.ops.transform import transform, transform_definition
    from vnet_fast.ops.transform_rows import trial_rows

    shape = (6, 9, 11)
    ranks = torch.arange(-(2**15), 2**15, 2**16 // 594, dtype=torch.int16, device=device)[None, :594].reshape(1, *shape)
    table = torch.linspace(-2, 3, 65536, device=device)[None]
    mask, points = torch.zeros(1, *shape, dtype=torch.uint8, device=device), torch.randn(1, 2, 5, 5, 5, device=device)
    number = torch.zeros(1, dtype=torch.int64, device=device)
    for row in trial_rows(shape):
        flag = torch.tensor([bool(row[0] != 1)], device=device)
        image, _ = transform(
            ranks, table, mask, number, number, flag, points, torch.from_numpy(row[None]).to(device), 2
        )
        wanted = transform_definition(ranks.int() & 0xFFFF, table, mask, points, flag.cpu().numpy(), row[None], 2)
        yield "image", image, wanted[0]


def _try_patches(device: torch.device) -> Pairs:
    from vnet_fast.ops.patches import patches, patches_definition
    from vnet_fast.ops.transform_rows import trial_rows

    shape, patch, places = (6, 9, 11), (4, 7, 8), np.array([[3, 6, 9, 11]])
    # of two channels
    ranks = torch.arange(-(2**15), 2**15, 2**15 // 597, dtype=torch.int16, device=device)[: 2 * 597].contiguous()
    table = torch.linspace(-2, 3, 65536, device=device) * torch.tensor([[1.0], [0.5]], device=device)
    mask, points = torch.zeros(597, dtype=torch.uint8, device=device), torch.randn(1, 2, 5, 5, 5, device=device)
    number = torch.zeros(1, dtype=torch.int64, device=device)
    for row in trial_rows(shape):
        flag = torch.tensor([bool(row[0] != 1)], device=device)
        both = np.stack([row, row])
        rows = torch.from_numpy(both).to(device)
        where = torch.from_numpy(places).to(device)
        image, _ = patches(ranks, table, mask, where, number, number, flag, points, rows, patch, 2)
        on_host = places, number.cpu().numpy(), number.cpu().numpy(), flag.cpu().numpy()
        wanted = patches_definition(ranks, table, mask, *on_host, points, both, patch, 2)
        yield "image", image, wanted[0]


def _try_sgd(device: torch.device) -> Pairs:
    from vnet_fast.ops.sgd import Weights, sgd, sgd_definition

    rate = torch.tensor(0.1, device=device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        # longer than what a program updates, and short
        numbers = [torch.randn(length, device=device) for length in (5000, 3, 64) for _ in range(3)]
        half = dtype != torch.float32
        ours, theirs = (
            [
                Weights(
                    weight.clone(),
                    gradient.to(dtype),
                    momentum.clone(),
                    torch.zeros_like(weight, dtype=dtype) if half else None,
                )
                for weight, gradient, momentum in zip(*[iter(numbers)] * 3, strict=True)
            ]
            for _ in range(2)
        )
        # Nesterov's momentum where gradients are float16, so that both are tried
        settings = rate, 0.9, 0.01, None, None, dtype == torch.float16
        sgd(ours, *settings)
        for entry in theirs:
            sgd_definition(entry, *settings)
        for found, wanted in zip(ours, theirs, strict=True):
            yield f"{dtype} weight", found.weight, wanted.weight
            yield f"{dtype} momentum", found.momentum, wanted.momentum
            yield f"{dtype} copy", found.copy, wanted.copy


def _try_adamw(device: torch.device) -> Pairs:
    from vnet_fast.ops.adamw import AdamSettings, AdamWeights, adamw, adamw_definition

    rate, decay, off = (torch.tensor(value, device=device) for value in (0.1, 0.9, 0.0))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        # longer than what a program updates, and short
        numbers = [torch.randn(length, device=device) for length in (9000, 3, 64) for _ in range(5)]
        half = dtype != torch.float32
        ours, theirs = (
            [
                AdamWeights(
                    weight.clone(),
                    gradient.to(dtype),
                    momentum.clone(),
                    square.square(),
                    torch.full((), 2.0, device=device),
                    torch.zeros_like(weight, dtype=dtype) if half else None,
                    # where there is no copy, and where the loss is scaled
                    None if dtype == torch.bfloat16 else average.clone(),
                )
                for weight, gradient, momentum, square, average in zip(*[iter(numbers)] * 5, strict=True)
            ]
            for _ in range(2)
        )
        scale, found_inf = (decay, off) if dtype == torch.float16 else (None, None)
        settings = AdamSettings(rate, (0.9, 0.999), 1e-8, 0.01, scale, found_inf, decay)
        adamw(ours, settings)
        for entry in theirs:
            adamw_definition(entry, settings)
        for found, wanted in zip(ours, theirs, strict=True):
            for name in ("weight", "momentum", "square", "copy", "average"):
                yield f"{dtype} {name}", getattr(found, name), getattr(wanted, name)


def _try_convolution(device: torch.device) -> Pairs:
    from vnet_fast.ops.convolution import REWRITES, stack_definition

    for dtype in DTYPES:
        for channels in (16, 3):
            x = _volume((2, channels, 5, 6, 7), dtype, device)
            yield f"{dtype} stacked volume", REWRITES["zstack"].input(x, (5, 5, 5)), stack_definition(x, 5)


# Each uses the kernels of its own operation only, whose trial would otherwise wait for this one.
TRIALS: dict[str, Callable[[torch.device], Pairs]] = {
    "add_prelu": _try_add_prelu,
    "norm_prelu": _try_norm_prelu,
    "dice": _try_dice,
    "augment": _try_augment,
    "transform": _try_transform,
    "patches": _try_patches,
    "sgd": _try_sgd,
    "adamw": _try_adamw,
    "convolution": _try_convolution,
}


def _volume(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last_3d)
