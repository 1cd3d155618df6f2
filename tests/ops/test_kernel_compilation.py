"""What the kernels of the main path compile to, on three GPU generations (`compile_kernels.py`)."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.exhaustive
SCRIPT = Path(__file__).with_name("compile_kernels.py")
ARCHITECTURES = (80, 90, 100)
# The least share of the bytes that a thread loads, and stores, by instructions of 16 bytes or more. What
# is left are bits, labels and partial sums; were a whole tensor loaded or stored in smaller pieces, the
# share would be under it. The sums of Dice's forward pass, and of partial sums, are all they store;
# its backward pass loads the gradients of the sums one by one.
WIDE_SHARE = {
    "add_prelu_forward_kernel": (0.75, 0.5),
    "add_prelu_backward_kernel": (0.75, 0.5),
    # what else the reductions store are partial sums
    "statistics_kernel": (0.75, 0),
    "normalise_kernel": (0.75, 0.75),
    "reduce_gradients_kernel": (0.75, 0),
    "gradient_kernel": (0.75, 0.75),
    "combine_statistics_kernel": (0.75, 0),
    "combine_gradients_kernel": (0.75, 0),
    "sum_partials_kernel": (0.75, 0),
    "sum_all_partials_kernel": (0.75, 0),
    "dice_forward_kernel": (0.75, 0),
    "dice_backward_kernel": (0.5, 0.75),
    "stack_kernel": (0.75, 0.75),
}
# With an entropy there are up to four gradients of sums for each class. With many classes, a thread loads its logits by
# 16 bytes and the labels of its voxels by 8.
WIDE_SHARE_WITH_ENTROPY = {"dice_forward_kernel": (0.6, 0), "dice_backward_kernel": (0.4, 0.75)}
ENTROPIES = ("cross-entropy", "smoothed", "focal", "focal of a softmax")
# The same as a number of instructions, for kernels that look up voxels one by one where they move, the
# most of their code, and store them as they find them. Where they do not, a thread has 8 voxels in a
# row: 16 bytes of ranks to load, and an image of 16 bytes or more to store.
# Of SGD's, a thread has 16 numbers in four pieces: those of weights and momenta are 8 loads and 8 stores, and the
# numbers of a tensor's last block are read one by one. Of AdamW's, a thread has 8 in two pieces, of squares too.
WIDE_ACCESSES = {"augment_kernel": (1, 1), "transform_kernel": (1, 1), "sgd_kernel": (8, 8), "adamw_kernel": (6, 6)}
# The rows of a cropped volume begin anywhere, one voxel is less than 16 bytes, and the rows of 2 channels have 4. Each
# channel reads the statistics of its group, which are in the cache. Of 3 and 6 classes each is read on its own, the
# next thread's beside it.
NARROW = ("cropped", ": 1x1x1 ", "_kernel: 2 x", " 8 groups", ": 3 classes", ": 6 classes")
WIDE = {*WIDE_SHARE, *WIDE_ACCESSES}
# The voxels of a patch lie anywhere in a volume: each is looked up on its own.
KERNELS = {*WIDE, "patches_kernel"}


@pytest.fixture(scope="session")
def compiled(triton_cache, known_kernels):
    """Runs the script: returns a function from its arguments to its rows."""
    # Triton must not be imported here: other tests decide whether it interprets
    found = importlib.util.find_spec("triton")
    if found is None:
        pytest.skip("Triton is not installed")
    tools = Path(found.origin).parent / "backends" / "nvidia" / "bin"
    for tool in ("cuobjdump", "nvdisasm"):
        if not (tools / tool).is_file():
            pytest.skip(f"this Triton comes without {tool} ({tools})")
    environment = os.environ | {"TRITON_CACHE_DIR": str(triton_cache)} | known_kernels

    def run(*arguments):
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="session")
def rows(compiled):
    return compiled("--architectures", *ARCHITECTURES)


def kernel_of(row):
    return row["name"].partition(":")[0]


def widths(counts):
    """As in `8 x 128, 2 x 16`: instructions and their bits."""
    return ", ".join(f"{count} x {bits}" for bits, count in sorted(counts.items(), key=lambda item: -int(item[0])))


def are_wide(row, which, index):
    """Whether there is as much of 16 bytes or more as there must be, of loads (index 0) or stores (1)."""
    counts, kernel = row[which], kernel_of(row)
    wide = {int(bits): count for bits, count in counts.items() if int(bits) >= 128}
    if kernel in WIDE_ACCESSES:
        return sum(wide.values()) >= WIDE_ACCESSES[kernel][index]
    total = sum(int(bits) * count for bits, count in counts.items())
    shares = WIDE_SHARE_WITH_ENTROPY if row["name"].endswith(ENTROPIES) else WIDE_SHARE
    return sum(bits * count for bits, count in wide.items()) >= shares[kernel][index] * total


def narrow(rows):
    """The rows whose loads or stores are too narrow."""
    return [
        f"sm_{row['architecture']} {row['name']}: loads {widths(row['loads'])}, stores {widths(row['stores'])}"
        for row in rows
        if not (are_wide(row, "loads", 0) and are_wide(row, "stores", 1))
    ]


def test_table(rows, capsys):
    with capsys.disabled():
        print(f"\n\n{'kernel':88} {'sm':>3} {'registers':>9} {'shared':>6}  {'loads':42} stores")
        for row in rows:
            print(
                f"{row['name']:88} {row['architecture']:3} {row['registers']:9} {row['shared']:6}  "
                f"{widths(row['loads']):42} {widths(row['stores'])}"
            )


def test_every_kernel_is_compiled_for_every_architecture(rows):
    assert {kernel_of(row) for row in rows} == KERNELS
    for kernel in KERNELS:
        assert {row["architecture"] for row in rows if kernel_of(row) == kernel} == set(ARCHITECTURES)


def test_no_registers_are_spilled(rows):
    assert [row for row in rows if row["spills"] or row["stack"]] == []


def test_tensors_are_read_and_written_16_bytes_at_a_time(rows):
    wide = [row for row in rows if kernel_of(row) in WIDE]
    assert narrow([row for row in wide if not any(form in row["name"] for form in NARROW)]) == []


def test_without_alignment_the_accesses_are_found_too_narrow(compiled):
    launches = (
        "one-channel residual, 1 gradients",
        "bfloat16, 16 groups, one-channel residual",
        "all layers",
        "bfloat16 and uint8, channels_last_3d",
        "augment_kernel",
        "transform_kernel",
        "sgd_kernel",
        "adamw_kernel",
        "stack_kernel: 32 channels of bfloat16",
    )
    rows = compiled("--no-hints", "--architectures", 90, "--only", *launches)
    assert {kernel_of(row) for row in rows} == WIDE
    assert len(narrow(rows)) == len(rows)
