"""One trial of every operation's kernels on each device, before they are trusted.

A GPU may lack what its kernels need: Triton compiles C at its first launch, which takes a C compiler and Python's
headers; a driver may be too old, and a compiler may be wrong. Each operation is therefore run once on small tensors
and compared with its definition. Kernels that do not compile, launch or agree are replaced by the definitions for
this process, with one line that says why. A trial that passed is remembered on disk.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from vnet_fast.devices import numbered
from vnet_fast.ops import device_store

STORE = "kernels"
# where kernels are tried; on a CPU they run in Triton's interpreter, for tests
TRIED_ON = {"cuda"}
# relative to the largest value: a few roundings
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
DTYPES = (torch.float32, torch.bfloat16)
LOG = logging.getLogger("vnet_fast")
Pairs = Iterator[tuple[str, Tensor | None, Tensor | None]]
_lock = threading.RLock()
# why an operation's kernels are not used on a device, or an empty text
_results: dict[tuple[str, torch.device], str] = {}
# the operations that are being tried, which call their kernels from other threads
_trying: set[str] = set()


def passed(name: str, kernels: ModuleType, device: torch.device) -> bool:
    """Whether an operation's kernels can be trusted on a device; tries them at the first call.

    Args:
        name: of the operation.
        kernels: the module of its kernels.
        device: where they would run.
    """
    result = _results.get((name, device))
    if result is not None:
        return not result
    # fake tensors have a device where there is none
    exists = device.type != "cuda" or torch.cuda.is_available()
    if device.type not in TRIED_ON or name not in TRIALS or not exists or name in _trying:
        return True
    device = numbered(device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # a capture can hold neither compilations nor comparisons; it comes after iterations that tried everything
        return not _results.get((name, device), "not tried")
    with _lock:
        if (name, device) not in _results:
            _try(name, kernels, device)
    return not _results[name, device]


def reason(name: str, device: torch.device) -> str | None:
    """Why an operation's kernels are not used on a device: empty if they are; None if they were not tried."""
    return _results.get((name, numbered(device)))


def forget() -> None:
    """Forgets the trials of this process, but not those on disk."""
    _results.clear()


def repeat(name: str, device: torch.device) -> str:
    """Tries an operation's kernels, whatever was found before; returns what is wrong, or an empty text."""
    device = numbered(device)
    with _lock:
        _results.pop((name, device), None)
        _trying.add(name)
        try:
            _results[name, device] = run(name, device)
        finally:
            _trying.discard(name)
    return _results[name, device]


def _try(name: str, kernels: ModuleType, device: torch.device) -> None:
    digest = _source_digest(kernels)
    if device_store.load(STORE, device).get(name) == digest:
        _results[name, device] = ""
        return
    why = repeat(name, device)
    if why:
        LOG.warning(
            "%s: the kernels of %s are not used (%s); plain PyTorch runs instead, which is slower. "
            "Run `python -m vnet_fast.doctor` to find out more",
            device,
            name,
            why,
        )
    else:
        device_store.save(STORE, device, {name: digest})


def run(name: str, device: torch.device) -> str:
    """Runs an operation's trial; returns what is wrong with its kernels, or an empty text.

    It runs in a thread of its own, because the caller may be within an operator, where nothing is differentiated, or
    within autocast, inference mode or a training pass. All of these belong to a thread.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_run, name, device).result()


def _run(name: str, device: torch.device) -> str:
    try:
        # seeding seeds every GPU
        with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
            torch.manual_seed(0)
            for what, found, expected in TRIALS[name](device):
                problem = _compare(found, expected)
                if problem:
                    return f"{what} {problem}"
    except Exception as error:
        # whatever a compiler, linker or driver raises
        text = " ".join(str(error).split())
        return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    return ""


def _compare(found: Tensor | None, expected: Tensor | None) -> str:
    if found is None or expected is None:
        return "" if found is expected else "is missing"
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"is {found.dtype} {tuple(found.shape)} instead of {expected.dtype} {tuple(expected.shape)}"
    found, wanted = found.detach().double(), expected.detach().double()
    error = ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)).item()
    allowed = TOLERANCE.get(expected.dtype, 0.0)
    # NaN is not below any number
    return "" if error <= allowed else f"differs from its definition by {error:.2g} of the largest value"


def _source_digest(kernels: ModuleType) -> str:
    """Digest of all kernels' sources, which may use one another."""
    folder = Path(kernels.__file__ or "").parent
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


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
    "sgd": _try_sgd,
    "convolution": _try_convolution,
}


def _volume(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last_3d)
