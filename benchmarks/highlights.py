"""The few figures of the README: vnet_fast beside plain PyTorch and others, on a GPU and on a CPU."""

from benchmarks import stored, tables
from benchmarks.stored import MACHINES, machine

# the rows of each machine, six at most
PROVIDERS = {
    "CPU": (
        "plain PyTorch, float32",
        "MONAI VNet as shipped",
        "OpenVINO, float32",
        "OpenVINO, bfloat16",
        "vnet_fast, float32",
        "vnet_fast, AMP",
    ),
    "GPU": (
        "plain PyTorch, float32",
        "plain PyTorch, AMP, channels-last",
        "MONAI VNet, AMP, channels-last",
        "vnet_fast, AMP",
        "vnet_fast, AMP, graph",
    ),
}
BASELINE = "plain PyTorch, float32"
# (table, column of the time, name in the README)
MEASUREMENTS = (("step", "step, ms", "training step"), ("inference", "latency, ms", "forward pass"))
NOT_MEASURED = "Not measured yet.\n"
# the picture of a CPU's forward passes, in the folder of the results
FORWARD = "forward.svg"


def highlights(contents):
    """Markdown of the README's section.

    Args:
        contents: returned by `stored.load`.
    """
    paragraphs = [_of_machine(results) for kind in MACHINES if (results := results_of_one_machine(contents, kind))]
    return "\n".join(paragraphs) or NOT_MEASURED


def _of_machine(results):
    times = {}
    # larger volumes first
    for content in sorted(results, key=voxels, reverse=True):
        for table, column, name in MEASUREMENTS:
            if compares(content, table, column):
                measured = times_of(content, table, column), ratios_of(content, table, column)
                times[f"{name}, {stored.provenance_of(content)['volume']}"] = measured
    providers = [name for name in PROVIDERS[machine(results[0])] if any(name in column for column, _ in times.values())]
    rows = [
        {"provider": name, **{heading: cell(*column, name) for heading, column in times.items()}} for name in providers
    ]
    provenance = stored.provenance_of(results[0])
    caption = (
        f"Milliseconds for one volume on {stored.title(results[0])} (torch {provenance['torch']}, "
        f"{provenance['date']}), and the speed relative to plain PyTorch:"
    )
    if forward_passes(results):
        caption = f"![Milliseconds of a forward pass, by provider](benchmarks/results/{FORWARD})\n\n{caption}"
    return f"{caption}\n\n" + "\n".join(tables.lines(rows)) + "\n"


def forward_passes(contents):
    """The title and the times of the picture of forward passes: of a CPU, the largest volumes, and the most providers.

    Args:
        contents: returned by `stored.load`.

    Returns:
        a text, and dict from provider to milliseconds; None if no run compares.
    """
    results = [c for c in results_of_one_machine(contents, "CPU") if compares(c, "inference", "latency, ms")]
    if not results:
        return None
    chosen = max(results, key=lambda content: (voxels(content), len(times_of(content, "inference", "latency, ms"))))
    volume = stored.provenance_of(chosen)["volume"]
    return f"Forward pass of {volume} voxels, {stored.title(chosen)}", times_of(chosen, "inference", "latency, ms")


def results_of_one_machine(contents, kind):
    """The results of a GPU or of a CPU that compare; of several machines of the kind, those of the one with the most.

    Args:
        contents: returned by `stored.load`.
        kind: one of MACHINES.
    """
    by_title = {}
    for content in contents:
        if machine(content) == kind and any(compares(content, *names[:2]) for names in MEASUREMENTS):
            by_title.setdefault(stored.title(content), []).append(content)
    return max(by_title.values(), key=len, default=[])


def compares(content, table, column):
    """Whether a run measured both plain PyTorch and vnet_fast: a ratio is of one run."""
    times = times_of(content, table, column)
    return BASELINE in times and any(name.startswith("vnet_fast") for name in times)


def times_of(content, table, column):
    """Milliseconds of each provider for one volume: dict from name to time."""
    return {
        row["provider"]: row[column]
        for row in tables.stored_rows(content, table)
        if row["batch"] == 1 and tables.reason_of(row) is None
    }


def voxels(content):
    """The number of voxels that a result's networks worked on."""
    x, y, z = map(int, stored.provenance_of(content)["volume"].split(" x "))
    return x * y * z


def ratios_of(content, table, column):
    """How many times faster than plain PyTorch each provider is for one volume: dict from name to ratio.

    It is the row's own, of plain PyTorch in the same minutes; without it, that of the two times.
    """
    times, rows = times_of(content, table, column), tables.stored_rows(content, table)
    own = {row["provider"]: row.get("times plain float32") for row in rows if row["batch"] == 1}
    return {name: own[name] or times[BASELINE] / time for name, time in times.items()}


def cell(times, ratios, name):
    """The time of a provider and how many times faster it is than plain PyTorch."""
    if name not in times:
        return None
    text = tables.shown(times[name])
    return text if name == BASELINE else f"{text} ({ratios[name]:.2f}×)"
