"""Tables of what cuDNN's heuristics answered, and the time of a step that follows from them.

    python -m benchmarks.cudnn_tables

writes them between the markers of `benchmarks/results/cudnn/README.md`, from the results beside it; no cuDNN is needed.
"""

import functools
import itertools
import math
from dataclasses import dataclass

import torch

from benchmarks.cudnn_heuristics import (
    BATCHES,
    GPUS,
    MODES,
    PASSES,
    RESULTS,
    alternatives,
    layers,
    load,
    questions,
)
from vnet_fast.devices import HOPPER
from vnet_fast.nn.topology import TOPOLOGIES
from vnet_fast.ops.convolution_choice import Layer, tabulated

README = RESULTS / "README.md"
BEGIN, END = "<!-- tables: python -m benchmarks.cudnn_tables -->", "<!-- end of tables -->"
TYPE, BATCH = "bfloat16", 2
HALF = ("bfloat16", "float16")
CHOICES = ("mode A", "search", "mode B", "rule")
# of the search of `cudnn.benchmark`: PyTorch's benchmark_limit
SEARCHED = 10
SHORT = {"forward": "forward", "grad_input": "input gradient", "grad_weight": "weight gradient"}


@dataclass(frozen=True)
class Peak:
    """What a GPU can do at most, from its data sheet: FLOP/s of its FP32 units, bytes/s of its memory."""

    fp32: float
    memory: float


PEAKS = {
    "sm_80": Peak(19.5e12, 2.04e12),
    "sm_89": Peak(91.6e12, 0.86e12),
    "sm_90": Peak(67e12, 3.35e12),
    "sm_100": Peak(75e12, 8e12),
    "sm_120": Peak(105e12, 1.79e12),
}
TENSOR_PEAK = 989e12
# assumed shares of the peaks; none is measured
FP32_SHARE = 0.5
OWN_SHARE = 0.6
OLDER_SHARE = 0.35
# of stacking the shifts along z, in tensors of the input's size: padding reads and writes one, stacking one and five
STACK_TRANSFERS = 8
BYTES = 2
# tensor cores read channels by eights
CHANNELS = 8
# engines of Hopper itself, by kind of call: listed for it and never for an older GPU
OWN_ENGINES = {"fwd": {"62", "67"}, "dgrad": {"67", "73"}, "wgrad": {"65"}}


def capability(gpu):
    """The compute capability of a GPU of GPUS: `sm_90` is (9, 0)."""
    return divmod(int(gpu.removeprefix("sm_")), 10)


def rule(gpu, layer, which, dtype):
    """The rewrite of a pass that the package chooses without timing.

    Args:
        gpu: as in GPUS.
        layer: a `floor.Convolution`.
        which: the pass.
        dtype: as in `cudnn_heuristics.TYPES`.
    """
    if layer.transposed or max(layer.stride) > 1:
        return "cudnn"
    one = Layer(which, getattr(torch, dtype), layer.input, layer.weight[0], layer.weight[2:])
    return tabulated(one, capability(gpu))


def mode_by_rule(gpu):
    """The mode of the heuristics that the package asks PyTorch for; see `devices.prepare_gpu`."""
    return "B" if capability(gpu)[0] == HOPPER else "A"


def taken(answer, mode):
    """The engine that PyTorch takes without a search: the first of a mode, else of the fallback; `22t`, say."""
    texts = dict(zip(MODES, answer.split(), strict=True))
    text = texts[mode] if texts[mode] != "-" else texts["fallback"]
    return text.split("/")[0].split(":")[0]


def searched(answer):
    """The engine on tensor cores that the search of `cudnn.benchmark` meets first, else the first engine.

    The search times the first ten plans of mode A and of the fallback, and takes the fastest.
    """
    text = answer.split()[0]
    _, _, later = text.partition("/")
    engine, _, rank = later.partition("@")
    if rank and int(rank) <= SEARCHED:
        return engine.split(":")[0]
    if text == "-":
        # the fallback's own rank counts, because mode A has none
        return searched(answer.split()[2] + " - -") if answer.split()[2] != "-" else "-"
    return taken(answer, "A")


def on_tensor_cores(engine):
    """Whether an engine such as `22t` runs on tensor cores."""
    return engine.endswith("t")


def nbytes(call):
    """The bytes that a call must move."""
    written = [
        (length + 2 * pad - tap) // call.stride + 1
        for length, pad, tap in zip(call.volume, call.padding, call.taps, strict=True)
    ]
    volumes = call.channels * math.prod(call.volume) + call.filters * math.prod(written)
    return BYTES * (call.batch * volumes + call.channels * call.filters * math.prod(call.taps))


def needs_tensor_cores(gpu, call):
    """Whether a pass would be slower on FP32 units, at half of their peak, than its bytes."""
    return call.flops / (FP32_SHARE * PEAKS[gpu].fp32) > nbytes(call) / PEAKS[gpu].memory


def seconds(call, name, engine):
    """The predicted time of a pass on an H100."""
    if on_tensor_cores(engine):
        own = engine[:-1] in OWN_ENGINES[call.kind]
        rate = TENSOR_PEAK * (OWN_SHARE if own else OLDER_SHARE)
    else:
        rate = PEAKS["sm_90"].fp32 * FP32_SHARE
    rounded = [math.ceil(count / CHANNELS) * CHANNELS for count in (call.channels, call.filters)]
    flops = call.flops * math.prod(rounded) / (call.channels * call.filters)
    memory = PEAKS["sm_90"].memory
    time = max((flops if on_tensor_cores(engine) else call.flops) / rate, nbytes(call) / memory)
    if name == "zstack":
        stacked = call.channels // 5 * call.batch * math.prod(call.volume) * BYTES
        time += STACK_TRANSFERS * stacked / memory
    return time


def choices(rows, gpu, layer, text, which, dtype):
    """(rewrite, engine) of a pass by every choice: the columns of the tables.

    Args:
        rows: the answers for a GPU, type and batch.
        gpu, layer, which, dtype: see `rule`.
        text: of the layer.
    """
    plain, name = rows[text, "cudnn", which], rule(gpu, layer, which, dtype)
    return {
        "mode A": ("cudnn", taken(plain, "A")),
        "search": ("cudnn", searched(plain)),
        "mode B": ("cudnn", taken(plain, "B")),
        "rule": (name, taken(rows[text, name, which], mode_by_rule(gpu))),
    }


@functools.cache
def steps(*case):
    """Every pass of a training step: (layer, its text, name of the pass, its call without a rewrite).

    Args:
        case: as the arguments of `cudnn_heuristics.layers`.
    """
    calls = questions(*case)
    named = [(layer, str(layer)) for layer in layers(*case)]
    return [
        (layer, text, which, calls[text, "cudnn", which])
        for layer, text in named
        for which in PASSES
        if (text, "cudnn", which) in calls
    ]


@functools.cache
def needing(gpu, *case):
    """The passes that need tensor cores: a set of (text of the layer, name of the pass)."""
    return {(text, which) for _, text, which, call in steps(*case) if needs_tensor_cores(gpu, call)}


def missing(rows, gpu, dtype, *case):
    """For each choice, the passes that need tensor cores and get none: a list of (layer, pass).

    Args:
        rows: the answers for a GPU, type and case.
        gpu, dtype: see `rule`.
        case: as the arguments of `cudnn_heuristics.layers`.
    """
    lists = {choice: [] for choice in CHOICES}
    needed = needing(gpu, *case)
    for layer, text, which, _ in steps(*case):
        if (text, which) in needed:
            for choice, (_, engine) in choices(rows, gpu, layer, text, which, dtype).items():
                if not on_tensor_cores(engine):
                    lists[choice].append((text, which))
    return lists


def step_seconds(found):
    """The predicted seconds of a step's convolutions on an H100, by topology and choice.

    `cheapest` is the least of all rewrites and both modes.
    """
    rows, calls, numbers = found["sm_90", TYPE, BATCH], questions(BATCH), layers(BATCH)
    times = {topology: dict.fromkeys([*CHOICES, "cheapest"], 0.0) for topology in TOPOLOGIES}
    for layer, text, which, _ in steps(BATCH):
        pairs = {choice: [pair] for choice, pair in choices(rows, "sm_90", layer, text, which, TYPE).items()}
        names = alternatives(layer)
        pairs["cheapest"] = [(name, taken(rows[text, name, which], mode)) for name in names for mode in ("A", "B")]
        for choice, ones in pairs.items():
            time = min(seconds(calls[text, name, which], name, engine) for name, engine in ones)
            for topology in TOPOLOGIES:
                times[topology][choice] += numbers[layer][topology] * time
    return times


def results():
    """The stored results, oldest cuDNN first: list of (version, releases of PyTorch, answers)."""
    stored = [load(path) for path in RESULTS.glob("*.json")]
    return sorted(stored, key=lambda result: tuple(map(int, result[0].split("."))))


def table(head, rows):
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def counts_table(stored, types):
    """How many passes of both topologies need tensor cores and get none, by type and batch."""
    kinds = list(itertools.product(types, BATCHES))
    rows = []
    for (version, _, found), gpu in itertools.product(stored, GPUS):
        if (gpu, *kinds[0]) in found:
            lists = [missing(found[(gpu, *kind)], gpu, *kind) for kind in kinds]
            counts = [" / ".join(str(len(one[choice])) for one in lists) for choice in CHOICES]
        else:
            counts = ["no answer"] * len(CHOICES)
        rows.append([version, gpu, *counts])
    return table(["cuDNN", "GPU", *CHOICES], rows)


def missing_table(stored, types):
    """The passes that are counted, by GPU and choice, each with the versions of cuDNN."""
    versions = {}
    for (version, _, found), gpu in itertools.product(stored, GPUS):
        for kind in itertools.product(types, BATCHES):
            lists = missing(found[(gpu, *kind)], gpu, *kind) if (gpu, *kind) in found else {}
            for choice, (layer, which) in ((choice, one) for choice, ones in lists.items() for one in ones):
                known = versions.setdefault((gpu, choice, layer, SHORT[which]), [])
                if version not in known:
                    known.append(version)
    order = list(itertools.product(GPUS, CHOICES))
    keys = sorted(versions, key=lambda key: order.index(key[:2]))
    rows = [[*key, ", ".join(versions[key])] for key in keys]
    return table(["GPU", "choice", "layer", "pass", "cuDNN"], rows)


def engines_table(stored):
    """The engines of every pass on an H100 by mode A, mode B and the rule."""
    rows = {}
    for version, _, found in stored:
        for layer, text, which, _ in steps(BATCH):
            chosen = choices(found["sm_90", TYPE, BATCH], "sm_90", layer, text, which, TYPE)
            shown = []
            for choice in ("mode A", "mode B", "rule"):
                name, engine = chosen[choice]
                word = engine if on_tensor_cores(engine) else f"**{engine}**"
                shown.append(word if name == "cudnn" else f"{name} {word}")
            rows.setdefault((text, SHORT[which]), {})[version] = ", ".join(shown)
    lines = [[*key, *(row.get(version, "") for version, _, _ in stored)] for key, row in rows.items()]
    return table(["layer", "pass", *(version for version, _, _ in stored)], lines)


def times_table(stored):
    """Milliseconds of a step's convolutions on an H100."""
    rows = []
    for version, _, found in stored:
        for topology, times in step_seconds(found).items():
            rows.append([version, topology, *(f"{time * 1e3:.1f}" for time in times.values())])
    return table(["cuDNN", "topology", *CHOICES, "cheapest"], rows)


def tables(stored):
    """All tables with their headings."""
    versions = table(["cuDNN", "PyTorch"], [[version, ", ".join(releases)] for version, releases, _ in stored])
    parts = {
        "Versions": versions,
        "Passes that need tensor cores and get none": counts_table(stored, HALF),
        "Which they are": missing_table(stored, HALF),
        "Engines on an H100, bfloat16, batch 2: mode A, mode B, rule": engines_table(stored),
        "Predicted milliseconds of a step's convolutions on an H100, bfloat16, batch 2": times_table(stored),
        "The same count in float32 with TF32": counts_table(stored, ("float32",)),
    }
    return "\n\n".join(f"### {heading}\n\n{part}" for heading, part in parts.items())


def replaced(readme, written):
    """The text of the README with other tables."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{written}\n\n{END}{after}"


def main():
    README.write_text(replaced(README.read_text(), tables(results())))


if __name__ == "__main__":
    main()
