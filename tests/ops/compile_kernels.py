"""Compiles the launches of V-Net's main path for three GPU generations, without a GPU, and prints what
the machine code of each needs, as a JSON list.

The launchers themselves run, on tensors without memory, with every kernel replaced by a recorder: what
is compiled is what they launch. Run in a process of its own, since Triton's interpreter, which other
tests use, replaces the kernels when they are imported.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.gpu_rehearsal.machine_code import accesses, resources
from vnet_fast.kernels import (
    adamw,
    add_prelu,
    augment,
    convolution,
    dice,
    norm_prelu,
    norm_prelu_sums,
    partial_sums,
    patches,
    sgd,
    transform,
)
from vnet_fast.ops.dice import DiceOptions

TYPES = {
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}
# what Triton assumes of pointers and numbers that are multiples of it
DIVISOR = 16
BATCH = 2
# (D, H, W) of the input; each stage has half the resolution of the one above
VOLUME = (64, 128, 128)
CLASSES = 2


@dataclasses.dataclass(frozen=True)
class Launch:
    """A kernel and what a launcher gave it."""

    name: str
    kernel: triton.JITFunction
    signature: dict[str, str | tuple[str, ...]]
    constexprs: dict[str, object]
    # arguments that are multiples of 16; of a tuple of arguments the name and the index
    divisible: tuple[str | tuple[str, int], ...]
    options: dict[str, int]


class Recorder:
    """Stands for a kernel: `recorder[grid](...)` keeps the launch."""

    def __init__(self, kernel, name, launches):
        self.kernel, self.name, self.launches = kernel, name, launches

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, **kwargs):
        parameters = {parameter.name: parameter for parameter in self.kernel.params}
        given = dict(zip(parameters, args, strict=False)) | kwargs
        options = {name: given.pop(name) for name in kwargs if name not in parameters}
        signature, constexprs, divisible = {}, {}, []
        for name, parameter in parameters.items():
            value = given[name]
            is_tensor = isinstance(value, torch.Tensor)
            # Triton compiles None and 1 in, like what is declared so
            specialized = not parameter.do_not_specialize
            if parameter.is_constexpr or value is None or (not is_tensor and value == 1 and specialized):
                signature[name] = "constexpr"
                constexprs[name] = value
                continue
            if isinstance(value, tuple):
                # of tensors
                signature[name] = tuple(TYPES[entry.dtype] for entry in value)
                divisible += [(name, i) for i, entry in enumerate(value) if entry.data_ptr() % DIVISOR == 0]
                continue
            signature[name] = TYPES[value.dtype] if is_tensor else "i32" if value < 2**31 else "i64"
            if specialized and (value.data_ptr() if is_tensor else value) % DIVISOR == 0:
                divisible.append(name)
        name = f"{self.kernel.__name__.strip('_')}: {self.name}"
        self.launches.append(Launch(name, self.kernel, signature, constexprs, tuple(divisible), options))


def record(module, name, run):
    """The launches of `module`'s kernels while `run` runs."""
    launches = []
    kernels = {key: kernel for key, kernel in vars(module).items() if isinstance(kernel, triton.JITFunction)}
    for key, kernel in kernels.items():
        setattr(module, key, Recorder(kernel, name, launches))
    try:
        run()
    finally:
        for key, kernel in kernels.items():
            setattr(module, key, kernel)
    return launches


def empty(channels, dtype, level=0, layout=torch.channels_last_3d):
    """(N, C, D, H, W) at `level` halvings of the resolution, without memory."""
    shape = (BATCH, channels, *(length >> level for length in VOLUME))
    return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=layout)


def add_prelu_launches():
    # level, channels, type, form, gradients: each stage of the network, the outputs of its up-convolutions, and wide
    # networks, with as many gradients as their outputs have uses
    cases = [
        (0, 16, torch.bfloat16, "one-channel residual", 1),
        (0, 16, torch.bfloat16, "one-channel residual", 3),
        (1, 32, torch.bfloat16, "residual", 3),
        (2, 64, torch.bfloat16, "residual", 3),
        (3, 128, torch.bfloat16, "residual", 3),
        (4, 256, torch.bfloat16, "residual", 2),
        (0, 16, torch.bfloat16, "into a slice", 2),
        (0, 16, torch.float32, "one-channel residual", 3),
        # partial sums whose rows are no multiple of 16
        (0, 24, torch.bfloat16, "one-channel residual", 1),
        # base_channels of 48 and 96
        (0, 48, torch.bfloat16, "one-channel residual", 3),
        (4, 768, torch.bfloat16, "residual", 2),
        (4, 1536, torch.bfloat16, "residual", 2),
    ]
    launches, sums = [], []
    for level, channels, dtype, form, gradients in cases:
        x = empty(channels, dtype, level)
        vector = torch.empty(channels, device="meta")
        residual, out = None, None
        # of a skip, the gradients are halves of those of the tensor that it is joined to
        joined = empty(2 * channels, dtype, level)
        if form == "residual":
            residual = x
        elif form == "one-channel residual":
            residual = empty(1, torch.float32, level)
        elif form == "into a slice":
            out = joined[:, :channels]
        assert add_prelu.supports(x, vector, vector, residual, out)
        slices = [joined[:, channels:]] * 2 if out is None else [out] * 2
        grads = (slices if out is not None else [x, *slices] if gradients > 2 else [x, x])[:gradients]

        def run(x=x, vector=vector, residual=residual, out=out, grads=grads):
            y, negative = add_prelu.add_prelu(x, vector, vector, residual, out)
            add_prelu.add_prelu_backward(grads, y, negative, vector)

        size = "x".join(str(length >> level) for length in VOLUME)
        name = f"{channels} x {size} {str(dtype).removeprefix('torch.')}, {form}, {gradients} gradients"
        launches += record(add_prelu, name, lambda name=name, run=run: sums.extend(record(partial_sums, name, run)))

    def sum_all():
        layers = tuple((index << 20, 2048, 16, 16) for index in range(2))
        partial_sums.sum_all_partials(torch.empty(1 << 22, device="meta"), layers)

    return launches + sums + record(partial_sums, "all layers", sum_all)


def norm_prelu_launches():
    # level, channels, type, groups, form: as above
    cases = [
        (0, 16, torch.bfloat16, 16, "one-channel residual"),
        (0, 16, torch.bfloat16, 16, "into a slice"),
        (0, 16, torch.float32, 16, "one-channel residual"),
        (0, 2, torch.bfloat16, 2, "plain"),
        (1, 32, torch.bfloat16, 32, "residual"),
        (1, 32, torch.bfloat16, 8, "residual"),
        (4, 768, torch.bfloat16, 8, "residual"),
    ]
    launches, sums = [], []
    for level, channels, dtype, groups, form in cases:
        x = empty(channels, dtype, level)
        vector = torch.empty(channels, device="meta")
        residual = {"residual": x, "one-channel residual": empty(1, torch.float32, level)}.get(form)
        out = empty(2 * channels, dtype, level)[:, :channels] if form == "into a slice" else None
        sets = (groups, form == "residual" and groups > 8, 1e-5)
        assert norm_prelu.supports(x, vector, vector, vector, residual, sets, out)

        def run(x=x, vector=vector, residual=residual, out=out, sets=sets):
            y, mean, variance = norm_prelu.norm_prelu(x, vector, vector, vector, residual, sets, out)
            norm_prelu.norm_prelu_backward(y, x, vector, vector, vector, residual, mean, variance, sets)

        size = "x".join(str(length >> level) for length in VOLUME)
        name = f"{channels} x {size} {str(dtype).removeprefix('torch.')}, {groups} groups, {form}"
        launches += record(norm_prelu, name, lambda name=name, run=run: sums.extend(record(norm_prelu_sums, name, run)))
    return launches + sums


def dice_launches():
    # type and layout of the logits, type of the labels, how much is cropped along each axis
    cases = [
        (torch.bfloat16, torch.channels_last_3d, torch.uint8, 0),
        (torch.bfloat16, torch.channels_last_3d, torch.uint8, 3),
        (torch.bfloat16, torch.channels_last_3d, torch.int64, 0),
        (torch.float32, torch.channels_last_3d, torch.uint8, 0),
        (torch.bfloat16, torch.contiguous_format, torch.uint8, 0),
        (torch.float32, torch.contiguous_format, torch.uint8, 0),
    ]
    paper = DiceOptions(activation="softmax", labels=True, first_class=1, squared=True)
    cases = [(*case, CLASSES, paper, "") for case in cases]
    bf16, last, contiguous, uint8 = torch.bfloat16, torch.channels_last_3d, torch.contiguous_format, torch.uint8
    both = DiceOptions("softmax", True, entropy="softmax")
    smoothed = both._replace(smoothed=True, ignore_index=255)
    focal = both._replace(entropy="sigmoid", gamma=2.0)
    softmax_focal = both._replace(gamma=1.5)
    cases += [
        (bf16, last, uint8, 0, CLASSES, both, "cross-entropy"),
        (bf16, last, uint8, 3, CLASSES, both, "cross-entropy"),
        (bf16, last, uint8, 0, 3, both, "cross-entropy"),
        (bf16, last, uint8, 3, 3, paper, ""),
        (bf16, last, uint8, 0, 6, smoothed, "smoothed"),
        (torch.float32, last, uint8, 0, CLASSES, both, "cross-entropy"),
        (torch.float32, contiguous, uint8, 0, 4, smoothed, "smoothed"),
        (bf16, contiguous, uint8, 0, 16, smoothed, "smoothed"),
        (bf16, last, uint8, 0, CLASSES, focal, "focal"),
        (bf16, contiguous, uint8, 0, 4, focal, "focal"),
        (bf16, contiguous, uint8, 0, 16, focal, "focal"),
        (bf16, last, uint8, 0, CLASSES, softmax_focal, "focal of a softmax"),
    ]
    launches = []
    for dtype, layout, label_type, cropped, classes, options, entropy in cases:
        logits, labels = empty(classes, dtype, layout=layout), empty(1, label_type)
        if cropped:
            logits = logits[..., cropped:, cropped:, cropped:]
            labels = torch.empty((BATCH, 1, *logits.shape[2:]), dtype=label_type, device="meta")
        assert dice.supports(logits, labels, options)

        def run(logits=logits, labels=labels, options=options):
            sums = dice.dice_sums(logits, labels, options)
            dice.dice_sums_backward(sums, logits, labels, options)

        types = " and ".join(str(kind).removeprefix("torch.") for kind in (dtype, label_type))
        layout = str(layout).removeprefix("torch.")
        name = f"{classes} classes, {types}, {layout}" + (", cropped" if cropped else "")
        name += f", {entropy}" if entropy else ""
        launches += record(dice, name, run)
    return launches


def deform_launches(shape=VOLUME, dtypes=(torch.bfloat16, torch.float16, torch.float32)):
    # of more stored volumes than are in a batch
    cases = 2 * BATCH
    ranks, masks = (torch.empty((cases, *shape), dtype=dtype, device="meta") for dtype in (torch.int16, torch.uint8))
    tables = torch.empty((cases, 1 << 16), device="meta")
    numbers = torch.empty(BATCH, dtype=torch.int64, device="meta")
    deformed = torch.empty(BATCH, dtype=torch.bool, device="meta")
    control_points = torch.empty((BATCH, 2, 5, 5, 5), device="meta")
    launches = []
    for dtype in dtypes:
        inputs = ranks, tables, masks, numbers, numbers, deformed, control_points, dtype
        assert augment.supports(*inputs)
        size = "x".join(str(length) for length in shape)
        name = f"{size} to {str(dtype).removeprefix('torch.')}"
        launches += record(augment, name, lambda inputs=inputs: augment.augment(*inputs))
        inputs = *inputs[:-1], torch.empty((BATCH, transform.ROW_LENGTH), device="meta"), dtype
        assert transform.supports(*inputs)
        launches += record(transform, name, lambda inputs=inputs: transform.transform(*inputs))
        launches += patch_launches(name, tables, numbers, deformed, control_points, dtype, shape)
        if dtype == torch.bfloat16:
            launches += patch_launches(
                f"{name}, 2 channels", tables, numbers, deformed, control_points, dtype, shape, 2
            )
    return launches


def patch_launches(name, tables, numbers, deformed, control_points, dtype, shape, channels=1):
    # of stored volumes twice as long along each axis
    voxels = 8 * 2 * BATCH * math.prod(shape)
    ranks = torch.empty(voxels * channels, dtype=torch.int16, device="meta")
    masks, tables = torch.empty(voxels, dtype=torch.uint8, device="meta"), tables.repeat(channels, 1)
    places = torch.empty((2 * BATCH, patches.PLACE_LENGTH), dtype=torch.int64, device="meta")
    rows = torch.empty((BATCH * channels, patches.ROW_LENGTH), device="meta")
    inputs = ranks, tables, masks, places, numbers, numbers, deformed, control_points, rows, shape, dtype
    assert patches.supports(*inputs)
    return record(patches, name, lambda: patches.patches(*inputs))


def sgd_launches():
    # type of the gradients, type of the copies, whether the loss is scaled, whether the momentum is Nesterov's
    cases = [
        (torch.bfloat16, torch.bfloat16, False, False),
        (torch.float16, torch.float16, True, False),
        (torch.float32, None, False, False),
        (torch.bfloat16, torch.bfloat16, False, True),
    ]
    # what the network has: a convolution, a bias, and so on
    sizes = [(32, 32, 5, 5, 5), (32,)]
    launches = []
    for dtype, copy_type, scaled, nesterov in cases:
        weights, gradients, momenta = (
            [torch.empty(size, dtype=kind, device="meta") for size in sizes]
            for kind in (torch.float32, dtype, torch.float32)
        )
        copies = None if copy_type is None else [torch.empty(size, dtype=copy_type, device="meta") for size in sizes]
        number = torch.empty((), device="meta")
        scale = [number] * 2 if scaled else [None, None]
        assert sgd.supports(weights[0], gradients[0], momenta[0], copies and copies[0])
        lists = weights, gradients, momenta, copies

        def run(lists=lists, number=number, scale=scale, nesterov=nesterov):
            sgd.sgd(*lists, number, 0.99, 5e-4, *scale, nesterov)

        name = f"{str(dtype).removeprefix('torch.')} gradients, {'no' if copies is None else 'half-precision'} copies"
        name += ", Nesterov" if nesterov else ""
        launches += record(sgd, name, run)
    return launches


def adamw_launches():
    # type of the gradients, type of the copies, whether there is an average, what gradients are divided by
    cases = [
        (torch.bfloat16, torch.bfloat16, True, "clipped"),
        (torch.float16, torch.float16, True, "scaled"),
        (torch.float32, None, True, "clipped"),
        (torch.bfloat16, torch.bfloat16, False, ""),
        (torch.float32, None, False, "scaled"),
    ]
    sizes = [(32, 32, 5, 5, 5), (32,)]
    launches = []
    for dtype, copy_type, averaged, division in cases:
        weights, gradients, momenta, squares, averages = (
            [torch.empty(size, dtype=kind, device="meta") for size in sizes]
            for kind in (torch.float32, dtype, *[torch.float32] * 3)
        )
        steps = [torch.empty((), device="meta") for _ in sizes]
        copies = None if copy_type is None else [torch.empty(size, dtype=copy_type, device="meta") for size in sizes]
        lists = weights, gradients, momenta, squares, steps, copies, averages if averaged else None
        assert adamw.supports(*(some and some[0] for some in lists))
        number = torch.empty((), device="meta")
        scale = number if division else None, number if division == "scaled" else None

        def run(lists=lists, number=number, scale=scale, averaged=averaged):
            adamw.adamw(*lists, number, (0.9, 0.999), 1e-8, 1e-2, *scale, number if averaged else None)

        name = f"{str(dtype).removeprefix('torch.')} gradients, {'no' if copies is None else 'half-precision'} copies"
        name += f", {'an' if averaged else 'no'} average{division and f', {division}'}"
        launches += record(adamw, name, run)
    return launches


def convolution_launches():
    launches = []
    for dtype in (torch.bfloat16, torch.float32):
        # the layers that are stacked, and channels that fill no power of two
        for level, channels in ((0, 32), (1, 64), (2, 128), (3, 256), (1, 48)):
            x = empty(channels, dtype, level)
            assert convolution.supports(x, 5)
            name = f"{channels} channels of {str(dtype).removeprefix('torch.')}"
            launches += record(convolution, name, lambda x=x: convolution.stack(x, 5))
    # a plane of one voxel, which is compiled in
    column = torch.empty((BATCH, 64, 8, 1, 1), dtype=torch.bfloat16, device="meta")
    column = column.to(memory_format=torch.channels_last_3d)
    assert convolution.supports(column, 5)
    return launches + record(convolution, "planes of one voxel", lambda: convolution.stack(column, 5))


def distinct(launches):
    """The launches without those that compile to the same as one before."""
    first = {}
    for launch in launches:
        first.setdefault(repr(dataclasses.replace(launch, name="")), launch)
    return first.values()


def compile_launch(launch, architecture, hints):
    """A launch's machine code; without `hints` nothing is known of alignment."""
    index = launch.kernel.arg_names.index
    paths = [(name,) if isinstance(name, str) else name for name in launch.divisible if hints]
    attributes = {(index(name), *inner): [["tt.divisibility", DIVISOR]] for name, *inner in paths}
    constexprs = {(index(name),): value for name, value in launch.constexprs.items()}
    source = ASTSource(launch.kernel, launch.signature, constexprs, attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(launch.options))


def inspect(compiled):
    """Registers, bytes of stack and shared memory, and the memory instructions of a kernel by width in bits."""
    # shared memory is asked for at the launch, so that it is not in the code
    shared = {"shared": compiled.metadata.shared}
    return resources(compiled.asm["cubin"]) | shared | accesses(compiled.asm["cubin"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--only", nargs="+", default=[""], help="compile only launches whose name contains one of these"
    )
    parser.add_argument("--architectures", type=int, nargs="+", default=[80, 90, 100])
    parser.add_argument("--no-hints", action="store_true", help="compile as if nothing were aligned")
    config = parser.parse_args()
    launches = distinct(
        add_prelu_launches()
        + norm_prelu_launches()
        + deform_launches()
        # lengths of 1, which are compiled in
        + deform_launches((1, 1, 1), (torch.bfloat16,))
        + dice_launches()
        + sgd_launches()
        + adamw_launches()
        + convolution_launches()
    )
    wanted = [launch for launch in launches if any(part in launch.name for part in config.only)]
    rows, inspected = [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for launch in wanted:
            for architecture in config.architectures:
                compiled = compile_launch(launch, architecture, hints=not config.no_hints)
                rows.append({"name": launch.name, "architecture": architecture})
                inspected.append(pool.submit(inspect, compiled))
    print(json.dumps([row | result.result() for row, result in zip(rows, inspected, strict=True)]))


if __name__ == "__main__":
    main()
