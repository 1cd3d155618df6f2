"""cuDNN's stored answers: they are of the network as it is, the package's rule holds in them, and the tables follow."""

import itertools

import pytest

from benchmarks import cudnn_sizes
from benchmarks.cudnn_heuristics import BATCHES, GPUS, TYPES, load, questions, store, summary
from benchmarks.cudnn_tables import (
    CHOICES,
    HALF,
    OWN_ENGINES,
    README,
    capability,
    layers,
    missing,
    mode_by_rule,
    nbytes,
    needing,
    needs_tensor_cores,
    replaced,
    results,
    rule,
    searched,
    seconds,
    steps,
    tables,
    taken,
)

STORED = results()
VERSIONS = [version for version, _, _ in STORED]
CALLS = questions(2)
FULL = "32→32, 5x5x5, 128x128x64"
# cuDNN 9.10 ranks engines on FP32 units first for every rewrite of these; PyTorch's search would find tensor cores
LEFT = {("9.10.2", "sm_89"): {("1→16, 5x5x5, 128x128x64", "forward"), ("32→32, 5x5x5, 64x64x32", "grad_weight")}}
# and crashes when it is asked for this GPU
UNANSWERED = {"9.10.2": {"sm_100"}}


def test_versions_that_pytorch_brings_are_stored():
    assert VERSIONS == ["9.10.2", "9.19.0", "9.20.0", "9.24.0", "9.26.0"]
    assert all(releases for _, releases, _ in STORED)


@pytest.mark.parametrize(("version", "releases", "found"), STORED, ids=VERSIONS)
def test_every_pass_of_the_network_and_its_rewrites_is_answered(version, releases, found):
    asked = {(gpu, dtype, batch) for gpu in GPUS for dtype in TYPES for batch in BATCHES}
    left = UNANSWERED.get(version, set())
    assert set(found) == {key for key in asked if key[0] not in left}
    for (_, _, batch), rows in found.items():
        assert rows.keys() == questions(batch).keys()
        assert all(len(answer.split()) == 3 for answer in rows.values())


@pytest.mark.parametrize(("version", "releases", "found"), STORED, ids=VERSIONS)
def test_by_the_rule_every_pass_of_weight_has_tensor_cores(version, releases, found):
    for (gpu, dtype, batch), rows in found.items():
        if dtype in HALF:
            without = missing(rows, gpu, dtype, batch)
            assert set(without["rule"]) <= LEFT.get((version, gpu), set())
            if without["rule"]:
                assert not without["search"]


def test_hoppers_own_engines_come_first_for_stacked_convolutions():
    for _, _, found in STORED:
        for dtype, (layer, text, which, _) in itertools.product(HALF, steps(2)):
            if rule("sm_90", layer, which, dtype) == "zstack":
                kind = CALLS[text, "zstack", which].kind
                answer = found["sm_90", dtype, 2][text, "zstack", which]
                assert taken(answer, mode_by_rule("sm_90")) in {f"{engine}t" for engine in OWN_ENGINES[kind]}


def test_other_sizes_are_counted_likewise(monkeypatch):
    case = (1, (16, 16, 16), 8)
    for engine, expected in (("22t", 0), ("28", len(needing("sm_90", *case)))):
        answer = " | ".join([f"{engine}:0 #1"] * 3)
        monkeypatch.setattr(
            cudnn_sizes, "ask", lambda program, gpu, lines, answer=answer: ("1.2.3", [answer for _ in lines])
        )
        assert cudnn_sizes.counts(None, "sm_90", case) == ("1.2.3", dict.fromkeys(CHOICES, expected))
    assert expected > 0


def test_without_the_rule_hopper_lacks_tensor_cores_in_every_version():
    for _, _, found in STORED:
        assert len(missing(found["sm_90", "bfloat16", 2], "sm_90", "bfloat16", 2)["mode A"]) >= 3
    newest = STORED[-1][2]["sm_90", "bfloat16", 2]
    assert len(missing(newest, "sm_90", "bfloat16", 2)["mode B"]) == 2


def test_tables_are_those_of_the_answers():
    readme = README.read_text()
    written = replaced(readme, tables(STORED))
    lines = zip(written.splitlines(), readme.splitlines(), strict=False)
    assert next((pair for pair in lines if len(set(pair)) > 1), None) is None
    # without a comparison line by line, which takes long
    assert (written == readme) is True


def test_calls_are_those_of_pytorch():
    def question(layer, name, which):
        return CALLS[layer, name, which].question("bfloat16")

    assert question(FULL, "cudnn", "forward") == "fwd bfloat16 2 32 32 64 128 128 5 5 5 1 2 2 2"
    assert question(FULL, "cudnn", "grad_input") == "dgrad bfloat16 2 32 32 64 128 128 5 5 5 1 2 2 2"
    assert question(FULL, "zstack", "grad_input") == "fwd bfloat16 2 160 32 64 128 128 1 5 5 1 0 2 2"
    assert question(FULL, "pack2", "grad_weight") == "wgrad bfloat16 2 64 64 64 128 64 5 5 3 1 2 2 1"
    # an up-convolution is the gradient of a convolution from its output to its input
    up = "64→16, 2x2x2 up, 64x64x32"
    assert question(up, "cudnn", "forward") == "dgrad bfloat16 2 16 64 64 128 128 2 2 2 2 0 0 0"
    assert question(up, "cudnn", "grad_input") == "fwd bfloat16 2 16 64 64 128 128 2 2 2 2 0 0 0"
    # nothing asks for the gradient of the network's input
    assert ("1→16, 5x5x5, 128x128x64", "cudnn", "grad_input") not in CALLS


def test_layers_are_counted_by_topology():
    numbers = {str(layer): count for layer, count in layers(2).items()}
    assert sum(count["paper"] for count in numbers.values()) == 12 + 9 + 4 + 4 + 1
    assert numbers["32→2, 5x5x5, 128x128x64"] == {"paper": 0, "caffe": 1}
    assert numbers["128→128, 5x5x5, 32x32x16"] == {"paper": 3, "caffe": 2}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("22t:0 28:16 #2 | 22ts:536870912 #1 | #0", "22t 22t:512M -"),
        ("28:16 0s:0 22t:0 #3 | 28:0 #1 | 0s:0 #1", "28/22t@3 28 0"),
        # without a plan, or with rounded inputs: PyTorch does not count them
        ("9t:- 10td:0 28:0 40t:0 #4 | 9t:- #1 | 1rn:0 #1", "28/40t@2 - 1"),
        # not listed, but behind it is one on tensor cores
        ("28:0 . 22t:0 . #4 | 28:0 . . #3 | 28:0 #1", "28/22t@3 28 28"),
    ],
)
def test_summary_of_an_answer(answer, expected):
    assert summary(answer) == expected


def test_engines_that_pytorch_takes():
    assert taken("22t:512M 28/22t@3 1", "A") == "22t"
    assert taken("22t:512M 28/22t@3 1", "B") == "28"
    assert taken("- 22t 28/22t@3", "A") == "28"
    assert searched("28/22t@3 28 28") == "22t"
    assert searched("28/22t@11 28 28") == "28"
    assert searched("28 22t 28") == "28"
    assert searched("- 22t 1/9t@4") == "9t"
    assert searched("- 22t 1") == "1"


def test_stored_answers_are_read_back(tmp_path):
    version, releases, found = STORED[0]
    store(tmp_path, version, releases, found)
    assert load(tmp_path / f"{version}.json") == STORED[0]


def test_bytes_and_times_of_a_pass():
    call = CALLS[FULL, "cudnn", "forward"]
    voxels = 2 * 64 * 128 * 128
    assert nbytes(call) == 2 * (2 * 32 * voxels + 32 * 32 * 125)
    assert call.flops == 2 * voxels * 32 * 32 * 125
    assert seconds(call, "cudnn", "28") == pytest.approx(call.flops / 33.5e12)
    assert seconds(call, "cudnn", "22t") == pytest.approx(call.flops / (0.35 * 989e12))
    stacked = CALLS[FULL, "zstack", "forward"]
    copies = 8 * voxels * 32 * 2 / 3.35e12
    assert seconds(stacked, "zstack", "62t") == pytest.approx(call.flops / (0.6 * 989e12) + copies)
    # one channel is read as eight
    first = CALLS["1→16, 5x5x5, 128x128x64", "cudnn", "forward"]
    assert seconds(first, "cudnn", "22t") == pytest.approx(8 * first.flops / (0.35 * 989e12))
    assert needs_tensor_cores("sm_90", first)
    assert not needs_tensor_cores("sm_90", CALLS["2→2, 1x1x1, 128x128x64", "cudnn", "forward"])


def test_capabilities():
    assert [capability(gpu) for gpu in GPUS] == [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]
