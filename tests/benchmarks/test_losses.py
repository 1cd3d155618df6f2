import json

from benchmarks import loss_table


def test_the_table_of_losses(tmp_path):
    """What is shown of two runs is what is stored of them."""
    statistics = {"mean": 0.8, "standard_deviation": 0.05, "median": 0.81, "cases": 2}
    measured = {name: statistics for name, _ in loss_table.METRICS}
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
    shown = loss_table.section(tmp_path)
    assert "6 iterations on Some CPU, CPU, 2 threads, bfloat16, torch 2.13, 2026-01-01" in shown
    assert "| some | Dice loss | 2 | 0.8000 ± 0.0500 | 0.8100 | 0.80 ± 0.05 | 0.80 (of 1) | +0.2000, 0.2 |" in shown
    assert "| some | weighted cross-entropy | 2 |" in shown
    assert "-0.2000, 0.2 |" in shown
