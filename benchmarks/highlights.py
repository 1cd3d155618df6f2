"""The few figures of the README: vnet_fast beside plain PyTorch and MONAI, on one machine."""

from benchmarks import stored, tables
from benchmarks.stored import MACHINES, machine

# the rows of each machine, five at most
PROVIDERS = {
    "CPU": ("plain PyTorch, float32", "MONAI VNet as shipped", "vnet_fast, float32", "vnet_fast, AMP"),
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


def highlights(contents):
    """Markdown of the README's section.

    Args:
        contents: returned by `stored.load`.
    """
    results = results_of_one_machine(contents)
    if not results:
        return NOT_MEASURED
    times = {}
    # larger volumes first
    for content in sorted(results, key=voxels, reverse=True):
        for table, column, name in MEASUREMENTS:
            measured = times_of(content, table, column)
            if measured:
                times[f"{name}, {stored.provenance_of(content)['volume']}"] = measured
    providers = [name for name in PROVIDERS[machine(results[0])] if any(name in column for column in times.values())]
    rows = [
        {"provider": name, **{heading: cell(column, name) for heading, column in times.items()}} for name in providers
    ]
    provenance = stored.provenance_of(results[0])
    caption = (
        f"Milliseconds for one volume on {stored.title(results[0])} (torch {provenance['torch']}, "
        f"{provenance['date']}), and the speed relative to plain PyTorch:"
    )
    return f"{caption}\n\n" + "\n".join(tables.lines(rows)) + "\n"


def results_of_one_machine(contents):
    """The results of a GPU if a step was measured on one, or else of a CPU; of several, the one with most results."""
    for kind in MACHINES:
        by_title = {}
        for content in contents:
            if machine(content) == kind and any(times_of(content, *names[:2]) for names in MEASUREMENTS):
                by_title.setdefault(stored.title(content), []).append(content)
        if by_title:
            return max(by_title.values(), key=len)
    return []


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


def cell(times, name):
    """The time of a provider and how many times faster it is than plain PyTorch."""
    if name not in times:
        return None
    text = tables.shown(times[name])
    if name == BASELINE or BASELINE not in times:
        return text
    return f"{text} ({times[BASELINE] / times[name]:.2f}×)"
