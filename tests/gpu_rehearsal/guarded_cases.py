"""Launches on ragged shapes for `guarded.py`, by modules of kernels.

A case is a function of the guarded memory. New tensors are guarded, and `memory.placed` guards an existing one.
"""

import functools
import importlib
import itertools
import math

import numpy as np
import torch

from vnet_fast.ops.dice import DiceOptions
from vnet_fast.ops.transform_rows import identity_row, trial_rows

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1, 1), (3, 5, 7))
# of rows that are cut into several tiles: their last block is as ragged as that of (3, 5, 7)
SHAPES_OF_WIDE_ROWS = ((1, 1, 1), (1, 3, 3))
SHORT = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def kernels(module):
    """A module of kernels, which may have been replaced."""
    return importlib.import_module(f"vnet_fast.kernels.{module}")


def volume(memory, channels, shape, dtype, batch=2):
    """Random numbers, (N, C, D, H, W), channels-last."""
    numbers = torch.randn(batch, *shape, channels).to(dtype)
    return memory.placed(numbers.permute(0, 4, 1, 2, 3))


def add_prelu_case(channels, shape, dtype, residual, joined, gradients, memory):
    """Forward and backward pass, the latter by way of both kinds of second sums."""
    module = kernels("add_prelu")
    x = volume(memory, channels, shape, dtype)
    slope, bias = (torch.rand(channels) for _ in range(2))
    other, out = None, None
    if residual:
        other = volume(memory, channels if residual == "full" else 1, shape, dtype).contiguous()
        other = other.contiguous(memory_format=torch.channels_last_3d) if residual == "full" else other
    if joined:
        wide = volume(memory, 2 * channels, shape, dtype)
        out, before = wide[:, :channels], wide[:, channels:].clone()
    y, negative = module.add_prelu(x, slope, bias, other, out)
    assert bool(y.isfinite().all())
    grads = [volume(memory, channels, shape, dtype)]
    grads += [volume(memory, 2 * channels, shape, dtype)[:, channels:] for _ in range(gradients - 1)]
    results = module.add_prelu_backward(grads, y, negative, slope)
    assert all(bool(result.isfinite().all()) for result in results)
    if joined:
        assert torch.equal(wide[:, channels:], before)


def norm_prelu_case(channels, shape, dtype, residual, joined, sets, memory):
    """Forward and backward pass; the gradient is a slice if the output is."""
    module = kernels("norm_prelu")
    x = volume(memory, channels, shape, dtype)
    weight, bias, slope = (torch.rand(channels) for _ in range(3))
    other, out = None, None
    if residual:
        other = volume(memory, channels if residual == "full" else 1, shape, dtype)
        other = other if residual == "full" else other.contiguous()
    if joined:
        wide = volume(memory, 2 * channels, shape, dtype)
        out, before = wide[:, :channels], wide[:, channels:].clone()
    leaves = x, weight, bias, slope, other
    assert module.supports(*leaves, sets, out)
    y, mean, variance = module.norm_prelu(*leaves, sets, out)
    results = module.norm_prelu_backward(y, *leaves, mean, variance, sets)
    assert all(bool(result.isfinite().all()) for result in (y, mean, variance, *results) if result is not None)
    if joined:
        assert torch.equal(wide[:, channels:], before)


def norm_prelu_sums_case(channels, shape, sets, memory):
    """Statistics and gradients of what the kernels of two samples have reduced."""
    module, layouts = kernels("norm_prelu_sums"), kernels("norm_prelu_layouts")
    x = volume(memory, channels, shape, torch.float32)
    plan = layouts.plan_of(x, sets, None, None)
    mean, variance = torch.empty(plan.statistics), torch.empty(plan.statistics)
    module.combine_statistics(x, torch.rand(2, *plan.partials), mean, variance, plan)
    terms, vectors = module.combine_gradients(torch.randn(3, *plan.partials), torch.rand(channels), plan)
    assert all(bool(result.isfinite().all()) for result in (mean, variance, terms, *vectors))


def partial_sums_case(layers, memory):
    """The sums of layers, (programs, width, channels), each by itself and all in one launch."""
    module, placed, first = kernels("partial_sums"), [], 0
    for programs, width, channels in layers:
        module.sum_partials(torch.randn(2, programs, width), channels)
        placed.append((first, programs, width, channels))
        first += 2 * programs * width
    module.sum_all_partials(torch.randn(first), tuple(placed))


def dice_case(channels, shape, dtype, layout, options, target_type, cropped, memory):
    """Forward and backward pass; cropped logits have those of other voxels between them."""
    module = kernels("dice")
    margin = 2 if cropped else 0
    logits = torch.randn(2, channels, *(length + margin for length in shape)).to(dtype).contiguous(memory_format=layout)
    logits = memory.placed(logits[:, :, : shape[0], 1 : shape[1] + 1, : shape[2]] if cropped else logits)
    target = torch.randint(0, 2, (2, 1 if options.labels else channels, *shape)).to(target_type)
    target = memory.placed(target.contiguous(memory_format=torch.contiguous_format if options.labels else layout))
    assert module.supports(logits, target, options)
    sums = module.dice_sums(logits, target, options)
    grad = module.dice_sums_backward(sums, logits, target, options)
    assert bool(sums.isfinite().all() and grad.isfinite().all())


def augment_case(shape, dtype, deformed, memory):
    """A batch of three of two stored volumes, the last of them among them."""
    ranks = torch.randint(-(2**15), 2**15, (2, *shape)).to(torch.int16)
    masks = torch.randint(0, 4, (2, *shape)).to(torch.uint8)
    cases, intensities_of = torch.tensor([1, 0, 1]), torch.tensor([0, 1, 1])
    flags = torch.tensor([deformed, not deformed, deformed])
    tables = torch.randn(2, 1 << 16)
    # up to volumes' widths away
    points = 50 * torch.randn(3, 2, 5, 5, 5)
    image, mask = kernels("augment").augment(ranks, tables, masks, cases, intensities_of, flags, points, dtype)
    assert bool(image.isfinite().all())
    assert int(mask.max()) < 4


def transform_case(shape, dtype, row, memory):
    """A batch of two stored volumes, one of which moves far beyond itself."""
    ranks = torch.randint(-(2**15), 2**15, (2, *shape)).to(torch.int16)
    masks = torch.randint(0, 4, (2, *shape)).to(torch.uint8)
    numbers, flags, points = torch.tensor([1, 0]), torch.tensor([True, False]), 50 * torch.randn(2, 2, 5, 5, 5)
    rows = torch.from_numpy(np.stack([trial_rows(shape)[row], identity_row(shape)]))
    rows[0, 3:12:4] *= 20
    stored = ranks, torch.randn(2, 1 << 16).sort(1).values, masks
    image, mask = kernels("transform").transform(*stored, numbers, numbers, flags, points, rows, dtype)
    assert bool(image.isfinite().all())
    assert int(mask.max()) < 4


def patches_case(patch, dtype, row, channels, memory):
    """Two patches of two stored volumes of different sizes, one of which moves far beyond its volume."""
    shapes = [(3, 5, 7), (2, 9, 131)]
    lengths = [math.prod(shape) for shape in shapes]
    ranks = torch.randint(-(2**15), 2**15, (sum(lengths) * channels,)).to(torch.int16)
    masks = torch.randint(0, 4, (sum(lengths),)).to(torch.uint8)
    places = torch.tensor([[0, *shapes[0]], [lengths[0], *shapes[1]]])
    numbers, flags, points = torch.tensor([1, 0]), torch.tensor([True, False]), 50 * torch.randn(2, 2, 5, 5, 5)
    rows = torch.from_numpy(np.stack([trial_rows(shapes[1])[row], identity_row(shapes[0])]))
    rows[0, 3:12:4] *= 20
    rows = rows.repeat_interleave(channels, 0)
    stored = ranks, torch.randn(2 * channels, 1 << 16).sort(1).values, masks, places
    image, mask = kernels("patches").patches(*stored, numbers, numbers, flags, points, rows, patch, dtype)
    assert bool(image.isfinite().all())
    assert int(mask.max()) < 4


def sgd_case(sizes, dtype, momentum, memory):
    """One update of tensors of these sizes."""
    weights = [torch.randn(size) for size in sizes]
    gradients = [torch.randn(size).to(dtype) for size in sizes]
    momenta = [torch.randn(size) for size in sizes] if momentum else None
    copies = [weight.to(dtype) for weight in weights] if dtype != torch.float32 else None
    # Nesterov's where it can be, which reads and writes the same
    settings = torch.tensor(0.1), momentum, 1e-3, None, None, dtype == torch.bfloat16
    kernels("sgd").sgd(weights, gradients, momenta, copies, *settings)
    assert all(bool(weight.isfinite().all()) for weight in weights)


def adamw_case(sizes, dtype, averaged, memory):
    """One update of tensors of these sizes."""
    weights, momenta, squares = ([torch.rand(size) for size in sizes] for _ in range(3))
    gradients, steps = [torch.randn(size).to(dtype) for size in sizes], [torch.tensor(1.0) for _ in sizes]
    copies = [weight.to(dtype) for weight in weights] if dtype != torch.float32 else None
    averages = [weight.clone() for weight in weights] if averaged else None
    lists = weights, gradients, momenta, squares, steps, copies, averages
    decay = torch.tensor(0.9) if averaged else None
    kernels("adamw").adamw(*lists, torch.tensor(0.1), (0.9, 0.999), 1e-8, 1e-3, None, None, decay)
    assert all(bool(weight.isfinite().all()) for weight in weights)


def convolution_case(channels, shape, dtype, taps, memory):
    """The shifts of a volume."""
    module = kernels("convolution")
    x = volume(memory, channels, shape, dtype)
    assert module.supports(x, taps)
    assert bool(module.stack(x, taps).isfinite().all())


def add_prelu_cases():
    """Channels below, at and above a power of two, and rows of several tiles."""
    forms = itertools.cycle([(None, False, 1), ("full", False, 2), ("one channel", False, 3), (None, True, 2)])
    dtypes = itertools.cycle(FLOATS)
    for channels in (1, 3, 8, 16, 20, 600):
        for shape in SHAPES if channels < 600 else SHAPES_OF_WIDE_ROWS:
            for _ in range(2):
                (residual, joined, gradients), dtype = next(forms), next(dtypes)
                form = f"residual {residual}, joined {joined}, {gradients} gradients"
                case = functools.partial(add_prelu_case, channels, shape, dtype, residual, joined, gradients)
                yield f"{channels} channels, {shape}, {SHORT[dtype]}, {form}", case


def norm_prelu_cases():
    """Channels below, at and above a power of two, rows of several tiles, and every kind of sets."""
    forms = itertools.cycle([(None, False), ("full", False), ("one channel", False), (None, True)])
    dtypes = itertools.cycle(FLOATS)
    sizes = [(*each, shape) for each in ((1, 1), (3, 3), (8, 2), (16, 16), (20, 5)) for shape in SHAPES]
    sizes += [(600, groups, shape) for groups, shape in zip((2, 600), SHAPES_OF_WIDE_ROWS, strict=True)]
    for (channels, groups, shape), across_samples in itertools.product(sizes, (False, True)):
        (residual, joined), dtype, sets = next(forms), next(dtypes), (groups, across_samples, 1e-5)
        name = f"{channels} channels, {shape}, {SHORT[dtype]}, residual {residual}, joined {joined}, {sets}"
        yield name, functools.partial(norm_prelu_case, channels, shape, dtype, residual, joined, sets)


def norm_prelu_sums_cases():
    """One group, several, and each channel on its own, of one program for each sample, and of several."""
    for channels, groups in ((3, 3), (6, 2), (20, 20)):
        for shape, across_samples in itertools.product((*SHAPES, (17, 19, 23)), (False, True)):
            sets = (groups, across_samples, 1e-5)
            yield (
                f"{channels} channels, {shape}, {sets}",
                functools.partial(norm_prelu_sums_case, channels, shape, sets),
            )


def dice_cases():
    """Both layouts, labels and channels, one block and a ragged one."""
    options = itertools.cycle(
        [
            DiceOptions("softmax", True, 1, True),
            DiceOptions("softmax", False),
            DiceOptions("sigmoid", True, 0, False, True, 1),
            DiceOptions("none", False, 1, False, True),
            DiceOptions("softmax", True, entropy="softmax"),
            DiceOptions("sigmoid", True, entropy="softmax", smoothed=True),
            DiceOptions("softmax", True, entropy="sigmoid", gamma=2.0),
        ]
    )
    dtypes = itertools.cycle(FLOATS)
    layouts = (torch.channels_last_3d, torch.contiguous_format)
    for channels, layout in itertools.product((2, 3, 5), layouts):
        for shape, cropped in ((SHAPES[0], False), (SHAPES[1], False), ((1, 33, 37), False), ((2, 17, 19), True)):
            option, dtype = next(options), next(dtypes)
            target = torch.uint8 if option.labels else dtype
            name = f"{channels} classes, {shape}, {SHORT[dtype]}, {layout}, cropped {cropped}, {option}"
            yield name, functools.partial(dice_case, channels, shape, dtype, layout, option, target, cropped)


def dice_blocks_cases():
    """Runs of all classes, of each class, and classes one by one; the last block is ragged."""
    option = DiceOptions("softmax", True, entropy="softmax")
    for channels, layout in itertools.product((2, 3, 5), (torch.channels_last_3d, torch.contiguous_format)):
        name = f"{channels} classes, {layout}"
        case = functools.partial(dice_case, channels, SHAPES[1], torch.float32, layout, option, torch.uint8, False)
        yield name, case


def augment_cases():
    """Slices smaller than a tile, and a little larger than one."""
    dtypes = itertools.cycle(FLOATS)
    for shape, deformed in itertools.product(((1, 1, 1), (3, 5, 7), (2, 9, 130)), (True, False)):
        dtype = next(dtypes)
        name = f"{shape}, {SHORT[dtype]}, deformed {deformed}"
        yield name, functools.partial(augment_case, shape, dtype, deformed)


def transform_cases():
    """As `augment_cases`, of volumes that move and volumes of which one stays."""
    shapes = ((1, 1, 1), 0), ((3, 5, 7), 0), ((3, 5, 7), 1), ((2, 5, 130), 1)
    for (shape, row), dtype in zip(shapes, itertools.cycle(FLOATS)):
        yield f"{shape}, {SHORT[dtype]}, row {row}", functools.partial(transform_case, shape, dtype, row)


def patches_cases():
    """Patches smaller than a tile, and a little larger than one, of volumes that are smaller and larger than they."""
    patches = ((1, 1, 1), 0, 1), ((2, 5, 7), 1, 3), ((2, 5, 130), 0, 2)
    for (patch, row, channels), dtype in zip(patches, itertools.cycle(FLOATS)):
        name = f"{patch}, {SHORT[dtype]}, row {row}, {channels} channels"
        yield name, functools.partial(patches_case, patch, dtype, row, channels)


def sgd_cases():
    """One number, one block, and one more than a block."""
    for dtype, momentum in itertools.product(FLOATS, (0.9, 0.0)):
        yield (
            f"gradients in {SHORT[dtype]}, momentum {momentum}",
            functools.partial(sgd_case, (1, 4096, 4097, 135), dtype, momentum),
        )


def adamw_cases():
    """As `sgd_cases`, of pieces."""
    for dtype, averaged in itertools.product(FLOATS, (True, False)):
        name = f"gradients in {SHORT[dtype]}, averaged {averaged}"
        yield name, functools.partial(adamw_case, (1, 2048, 2049, 135), dtype, averaged)


def partial_sums_cases():
    """One row, and one more than a tile; whole rows, and rows with channels that do not exist."""
    for layers in (((1, 8, 3),), ((1025, 16, 16), (3, 24, 20)), ((5, 8, 7), (2, 8, 8))):
        yield f"{layers}", functools.partial(partial_sums_case, layers)


def convolution_cases():
    """One row and several tiles, channels that fill no power of two, and more shifts than planes."""
    for (channels, shape), dtype, taps in zip(
        ((1, SHAPES[0]), (3, SHAPES[1]), (20, SHAPES[1]), (600, (3, 1, 3))), itertools.cycle(FLOATS), (5, 5, 3, 5)
    ):
        name = f"{channels} channels, {shape}, {SHORT[dtype]}, {taps} taps"
        yield name, functools.partial(convolution_case, channels, shape, dtype, taps)


CASES = {
    "add_prelu": add_prelu_cases,
    "norm_prelu": norm_prelu_cases,
    "norm_prelu_sums": norm_prelu_sums_cases,
    "partial_sums": partial_sums_cases,
    "dice": dice_cases,
    "dice_blocks": dice_blocks_cases,
    "augment": augment_cases,
    "transform": transform_cases,
    "patches": patches_cases,
    "sgd": sgd_cases,
    "adamw": adamw_cases,
    "convolution": convolution_cases,
}


def cases_of(module):
    """The cases of a module: {name: function}."""
    return {f"{module}: {name}": case for name, case in CASES[module]()}
