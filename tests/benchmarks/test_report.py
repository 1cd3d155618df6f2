import copy
import json
import platform
import re
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import conftest, losses, parts, report, tables
from benchmarks.peers import PlainVNet, dice_loss
from benchmarks.provenance import without_folders
from vnet_fast import DiceLoss, VNet
from vnet_fast.training.step import Step, make_optimizer

MARKERS = "\n".join(
    f"{name}:\n<!-- {name}: begin -->\nold\n<!-- {name}: end -->" for name in ("kernels", *report.SECTIONS)
)
ABOUT = {
    "device": "CPU, 2 threads",
    "processor": "Some CPU",
    "volume": "64 x 64 x 32",
    "torch": "2.13",
    "triton": "3.7",
    "date": "2026-01-01",
    "kernels": {"dice.py": "ab"},
}
GPU = {"device": "Some GPU", "volume": "128 x 128 x 64", "cuda": "12.8"}


def benchmark(table, cells, **more):
    return {"extra_info": {"table": table, "cells": cells, **more}}


def result(about):
    """What a run leaves, of one provider that ran and one that failed."""
    times = {part: float(place) for place, part in enumerate(parts.PARTS)}
    return {
        "machine_info": {"vnet_fast": {**ABOUT, **about}},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "benchmarks": [
            benchmark(
                "step", {"batch": 1, "provider": "vnet_fast", "step, ms": 1234.5, "memory, GB": None}, parts=times
            ),
            benchmark("layers", {"layer": "1→16", "kernel": "a|b", "TFLOP/s": 0.12345}),
            benchmark("training", {"training": "vnet_fast", "volumes/s": 12.345}),
        ],
        "failures": [{"table": "step", "cells": {"batch": 1, "provider": "MONAI", "step, ms": "failed: no memory"}}],
    }


@pytest.fixture
def folder(tmp_path):
    """A README with all markers, and a folder for results."""
    (tmp_path / "README.md").write_text(f"# Title\n{MARKERS}\nend\n", encoding="utf-8")
    (tmp_path / "results").mkdir()
    return tmp_path


def written(folder, **contents):
    for name, content in contents.items():
        (folder / "results" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    report.write(folder / "README.md", folder / "results")
    text = (folder / "README.md").read_text(encoding="utf-8")
    pattern = r"<!-- (\w+): begin -->\n(.*?)<!-- \1: end -->"
    return text, dict(re.findall(pattern, text, re.DOTALL))


def test_without_results_it_says_so(folder):
    text, sections = written(folder)
    assert sections["kernels"] == "Not measured yet on a GPU.\n"
    for name in report.SECTIONS:
        assert sections[name] == "Not measured yet on a GPU.\n\nNot measured yet on a CPU.\n"
    assert text.startswith("# Title\n")
    assert text.endswith("\nend\n")
    assert not (folder / "results" / "step.svg").exists()


def test_tables_of_a_cpu(folder):
    _, sections = written(folder, cpu=result({}))
    step = sections["step"]
    assert "Not measured yet on a GPU." in step
    assert "Some CPU, 2 threads, 64 x 64 x 32 voxels, torch 2.13, triton 3.7" in step
    assert "commit 0123456789 with changes, 2026-01-01:" in step
    assert "| 1 | vnet_fast | 1234 | - |\n| 1 | MONAI | failed: no memory | - |" in step
    assert "| 1→16 | a/b | 0.123 |" in sections["layers"]
    assert "| vnet_fast | 12.3 |" in sections["pipeline"]
    assert sections["inference"] == "Not measured yet on a GPU.\n\nNot measured yet on a CPU.\n"


def test_both_machines_have_a_table_and_a_panel(folder):
    text, sections = written(folder, cpu=result({}), gpu=result(GPU))
    assert "Not measured" not in sections["step"]
    # the GPU comes first
    assert sections["step"].index("Some GPU") < sections["step"].index("Some CPU")
    assert "![A step's time by parts](results/step.svg)" in sections["step"]
    first = (folder / "results" / "step.svg").read_bytes()
    # written again, all is the same
    assert written(folder)[0] == text
    assert (folder / "results" / "step.svg").read_bytes() == first


def test_the_picture_is_of_the_papers_batch():
    content = result(GPU)
    for batch in (2, 4):
        content["benchmarks"].append(copy.deepcopy(content["benchmarks"][0]))
        content["benchmarks"][-1]["extra_info"]["cells"]["batch"] = batch
    assert report.bars(content)[0] == 2
    assert [provider for provider, _ in report.bars(content)[1]] == ["vnet_fast"]


@pytest.mark.parametrize("missing", ["<!-- step: begin -->", "<!-- inference: end -->"])
def test_missing_markers_are_an_error(folder, missing):
    readme = folder / "README.md"
    before = readme.read_text(encoding="utf-8").replace(missing, "")
    readme.write_text(before, encoding="utf-8")
    with pytest.raises(report.ReportError, match=f"README.md: needs .*{missing}.* Add the two lines"):
        written(folder, cpu=result({}))
    assert readme.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_an_unfinished_result_is_an_error(folder, content):
    (folder / "results" / "gpu.json").write_text(content)
    with pytest.raises(report.ReportError, match=r"gpu\.json: not the result of a finished run"):
        written(folder)


def test_a_failure_becomes_a_row_and_ours_does_not_pass(monkeypatch):
    rows, failures = [], []
    monkeypatch.setattr(tables, "ROWS", rows)
    monkeypatch.setattr(tables, "FAILURES", failures)
    with pytest.raises(pytest.xfail.Exception), tables.failure_as_row("step", {"provider": "theirs"}, "ms"):
        raise RuntimeError("no kernel in /home/somebody/code.py\nmore")
    with pytest.raises(ValueError, match="wrong"), tables.failure_as_row("step", {"provider": "ours"}, "ms", ours=True):
        raise ValueError("wrong")
    assert rows[0] == ("step", {"provider": "theirs", "ms": "failed: no kernel in code.py"})
    assert failures[1] == {"table": "step", "cells": {"provider": "ours", "ms": "failed: wrong"}}


def test_no_folder_of_the_machine_is_kept():
    command = "pytest benchmarks/ --benchmark-json=/home/somebody/a/gpu.json /tmp/x ../here/y"
    assert without_folders(command) == "pytest benchmarks/ --benchmark-json=gpu.json x ../here/y"


def test_no_name_of_the_machine_is_kept():
    machine_info = {"node": "somewhere", "cpu": {}}
    conftest.pytest_benchmark_update_machine_info(None, machine_info)
    assert set(machine_info) == {"vnet_fast"}
    assert platform.node() not in json.dumps(machine_info)
    commit_info = {"id": "ab", "dirty": False, "project": "folder", "branch": "mine"}
    conftest.pytest_benchmark_update_commit_info(None, commit_info)
    assert commit_info == {"id": "ab", "dirty": False}


@pytest.mark.parametrize(
    ("part", "name", "operations"),
    [
        ("convolutions, forward", "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32", ()),
        ("convolutions, backward", "cutlass_tensorop_bf16_s16816dgrad_optimized", ()),
        ("convolutions, backward", "sm90_xmma_fprop_implicit_gemm", ("aten::convolution_backward",)),
        ("convolutions, forward", "sm90_xmma_dgrad_implicit_gemm", ("aten::cudnn_convolution_transpose",)),
        ("copies and layout", "void cudnn::ops::nchwToNhwcKernel<float>", ("aten::cudnn_convolution",)),
        ("copies and layout", "vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda>", ()),
        ("activations and elementwise", "_add_prelu_backward_kernel", ()),
        ("activations and elementwise", "_sum_partials_kernel", ()),
        ("activations and elementwise", "cudnn::bn_fw_tr_1C11_kernel_NCHW", ("aten::cudnn_batch_norm",)),
        ("activations and elementwise", "triton_poi_fused__prelu_kernel_convolution_0", ("CompiledFunction",)),
        ("loss", "_dice_forward_kernel", ()),
        ("loss", "vectorized_elementwise_kernel", ("aten::mul", "DiceLoss")),
        ("optimiser", "void at::native::multi_tensor_apply_kernel<FusedSgdMathFunctor>", ()),
        (
            "convolutions, backward",
            "aten::convolution_backward",
            ("aten::convolution_backward", "CompiledFunctionBackward"),
        ),
        ("other", "unheard_of", ()),
    ],
)
def test_part_of(part, name, operations):
    assert parts.part_of(name, operations) == part


def step_of(model):
    optimizer = make_optimizer(model, "sgd", 1e-4, 0.99, 5e-4)
    return Step(model, DiceLoss.paper(), optimizer)


def test_parts_of_our_step_on_a_cpu():
    torch.manual_seed(0)
    step = step_of(VNet(base_channels=4))
    image, target = torch.randn(1, 1, 32, 64, 64), (torch.rand(1, 1, 32, 64, 64) > 0.9).to(torch.uint8)
    step(image, target)
    seconds = parts.step_by_parts(lambda: step(image, target), wall=1e3)
    assert sum(seconds.values()) == pytest.approx(1e3)
    busy = 1e3 - seconds.pop("idle")
    # one of them alone may come second where other processes take the time
    convolutions = seconds.pop("convolutions, forward") + seconds.pop("convolutions, backward")
    assert convolutions > max(seconds.values())
    assert all(seconds[part] > 0 for part in ("activations and elementwise", "loss", "optimiser"))
    assert seconds["other"] < 0.1 * busy


def test_parts_are_no_longer_than_the_step():
    seconds = parts.step_by_parts(lambda: torch.ones(1000) + 1, wall=1e-9)
    assert sum(seconds.values()) == pytest.approx(1e-9)
    assert seconds["idle"] == 0


def event(name, kernels=(), parent=None, microseconds=0, annotation=False):
    """What the profiler says of an operation, or with `microseconds` of a kernel on the GPU."""
    return SimpleNamespace(
        name=name,
        kernels=[SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels],
        cpu_parent=parent,
        sequence_nr=-1,
        device_type=DeviceType.CUDA if microseconds else DeviceType.CPU,
        time_range=SimpleNamespace(elapsed_us=lambda: microseconds),
        is_user_annotation=annotation,
    )


def test_kernels_count_for_what_launched_them_and_in_a_graph_by_name():
    loss, fprop = event("loss", annotation=True), "sm90_xmma_fprop"
    launched = [event("aten::convolution_backward", [(fprop, 10)]), loss, event("aten::mul", [("mul", 3)], parent=loss)]
    on_gpu = [
        event(fprop, microseconds=10),
        event("mul", microseconds=3),
        event("loss", microseconds=9, annotation=True),
    ]
    replayed = [event(fprop, microseconds=5), event("_dice_forward_kernel", microseconds=2)]
    seconds = parts._by_kernels(launched + on_gpu + replayed)
    expected = {"convolutions, backward": 10e-6, "convolutions, forward": 5e-6, "loss": 5e-6}
    assert {part: value for part, value in seconds.items() if value > 1e-12} == pytest.approx(expected)


def test_plain_networks_are_ours():
    torch.manual_seed(0)
    model, plain = VNet(), PlainVNet()
    plain.take_weights(model)
    image, target = torch.randn(1, 1, 16, 16, 16), (torch.rand(1, 1, 16, 16, 16) > 0.5).to(torch.uint8)
    with torch.no_grad():
        logits = model(image)
        torch.testing.assert_close(plain(image), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dice_loss(logits, target), DiceLoss.paper()(logits, target))


def test_the_table_of_losses(tmp_path):
    """What is shown of two runs is what is stored of them."""
    statistics = {"mean": 0.8, "standard_deviation": 0.05, "median": 0.81, "cases": 2}
    measured = {name: statistics for name, _, _ in losses.METRICS}
    measured["average_boundary_distance_mm"] = statistics | {"cases": 1}
    training = {"iterations": 6, "device": "CPU, 2 threads", "precision": "bfloat16"}
    content = {
        "command": "python -m vnet_fast.train --amp auto --data Some",
        "about": {"processor": "Some CPU", "torch": "2.13", "date": "2026-01-01"},
        "runs": [
            {"loss": loss, "training": training, "labels": {"1": {"whole": measured}}, "cases": {"a": {}, "b": {}}}
            for loss in ("dice", "weighted-ce")
        ],
        "comparisons": [{"label": 1, "metric": "dice", "differences": {"a": -0.1, "b": -0.3}, "p_value": 0.25}],
    }
    (tmp_path / "some.json").write_text(json.dumps(content))
    shown = losses.section(tmp_path)
    assert "6 iterations on Some CPU, CPU, 2 threads, bfloat16, torch 2.13, 2026-01-01" in shown
    assert (
        "| some | Dice loss | 2 | 0.8000 ± 0.0500 | 0.8100 | 0.80 ± 0.05 | 0.80 ± 0.05 (of 1) | +0.2000, 0.2 |" in shown
    )
    assert "| some | weighted cross-entropy | 2 |" in shown
    assert "-0.2000, 0.2 |" in shown


def test_readme_shows_the_stored_losses():
    readme = (report.ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = (marker.format("losses") for marker in report.MARKERS)
    assert readme.partition(begin)[2].partition(end)[0].strip() == losses.section(losses.RESULTS).strip()
