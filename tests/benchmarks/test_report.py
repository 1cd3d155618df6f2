import copy
import dataclasses
import json
import re

import pytest

from benchmarks import learning_table, parts, report, stored
from benchmarks.highlights import forward_passes, highlights
from benchmarks.measure import Row
from benchmarks.stored import ReportError

RESULTS = ["ceilings", *report.SECTIONS, "kernels", "learning", "losses"]
SECTIONS = {"README.md": ["benchmarks", "learning"], "benchmarks/RESULTS.md": RESULTS}
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
CEILINGS = {
    "bfloat16": {
        "arithmetic": {"torch.mm, 1024 x 1024": 4e11, "multiply-add loop, bfloat16": 4.72e11},
        "traffic": {"1024": 1.8e11, "4096": 4.5e10},
        "note": None,
    }
}


def benchmark(table, cells, **more):
    return {"extra_info": {"table": table, "cells": cells, **more}}


def result(about):
    """What a run stores, of one provider that ran and one that failed."""
    times = {part: float(place) for place, part in enumerate(parts.PARTS)}
    step = {"batch": 1, "provider": "vnet_fast, AMP", "step, ms": 1234.5, "floor, ms": 900.0, "share of floor, %": 72.9}
    layer = {"layer": "1→16", "kernel": "a|b", "time, µs": 0.12345, "TFLOP/s": 0.4, "share of peak, %": 84.7}
    return {
        "machine_info": {"vnet_fast": {**ABOUT, "ceilings": CEILINGS, **about}},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "benchmarks": [
            benchmark("step", {**step, "memory, GB": None}, parts=times),
            benchmark("layers", layer),
            benchmark("training", {"training": "vnet_fast", "volumes/s": 12.345}),
        ],
        "failures": [{"table": "step", "cells": {"batch": 1, "provider": "MONAI", "step, ms": "failed: no memory"}}],
    }


def table_of(*providers, name="step", column="step, ms"):
    """Benchmarks of one table, of (provider, milliseconds)."""
    return [benchmark(name, {"batch": 1, "provider": provider, column: time}) for provider, time in providers]


@pytest.fixture
def folder(tmp_path):
    """A repository with all markers, and a folder for results."""
    (tmp_path / "benchmarks" / "results" / "losses").mkdir(parents=True)
    for name, sections in SECTIONS.items():
        markers = [f"{section}:\n<!-- {section}: begin -->\nold\n<!-- {section}: end -->" for section in sections]
        (tmp_path / name).write_text("\n".join(["# Title", *markers, "end\n"]), encoding="utf-8")
    return tmp_path


def written(folder, **contents):
    """The sections of both files, and the text of RESULTS.md."""
    for name, content in contents.items():
        (folder / "benchmarks" / "results" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    report.write(folder)
    texts = [(folder / name).read_text(encoding="utf-8") for name in SECTIONS]
    pattern = r"<!-- (\w+): begin -->\n(.*?)<!-- \1: end -->"
    return dict(re.findall(pattern, "".join(texts), re.DOTALL)), texts[1]


def test_without_results_it_says_so(folder):
    sections, text = written(folder)
    assert sections["kernels"] == "Not measured yet on a GPU.\n"
    for name in ("benchmarks", "ceilings", "learning", "losses"):
        assert sections[name] == "Not measured yet.\n"
    for name in report.SECTIONS:
        assert sections[name] == "Not measured yet on a GPU.\n\nNot measured yet on a CPU.\n"
    assert text.startswith("# Title\n")
    assert text.endswith("\nend\n")
    assert not (folder / "benchmarks" / "results" / "step.svg").exists()


def test_tables_of_a_cpu(folder):
    sections, _ = written(folder, cpu=result({}))
    step = sections["step"]
    assert "Not measured yet on a GPU." in step
    assert "Some CPU, 2 threads, 64 x 64 x 32 voxels, torch 2.13, triton 3.7" in step
    assert "commit 0123456789 with changes, 2026-01-01:" in step
    assert "| 1 | vnet_fast, AMP | 1234 | 900 | 72.9 | - |\n\n- Failed, no memory. Batch of 1: MONAI.\n" in step
    assert "| 1→16 | a/b | 0.123 | 0.400 | 84.7 |" in sections["layers"]
    assert "| vnet_fast | 12.3 |" in sections["pipeline"]
    assert sections["inference"] == "Not measured yet on a GPU.\n\nNot measured yet on a CPU.\n"
    row = "| Some CPU, 2 threads, 2026-01-01 | bfloat16 | 0.472 | multiply-add loop, bfloat16 | 45.0 | 180 |"
    assert row in sections["ceilings"]


def without_names(content):
    content["machine_info"]["vnet_fast"]["ceilings"] = {"bfloat16": {"flops": 4e11, "bandwidth": 1e10}}


def with_a_share_above_100(content):
    content["benchmarks"][1]["extra_info"]["cells"]["share of peak, %"] = 100.1


@pytest.mark.parametrize("spoil", [without_names, with_a_share_above_100])
def test_no_shares_without_known_ceilings(folder, spoil):
    content = result({})
    spoil(content)
    sections, _ = written(folder, cpu=content)
    assert "- No ceilings, hence no floors and shares: Some CPU, 2 threads, 64 x 64" in sections["ceilings"]
    assert "| 1 | vnet_fast, AMP | 1234 | - |\n" in sections["step"]
    assert "| 1→16 | a/b | 0.123 |\n" in sections["layers"]
    assert "share" not in sections["step"] + sections["layers"]


def test_both_machines_have_a_table_and_a_panel(folder):
    sections, text = written(folder, cpu=result({}), gpu=result(GPU))
    assert "Not measured" not in sections["step"]
    # the GPU comes first
    assert sections["step"].index("Some GPU") < sections["step"].index("Some CPU")
    assert "![A step's time by parts](results/step.svg)" in sections["step"]
    image = folder / "benchmarks" / "results" / "step.svg"
    first = image.read_bytes()
    # a second time, all is the same
    assert written(folder)[1] == text
    assert image.read_bytes() == first


def test_the_picture_is_of_the_papers_batch():
    content = result(GPU)
    for batch in (2, 4):
        content["benchmarks"].append(copy.deepcopy(content["benchmarks"][0]))
        content["benchmarks"][-1]["extra_info"]["cells"]["batch"] = batch
    assert report.bars(content)[0] == 2
    assert [provider for provider, _ in report.bars(content)[1]] == ["vnet_fast, AMP"]


def test_highlights_compare_with_plain_pytorch():
    small, full = result({}), result({"volume": "128 x 128 x 64"})
    plain, ours = "plain PyTorch, float32", "vnet_fast, AMP"
    small["benchmarks"] = table_of((plain, 300.0), ("common V-Net, float32", 1.0), (ours, 150.0))
    full["benchmarks"] = table_of((ours, 1000.0), (plain, 2500.0))
    full["benchmarks"] += table_of((plain, 700.0), (ours, 350.0), name="inference", column="latency, ms")
    # a row's own ratio, of plain PyTorch in the same minutes
    small["benchmarks"][-1]["extra_info"]["cells"]["times plain float32"] = 2.5
    picture, _, heading, *lines = highlights([small, full]).rstrip().split("\n")
    assert picture.startswith("![Milliseconds of a forward pass")
    assert heading.startswith("Milliseconds for one volume on Some CPU, 2 threads (torch 2.13, 2026-01-01)")
    assert lines[1:] == [
        "| provider | training step, 128 x 128 x 64 | forward pass, 128 x 128 x 64 | training step, 64 x 64 x 32 |",
        "| --- | --- | --- | --- |",
        "| plain PyTorch, float32 | 2500 | 700 | 300 |",
        "| vnet_fast, AMP | 1000 (2.50×) | 350 (2.00×) | 150 (2.50×) |",
    ]


def test_the_picture_of_forward_passes_is_of_a_cpu_and_its_largest_volumes(folder):
    small, full = both({}), both({"volume": "128 x 128 x 64"})
    for content, ours in ((small, 3.0), (full, 40.0)):
        times = ("plain PyTorch, float32", 100.0), ("OpenVINO, float32", 50.0), ("vnet_fast, float32", ours)
        content["benchmarks"] += table_of(*times, name="inference", column="latency, ms")
    sections, _ = written(folder, full=full, gpu=both(GPU), small=small)
    picture = "![Milliseconds of a forward pass, by provider](benchmarks/results/forward.svg)"
    assert sections["benchmarks"].count(picture) == 1
    assert sections["benchmarks"].index("Some GPU") < sections["benchmarks"].index(picture)
    assert "| OpenVINO, float32 | - | 50.0 (2.00×) | - | 50.0 (2.00×) |" in sections["benchmarks"]
    title, times = forward_passes([small, full])
    assert title == "Forward pass of 128 x 128 x 64 voxels, Some CPU, 2 threads"
    assert times == {"plain PyTorch, float32": 100.0, "OpenVINO, float32": 50.0, "vnet_fast, float32": 40.0}
    image = (folder / "benchmarks" / "results" / "forward.svg").read_text()
    # the figure, its axes and two of their lines, and a bar each
    assert image.count('<g id="patch_') == 4 + len(times)
    assert forward_passes([both(GPU)]) is None


def both(about):
    """A result that compares: plain PyTorch and vnet_fast."""
    content = result(about)
    content["benchmarks"] = table_of(("plain PyTorch, float32", 20.0), ("vnet_fast, AMP", 10.0))
    return content


def test_highlights_are_of_a_gpu_and_of_a_cpu():
    cpu, gpu, other = both({}), both(GPU), both({"processor": "Other CPU"})
    text = highlights([cpu, gpu, cpu])
    assert 0 < text.index("on Some GPU") < text.index("on Some CPU")
    assert text.count("| vnet_fast, AMP | 10.0 (2.00×) |") == 2
    # of two processors the one with more results
    text = highlights([cpu, other, other])
    assert "Other CPU" in text
    assert "Some CPU" not in text


def test_highlights_are_ratios_of_one_run():
    alone = result(GPU)
    alone["benchmarks"] = table_of(("vnet_fast, AMP, graph", 9.0))
    assert highlights([alone]) == "Not measured yet.\n"
    assert "Some GPU" not in highlights([alone, both({})])


@pytest.mark.parametrize("missing", ["<!-- benchmarks: begin -->", "<!-- step: begin -->", "<!-- inference: end -->"])
def test_missing_markers_are_an_error(folder, missing, monkeypatch, capsys):
    name = next(name for name in SECTIONS if missing in (folder / name).read_text(encoding="utf-8"))
    path = folder / name
    path.write_text(path.read_text(encoding="utf-8").replace(missing, ""), encoding="utf-8")
    before = [(folder / name).read_text(encoding="utf-8") for name in SECTIONS]
    with pytest.raises(ReportError, match=rf"^{path.name}: needs .*{missing}.* Add these lines"):
        written(folder, cpu=result({}))
    assert [(folder / name).read_text(encoding="utf-8") for name in SECTIONS] == before
    monkeypatch.setattr(report, "ROOT", folder)
    assert report.main() == 2
    assert re.fullmatch(rf"error: {path.name}: needs .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_an_unfinished_result_is_an_error(folder, content):
    (folder / "benchmarks" / "results" / "gpu.json").write_text(content)
    with pytest.raises(ReportError, match=r"gpu\.json: not the result of a finished run"):
        written(folder)


def test_the_table_of_kernels_is_made_from_the_results():
    row = Row("Dice forward", "vnet_fast", 2e-4, 1e-5, 10_000_000, 4_000_000)
    content = result(GPU)
    content["benchmarks"] = [
        {"extra_info": {"row": dataclasses.asdict(r)}}
        for r in (row, Row("Dice forward", "copy", 1e-4, 8e-6, 10_000_000, 0))
    ]
    section = report.kernels_section([content])
    assert "Some GPU, torch 2.13, Triton 3.7 (dice.py ab)" in section
    assert "| Dice forward | vnet_fast | 200 | 10.0 | 1000 | 80 % | 4.0 |" in section


@pytest.mark.parametrize("name", SECTIONS)
def test_files_show_what_the_results_say(name):
    """README.md and RESULTS.md are as `report.py` writes them."""
    results = report.ROOT / "benchmarks" / "results"
    contents, learned = stored.load(results), learning_table.load(results / "learning")
    sections = report.sections(contents, learned, results / "losses")
    in_short = {"benchmarks": highlights(contents), "learning": report.learning_highlights(learned)}
    markdown = in_short if name == "README.md" else sections
    path = report.ROOT / name
    assert report.with_sections(path, markdown) == path.read_text(encoding="utf-8")


def test_results_are_read_in_the_order_of_their_names(folder):
    for name in ("b", "a"):
        path = folder / "benchmarks" / "results" / f"{name}.json"
        path.write_text(json.dumps(result({"date": name})))
    contents = stored.load(folder / "benchmarks" / "results")
    assert [stored.provenance_of(content)["date"] for content in contents] == ["a", "b"]
