"""`Trainer` trains as the command does, and leaves the program that it is part of as it was."""

import dataclasses
import inspect
import signal
import sys
import threading
import warnings

import pytest
import torch

from tests.interface.conftest import TINY
from tests.send_signal import send
from vnet_fast import InputError, InputErrors, Segmenter, Trainer, train
from vnet_fast.interface import training
from vnet_fast.interface.options import checked
from vnet_fast.interface.training import Run
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import Config
from vnet_fast.run.folder import write_config
from vnet_fast.training import trainer

HANDLED = signal.SIGINT, signal.SIGTERM


@pytest.fixture
def options(cases, tmp_path):
    return {"data": cases, "output": tmp_path / "run", "iterations": 3, "val_every": 3, **TINY}


def state():
    """What a run must leave as it was."""
    return {
        "threads": torch.get_num_threads(),
        "random": torch.get_rng_state().tolist(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "handlers": [signal.getsignal(number) for number in HANDLED],
        "streams": (sys.stdout, sys.stderr),
    }


def stop_at(monkeypatch, iteration, *numbers):
    """Sends signals in the middle of an iteration."""
    update = trainer.Trainer._update

    def stopping(run, source):
        if run.iteration + 1 == iteration:
            for number in numbers:
                # a second one raises an exception
                before = run.stop.number
                send(number, lambda before=before: before is None and run.stop.number is not None)
        return update(run, source)

    monkeypatch.setattr(trainer.Trainer, "_update", stopping)


@pytest.mark.usefixtures("quick_training")
def test_the_same_run_as_the_command(options, cases, tmp_path, run_verb):
    command = ["--data", cases, "--output", tmp_path / "command", "--iterations", 3, "--val-every", 3, "--folds", 3]
    command += ["--volume", 16, 16, 16, "--spacing", 1.5, 1.5, 2, "--base-channels", 2, "--device", "cpu"]
    assert run_verb(train, *command)[0] == 0
    run = Trainer(**options).run()
    assert run == Run(tmp_path / "run")
    assert run.best == tmp_path / "run" / "best.pt"
    ours, theirs = (checkpoint.load(path)["model"] for path in (run.best, tmp_path / "command" / "best.pt"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.summary["val_dice"] == Run(tmp_path / "command").summary["val_dice"]
    assert dataclasses.replace(run.config, output="") == dataclasses.replace(
        Run(tmp_path / "command").config, output=""
    )
    assert [row["iteration"] for row in run.log] == [1, 2, 3]
    assert [row["validation_dice"] is not None for row in run.log] == [False, False, True]
    assert Segmenter.load(run.folder, device="cpu")(cases / "Case00.mhd").labels.shape == (16, 18, 20)


@pytest.mark.usefixtures("quick_training")
def test_nothing_is_printed_and_all_is_as_before(options, capfd, monkeypatch):
    # as on a machine with more cores than PyTorch was told to use
    monkeypatch.setattr(training, "use_all_cores", lambda: torch.set_num_threads(2))
    torch.manual_seed(7)
    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(**options, deterministic=True).run()
        assert state() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("quick_training")
def test_verbose_prints_the_lines_of_the_command(options, capfd):
    Trainer(**options, verbose=True).run()
    out, err = capfd.readouterr()
    assert "device: CPU" in out
    assert "iteration 3/3" in out
    assert "validation Dice" in out.splitlines()[-2]
    assert err == ""


@pytest.mark.usefixtures("quick_training")
def test_a_warning_is_one_of_pythons(options, cases):
    import SimpleITK as sitk

    path = str(cases / "Case03_segmentation.mhd")
    mask = sitk.ReadImage(path)
    sitk.WriteImage(mask * 0, path, useCompression=True)
    with pytest.warns(UserWarning, match=r"Case03_segmentation.mhd: the mask is empty"):
        Trainer(**options).run()


@pytest.mark.usefixtures("quick_training")
def test_ctrl_c_is_raised_once_the_run_is_stored(options, tmp_path, monkeypatch):
    before = state()
    with monkeypatch.context() as patch:
        stop_at(patch, 2, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match=r"Trainer.resume\('.*run'\).run\(\) goes on"):
            Trainer(**options).run()
    assert state() == before
    assert checkpoint.load(tmp_path / "run" / "last.pt")["iteration"] == 2
    with pytest.raises(InputError, match=r"summary.json"):
        Run(tmp_path / "run").summary  # noqa: B018 - is read
    resumed = Trainer.resume(tmp_path / "run").run()
    whole = Trainer(**{**options, "output": tmp_path / "whole"}).run()
    assert [row["loss"] for row in resumed.log] == [row["loss"] for row in whole.log]


@pytest.mark.usefixtures("quick_training")
def test_a_second_ctrl_c_interrupts_at_once(options, tmp_path, monkeypatch):
    """It does not end the process, which may be a notebook."""
    stop_at(monkeypatch, 3, signal.SIGINT, signal.SIGINT)
    before = state()
    with pytest.raises(KeyboardInterrupt):
        Trainer(**options, save_every=1).run()
    assert state() == before
    # the iteration was not finished, and the lock is free
    assert checkpoint.load(tmp_path / "run" / "last.pt")["iteration"] == 2
    assert not (tmp_path / "run" / "lock").exists()


@pytest.mark.usefixtures("quick_training")
def test_ctrl_c_in_a_cross_validation_begins_no_other_fold(options, tmp_path, monkeypatch):
    stop_at(monkeypatch, 2, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="goes on"):
        Trainer(**options, fold="all").run()
    assert (tmp_path / "run" / "fold0" / "last.pt").exists()
    assert not (tmp_path / "run" / "fold1").exists()


@pytest.mark.usefixtures("quick_training")
def test_another_signal_reaches_the_program(options, tmp_path, monkeypatch):
    received = []
    monkeypatch.setattr(signal, "raise_signal", received.append)
    stop_at(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        Trainer(**options).run()
    assert received == [signal.SIGTERM]
    assert (tmp_path / "run" / "last.pt").exists()


@pytest.mark.usefixtures("quick_training")
def test_a_thread_without_signals(options):
    runs, before = [], [signal.getsignal(number) for number in HANDLED]
    thread = threading.Thread(target=lambda: runs.append(Trainer(**options).run()))
    thread.start()
    thread.join(60)
    assert runs[0].summary["iterations"] == 3
    assert [signal.getsignal(number) for number in HANDLED] == before


@pytest.mark.exhaustive
@pytest.mark.usefixtures("quick_training")
def test_a_cross_validation(options, cases):
    run = Trainer(**{**options, "iterations": 1}, fold="all").run()
    assert [path.parent.name for path in run.checkpoints] == ["fold0", "fold1", "fold2"]
    with pytest.raises(InputError, match=r"has a best.pt for each fold"):
        run.best  # noqa: B018 - is read
    with pytest.raises(InputError, match=r"has a log.csv for each fold. Name the folder of a fold"):
        run.log  # noqa: B018 - is read
    assert Segmenter.load(run.folder, device="cpu").networks.count == 3


def test_check_reads_all_cases(options, cases, tmp_path, capfd):
    Trainer(**options).check()
    assert capfd.readouterr() == ("", "")
    Trainer(**options, verbose=True).check()
    assert "6 of 6 cases can be read" in capfd.readouterr().out
    assert not (tmp_path / "run").exists()
    (cases / "Case01.zraw").unlink()
    (cases / "Case02.zraw").write_bytes(b"nonsense")
    with pytest.raises(InputErrors) as found:
        Trainer(**options).check()
    assert len(found.value.errors) == 2


def test_errors_are_those_of_the_command(tmp_path, run_verb):
    code, _, err = run_verb(train, "--data", tmp_path / "nowhere", "--output", tmp_path / "run")
    with pytest.raises(InputError) as found:
        Trainer(data=tmp_path / "nowhere", output=tmp_path / "run").run()
    assert (code, err) == (2, f"error: {found.value}\n")
    assert found.value.remedy == "Check the path"


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"minuts": 8},
            TypeError,
            r"Trainer\(\) got an unexpected keyword argument 'minuts'. Did you mean 'minutes'\?",
        ),
        ({"zzz": 8}, TypeError, r"argument 'zzz'$"),
        ({"check": True}, TypeError, r"call Trainer\(...\).check\(\)"),
        ({"minutes": -1}, InputError, "--minutes: must be a number above 0; got '-1'"),
        ({"minutes": "8"}, InputError, "--minutes: must not be of the type str; got '8'"),
        ({"iterations": 2.5}, InputError, "--iterations: must be a whole number above 0; got '2.5'"),
        ({"iterations": [2, 3]}, InputError, "--iterations: must be a single value"),
        ({"iterations": True}, InputError, "--iterations: must be no truth value; got True"),
        ({"binary": 1}, InputError, "--binary: must be True or False; got 1"),
        ({"recipe": "slow"}, InputError, "--recipe: invalid choice: 'slow'"),
        ({"recipe": ["fast"]}, InputError, "--recipe: must be a single value"),
        ({"device": "tpu"}, InputError, "--device: invalid choice: 'tpu'"),
        ({"data": ""}, InputError, "--data: must be a path"),
        ({"volume": ()}, InputError, "--volume: must be"),
        ({"volume": (16, 16, "16")}, InputError, "--volume: must not be of the type tuple"),
        ({"regions": "core: 1 2", "fold": -1}, InputError, "--fold: must be all or a whole number"),
    ],
)
def test_wrong_options(options, kind, message):
    with pytest.raises(kind, match=message):
        Trainer(**options)


@pytest.mark.usefixtures("quick_training")
def test_precisions_of_the_program_change_no_run(options, tmp_path):
    plain = Trainer(**options).run()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            run = Trainer(**options | {"output": tmp_path / "other", "device": torch.device("cpu")}).run()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    ours, theirs = (checkpoint.load(of.best)["model"] for of in (run, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_unfinished_run_has_no_result(tmp_path):
    with pytest.raises(InputError, match=r"has no summary.json: the run is not finished. Resume with: "):
        _ = Run(tmp_path).summary


def test_options_whose_value_can_be_left_out_take_true():
    assert checked(Config, {"amp": True, "flip": True}, "Trainer") == {"amp": "auto", "flip": "x"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 1, "iterations": 5}, "--minutes: given with --iterations"),
        ({"volume": (16, 16)}, "--volume: must be three numbers; got 16 16"),
        ({"labels": "x"}, "--labels: given without --data"),
        ({"fold": 7}, "--fold: must be below --folds"),
        ({"spacing": "auto"}, "--spacing: is auto without --data"),
    ],
)
def test_options_that_contradict_each_other(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        Trainer(**options, output=tmp_path / "run").run()
    assert not (tmp_path / "run").exists()


def test_options_are_those_of_the_command(tmp_path):
    """Every field of the Config is a keyword, and None is as if it were not given."""
    names = {field.name for field in dataclasses.fields(Config)}
    assert set(inspect.signature(Trainer).parameters) == names | {"verbose"}
    assert Trainer(**dict.fromkeys(names)).options == {}
    given = {
        "data": tmp_path,
        "regions": ["-a: 1", "b: 1 2"],
        "minutes": 8,
        "noise": (0.5, 0.1),
        "fold": "all",
        "tensorboard": False,
    }
    assert Trainer(**given).options == {
        **given, "data": str(tmp_path), "minutes": 8.0, "noise": [0.5, 0.1],
    }  # fmt: skip
    assert Trainer(volume="auto").options == {"volume": ["auto"]}
    assert Trainer.resume(tmp_path, iterations=4).options == {"resume": str(tmp_path), "iterations": 4}


def test_the_log_of_what_has_none(tmp_path):
    for fold, message in (("all", "has a log.csv for each fold. Name the folder of a fold"), (0, "has no log.csv yet")):
        write_config(tmp_path, Config(output=str(tmp_path), fold=fold))
        with pytest.raises(InputError, match=message):
            Run(tmp_path).log  # noqa: B018 - is read


def test_a_resumed_run_is_not_checked(tmp_path):
    with pytest.raises(TypeError, match=r"call Trainer\(data=...\).check\(\)"):
        Trainer.resume(tmp_path).check()


def test_one_run_at_a_time():
    """The second waits for the first, and begins with the settings that were there before it."""
    begun = threading.Event()

    def wait():
        with training._kept_settings():
            begun.set()

    thread = threading.Thread(target=wait)
    with training._kept_settings():
        thread.start()
        assert not begun.wait(0.2)
    thread.join(10)
    assert begun.is_set()


@pytest.mark.usefixtures("quick_training")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_run_within_a_block_without_gradients(options, mode):
    with mode():
        assert len(Trainer(**{**options, "iterations": 1}).run().log) == 1
        assert not torch.is_grad_enabled()
