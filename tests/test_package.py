import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import vnet_fast
from vnet_fast import __main__
from vnet_fast.kernels import cpu_library

ROOT = Path(__file__).resolve().parents[1]


def python(code, folder, **environment):
    path = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **path, **environment},
        capture_output=True,
        text=True,
    )


def test_public_names():
    losses = ["DiceCELoss", "DiceFocalLoss", "DiceLoss", "GeneralizedDiceLoss", "TverskyLoss", "WeightedCrossEntropy"]
    interface = ["InputError", "InputErrors", "Segmenter", "Trainer", "evaluate_masks"]
    assert sorted(vnet_fast.__all__) == sorted([*losses, *interface, "VNet", "__version__"])
    assert all(hasattr(vnet_fast, name) for name in vnet_fast.__all__)
    assert set(vnet_fast.__all__) <= set(dir(vnet_fast))
    # the modules of the commands are none of these names
    assert all(callable(getattr(vnet_fast, name)) for name in interface)
    with pytest.raises(AttributeError, match="has no attribute 'Segmenters'"):
        vnet_fast.Segmenters  # noqa: B018 - is looked up


@pytest.mark.parametrize(
    "absent",
    [
        "SimpleITK",
        "triton",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("matplotlib", "tensorboard")),
    ],
)
def test_imports_without(absent, tmp_path):
    code = (
        f"import sys; sys.modules[{absent!r}] = None; import torch, vnet_fast; "
        "loss = vnet_fast.DiceLoss.paper()(vnet_fast.VNet(base_channels=1)(torch.zeros(1, 1, 16, 16, 16)), "
        "torch.ones(1, 1, 16, 16, 16)); assert loss.isfinite()"
    )
    result = python(code, tmp_path)
    assert result.returncode == 0, result.stderr


GLOBALS = """
import json, locale, logging, os, signal, sys, warnings
import torch
import SimpleITK
import matplotlib
# these have filters of warnings of their own
import scipy.sparse, scipy.special

def state():
    loggers = {"": logging.root, **logging.root.manager.loggerDict}
    return {
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "random": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "logging": {name: [str(logger.handlers), logger.level] for name, logger in loggers.items()
                    if isinstance(logger, logging.Logger) and (logger.handlers or logger.level)},
        "warnings": [str(filter) for filter in warnings.filters],
        "backend": matplotlib.rcParams._get("backend") is matplotlib.rcsetup._auto_backend_sentinel,
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "hooks": [str(sys.excepthook), str(sys.unraisablehook)],
        "streams": [str(sys.stdout), str(sys.stderr)],
        "locale": locale.setlocale(locale.LC_ALL),
        "itk": SimpleITK.ProcessObject.GetGlobalWarningDisplay(),
        "torch": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
                  str(torch.get_default_dtype())],
    }

before = state()
import vnet_fast
if len(sys.argv) > 1:
    vnet_fast.Segmenter, vnet_fast.Trainer, vnet_fast.evaluate_masks
after = state()
print(json.dumps({name: [before[name], after[name]] for name in before if before[name] != after[name]}))
print(json.dumps([name for name in sys.modules if name in ("SimpleITK._SimpleITK", "matplotlib.pyplot")]))
print(json.dumps([name for name in sys.modules if name.startswith("vnet_fast.")]))
"""


@pytest.mark.parametrize("used", [False, True], ids=["package", "interface"])
def test_an_import_changes_nothing_global(used, tmp_path):
    pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result = python(GLOBALS.replace("len(sys.argv) > 1", str(used)), tmp_path)
    assert result.returncode == 0, result.stderr
    changed, pyplot, modules = map(json.loads, result.stdout.splitlines())
    assert changed == {}
    assert "matplotlib.pyplot" not in pyplot
    assert ("vnet_fast.interface.segmenter" in modules) == used


IMPORTS = """
import json, sys
import vnet_fast
package = list(sys.modules)
import vnet_fast.evaluation.metrics
assert "SimpleITK" not in sys.modules
import vnet_fast.kernels, vnet_fast.train, vnet_fast.predict
print(json.dumps([package, list(sys.modules), list(vnet_fast.kernels.__path__)]))
"""


def test_an_import_takes_no_more_than_it_needs(tmp_path):
    """The package only the rooms of the network and the losses, and the commands not PyTorch's compiler, which takes
    longer than all else beside PyTorch; from elsewhere, the kernels are those of the repository.
    """
    result = python(IMPORTS, tmp_path)
    assert result.returncode == 0, result.stderr
    of_package, of_commands, kernels = json.loads(result.stdout)
    rooms = {name.split(".")[1] for name in of_package if name.startswith("vnet_fast.")}
    assert {"nn", "ops", "errors"} <= rooms
    assert not rooms & {"interface", "training", "prediction", "evaluation", "data", "io", "run", "plotting"}
    assert "vnet_fast.training.trainer" in of_commands
    assert "torch._dynamo" not in of_commands
    assert str(ROOT / "kernels") in kernels


def test_kernels_belong_to_the_package():
    assert vnet_fast.kernels.__name__ == "vnet_fast.kernels"
    assert str(ROOT / "kernels") in vnet_fast.kernels.__path__


VERBS = """
import contextlib, runpy, sys
for verb in sys.argv[1:]:
    sys.argv = [f"vnet_fast/{verb}.py", "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_module(f"vnet_fast.{verb}", run_name="__main__", alter_sys=True)
        raise AssertionError(f"{verb} --help does not exit")
"""


def test_verbs_run_from_elsewhere(tmp_path):
    """Each as `python -m vnet_fast.VERB`, of which one process does all."""
    code = VERBS.replace("sys.argv[1:]", repr(list(__main__.COMMANDS)))
    result = python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^usage: python -m vnet_fast\.(\w+) ", result.stdout, re.MULTILINE) == list(__main__.COMMANDS)


def test_tested_versions_are_allowed():
    tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert {"torch", "triton", "numpy", "SimpleITK", "tqdm", "monai", "pytest", "ruff"} <= pinned.keys()
    assert torch.__version__.startswith(pinned["torch"]) or torch.cuda.is_available()
    assert "torch>=2.8,!=2.9.*" in project["dependencies"]


def test_readme_commands_are_those_of_ci():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    (python -m venv .*)$", readme, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("python -m vnet_fast.train --amp")
    assert commands[1].endswith("python -m pytest -n auto --dist loadfile")


# A library that an installation from this checkout has compiled is not compiled again; of several levels of
# optimisation the last counts, and without any it takes a fifth of the time. The output is the last argument.
COMPILER = """#!/bin/sh
for output; do :; done
name=$(basename "$output")
name=${{name#.}}
library={kept}/${{name%.*}}
if [ -f "$library" ]; then exec cp "$library" "$output"; fi
exec {compiler} "$@" -O0
"""


def kept(folder):
    """A new folder of the libraries that an installation has compiled from these sources."""
    (folder / "kept").mkdir()
    for target in cpu_library.targets():
        library = ROOT / "kernels" / cpu_library.file_name(target)
        if library.exists() and cpu_library.digest().encode() in library.read_bytes():
            shutil.copy(library, folder / "kept")
    return folder / "kept"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the checkout, unpacked."""
    copy, folder = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in ("vnet_fast", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so.0"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, copy]
    environment = dict(os.environ)
    if compiler := cpu_library.find_compiler():
        environment["CXX"] = str(copy / "compiler")
        program = COMPILER.format(kept=shlex.quote(str(kept(copy))), compiler=shlex.join(compiler))
        (copy / "compiler").write_text(program)
        (copy / "compiler").chmod(0o755)
    built = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.mark.exhaustive
def test_the_wheel_has_every_file(wheel):
    expected = {path.relative_to(ROOT) for path in (ROOT / "vnet_fast").rglob("*") if "__pycache__" not in path.parts}
    kernels = ROOT / "kernels"
    sources = [*kernels.glob("*.py"), *kernels.glob("cpu/*.h"), *kernels.glob("cpu/*.cpp")]
    libraries = [kernels / cpu_library.file_name(target) for target in cpu_library.targets()]
    sources += libraries if cpu_library.find_compiler() else []
    expected |= {Path("vnet_fast") / path.relative_to(ROOT) for path in sources}
    files = {path for path in expected if path.suffix}
    assert Path("vnet_fast/py.typed") in files
    assert Path("vnet_fast/kernels/dice.py") in files
    assert {path.relative_to(wheel) for path in (wheel / "vnet_fast").rglob("*") if path.is_file()} == files


@pytest.mark.exhaustive
def test_every_module_of_the_wheel_can_be_imported(wheel, tmp_path):
    modules = sorted(
        ".".join(path.relative_to(wheel).with_suffix("").parts).removesuffix(".__init__")
        for path in (wheel / "vnet_fast").rglob("*.py")
    )
    code = f"import importlib, sys; sys.path.insert(0, {str(wheel)!r})\n" + "".join(
        f"importlib.import_module({name!r})\n" for name in modules if "kernels" not in name
    )
    code += "import vnet_fast; print(vnet_fast.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(wheel / "vnet_fast" / "__init__.py")


@pytest.mark.exhaustive
def test_the_wheel_needs_no_compiler(wheel, tmp_path):
    """It serves all versions of Python on one kind of processor, and says which kernels run."""
    if cpu_library.find_compiler() is None:
        pytest.skip("no C++ compiler")
    (tag,) = re.findall(r"^Tag: (.*)$", next(wheel.glob("*.dist-info/WHEEL")).read_text(), re.MULTILINE)
    assert tag.startswith("py3-none-")
    assert not tag.endswith("-any")
    code = f"""
import sys; sys.path.insert(0, {str(wheel)!r})
import torch
from vnet_fast.ops import cpu_convolution_choice, cpu_library
print(cpu_library.library()._name)
print(cpu_convolution_choice.description(torch.device("cpu")))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"CXX": "no-compiler", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library, description = done.stdout.splitlines()
    assert Path(library).parent == wheel / "vnet_fast" / "kernels"
    assert description.startswith(", convolutions by the kernels for ")


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["none", "help"])
def test_the_commands_are_listed(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(arguments)
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    listed = re.findall(r"^  (\w+)  +\S", out, re.MULTILINE)
    assert listed == list(__main__.COMMANDS)
    with_main = {path.stem for path in (ROOT / "vnet_fast").glob("*.py") if "Config" in path.read_text("utf-8")}
    assert set(listed) == with_main - {"command_line", "__main__"}


def test_a_command_runs_with_its_options(capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["predict", "--help"])
    assert stopped.value.code == 0
    assert "usage: python -m vnet_fast.predict" in capsys.readouterr().out


def test_an_unknown_command_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["segment"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: segment: not a command. Choose one of train, predict, evaluate, report, export, doctor\n"
    )


@pytest.mark.exhaustive
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of pipes and /dev/full")
def test_the_list_of_commands_bears_a_closed_pipe_and_a_full_disk(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(writer, "w") as closed, open("/dev/full", "w") as full:
        for stdout, code in ((closed, 0), (full, 2)):
            done = subprocess.run(
                [sys.executable, "-m", "vnet_fast"],
                cwd=tmp_path, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert done.returncode == code
            assert "Traceback" not in done.stderr
