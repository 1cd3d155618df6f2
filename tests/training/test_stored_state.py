"""A checkpoint to resume whose fields have been changed: one line that names the field, and nothing is loaded."""

import copy
import io

import pytest
import torch

from tests.volumes import write_case
from vnet_fast.errors import InputError
from vnet_fast.nn.losses import DiceLoss
from vnet_fast.nn.vnet import VNet
from vnet_fast.run.configuration import Config
from vnet_fast.run.configure import configure
from vnet_fast.training import trainer
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import Step
from vnet_fast.training.stored_state import check_step_state

NAN = float("nan")
SCALER = {"scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 3}


@pytest.fixture(params=["sgd", "adamw"], scope="module")
def step(request):
    """A step that has been made once."""
    torch.manual_seed(0)
    model = VNet(base_channels=1)
    step = Step(model, DiceLoss.paper(), make_optimizer(model, request.param, 1e-3, 0.9, 1e-4))
    step(torch.randn(1, 1, 16, 16, 16), torch.ones(1, 1, 16, 16, 16, dtype=torch.uint8))
    return step


def buffer_of(step):
    return "momentum_buffer" if isinstance(step.optimizer, torch.optim.SGD) else "exp_avg"


def test_a_sound_state_is_taken_over(step):
    check_step_state(step.state_dict(), step, "x.pt")
    check_step_state({**step.state_dict(), "scaler": SCALER}, step, "x.pt")
    empty = {"state": {}, "param_groups": step.optimizer.state_dict()["param_groups"]}
    check_step_state({"optimizer": empty, "scaler": {}}, step, "x.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor[:1], r"has shape \[1"),
        (lambda tensor: torch.zeros(1).expand(10**12), r"has shape \[1000000000000\]"),
        (lambda tensor: tensor.double(), "must be a tensor of torch.float32; got a Tensor"),
        (lambda tensor: tensor * NAN, "is NaN or infinite"),
        (lambda tensor: [1.0], r"must be a tensor of torch.float32; got \[1.0\]"),
    ],
    ids=["shape", "expanded", "dtype", "NaN", "list"],
)
def test_a_buffer_that_does_not_fit(step, change, message):
    state, name = copy.deepcopy(step.state_dict()), buffer_of(step)
    of_weight = state["optimizer"]["state"][3]
    of_weight[name] = change(of_weight[name])
    with pytest.raises(InputError, match=rf"x.pt: can't be resumed: its optimizer's {name} of weight 3 {message}"):
        check_step_state(state, step, "x.pt")


def test_a_state_of_another_optimiser(step):
    groups = step.optimizer.state_dict()["param_groups"]
    for state, message in (
        ({3: {"other": torch.zeros(1)}}, "its optimizer's state of weight 3 is not of this optimiser"),
        ({3: {buffer_of(step): None, "more": 1}}, "its optimizer's state of weight 3 is not of this optimiser"),
        ({999: {}}, "its optimizer has a state of 999, which is no weight"),
        ({"x": {}}, "its optimizer has a state of 'x', which is no weight"),
        ({3: 5}, "its optimizer has a state of 3, which is no weight"),
        ([], "its optimizer has no groups, or no state"),
    ):
        with pytest.raises(InputError, match=message):
            check_step_state({"optimizer": {"state": state, "param_groups": groups}, "scaler": {}}, step, "x.pt")
    for wrong in ([], [5, 5], groups[:1], [{"params": ["x"]}, {"params": []}], None):
        with pytest.raises(InputError, match=r"belongs to other parameters|has no groups"):
            check_step_state({"optimizer": {"state": {}, "param_groups": wrong}, "scaler": {}}, step, "x.pt")


def test_a_number_of_updates(step):
    if buffer_of(step) != "exp_avg":
        return
    for value in (torch.zeros(3), -1, NAN, "x", torch.tensor(NAN)):
        state = copy.deepcopy(step.state_dict())
        state["optimizer"]["state"][0]["step"] = value
        with pytest.raises(InputError, match="its optimizer's step of weight 0 must be a number, 0 or more"):
            check_step_state(state, step, "x.pt")


def test_a_mean_of_squares_is_not_negative(step):
    if buffer_of(step) != "exp_avg":
        return
    state = copy.deepcopy(step.state_dict())
    state["optimizer"]["state"][2]["exp_avg_sq"].sub_(1)
    with pytest.raises(InputError, match="its optimizer's exp_avg_sq of weight 2 is negative"):
        check_step_state(state, step, "x.pt")


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", 0.0), ("scale", NAN), ("growth_factor", 1), ("backoff_factor", "x"), ("growth_interval", 0),
     ("_growth_tracker", -1)],
)  # fmt: skip
def test_a_wrong_scaler(step, name, value):
    with pytest.raises(InputError, match=f"its scaler's {name} must be"):
        check_step_state({**step.state_dict(), "scaler": {**SCALER, name: value}}, step, "x.pt")
    scaler = {other: SCALER[other] for other in SCALER if other != name}
    with pytest.raises(InputError, match=f"its scaler lacks {name}"):
        check_step_state({**step.state_dict(), "scaler": scaler}, step, "x.pt")


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The folder of a run with a single checkpoint, and what that holds."""
    folder = tmp_path_factory.mktemp("started")
    (folder / "data").mkdir()
    for index in range(3):
        write_case(folder / "data", f"Case{index}", seed=index)
    settings = {"volume": (16, 16, 16), "spacing": (1.5, 1.5, 2.0), "base_channels": 1, "folds": 3, "device": "cpu"}
    settings |= {
        "amp": "off",
        "iterations": 1,
        "ema": 0.9,
        "data": str(folder / "data"),
        "cache": str(folder / "cache"),
    }
    with trainer.Trainer(Config(output=str(folder / "run"), **settings)) as run:
        run.train()
    for name in ("previous.pt", "best.pt"):
        (folder / "run" / name).unlink(missing_ok=True)
    return folder / "run", (folder / "run" / "last.pt").read_bytes()


WRONG = [
    (lambda content: content.pop("seconds"), "last.pt: can't be resumed: it has no seconds"),
    (lambda content: content.pop("optimizer"), "last.pt: can't be resumed: it has no optimizer"),
    (lambda content: content.update(best={}), "last.pt: can't be resumed: its best lacks iteration, dice or per_case"),
    (lambda content: content["best"].update(iteration=9), "can't be resumed: its best is no validation of the run"),
    (lambda content: content["best"].update(per_case=None), "can't be resumed: its best is no validation of the run"),
    (lambda content: content["best"].update(per_case={"x": [0.5]}), "its best is a validation of other cases"),
    (lambda content: content["best"].update(more=1), r"can't be resumed \(.*unexpected keyword argument 'more'"),
    (lambda content: content.update(training=["x"]), "run: its cases have changed: "),
    (lambda content: content.update(batch=10**12), "--volume: steps on 1000000000000 of 16 x 16 x 16 voxels"),
    (lambda content: content["optimizer"].update(state=5), "its optimizer has no groups, or no state"),
    (lambda content: content.update(scaler={"scale": "x"}), "its scaler lacks _growth_tracker"),
    (lambda content: content["config"].update(iterations=0), "it is at iteration 1 of 0"),
    (lambda content: content["optimizer"].update(state={}), "its optimizer has no state of weight 0"),
    (lambda content: content["optimizer"]["state"].pop(3), "its optimizer has no state of weight 3"),
    (
        lambda content: content["best"].update(since=-1),
        "last.pt: its best since must be a whole number, 0 or more; got -1",
    ),
    (lambda content: content.update(average=5), "last.pt: its average must be the average of the weights; got 5"),
    (lambda content: content.pop("average"), "last.pt: can't be resumed: it has no average of the weights"),
    (lambda content: content["average"].update(updates=-1), "its average lacks the number of updates, or weights"),
    (lambda content: content["average"]["raw"].popitem(), "its average lacks the number of updates, or weights"),
    (lambda content: content["average"]["raw"]["head.bias"].fill_(NAN), "its average's head.bias is NaN or infinite"),
    (
        lambda content: shorten(content["average"]["raw"]),
        r"its average's head.bias has shape \[1\], and the weight \[2\]",
    ),
]


def shorten(raw):
    raw["head.bias"] = raw["head.bias"][:1].clone()


@pytest.mark.parametrize(("change", "message"), WRONG, ids=range(len(WRONG)))
def test_a_changed_checkpoint_is_not_resumed(started, change, message):
    run, intact = started
    content = torch.load(io.BytesIO(intact), weights_only=True)
    change(content)
    torch.save(content, run / "last.pt")
    with pytest.raises(InputError, match=message) as raised:
        trainer.Trainer(configure({"resume": str(run), "iterations": 3}))
    assert "\n" not in str(raised.value)
