"""What tests share: real data where it is, and small volumes on disk."""

import itertools
import locale
import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # several processes of tests share the cores; PyTorch reads this when it is imported
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import torch

if not torch.cuda.is_available():
    # the kernels run in Triton's interpreter; Triton reads this when it is imported
    os.environ["TRITON_INTERPRET"] = "1"

from vnet_fast import command_line, host_memory, plotting, progress

# of a process without runs
HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
# numbers of the home folders of tests, most of which are never made
HOMES = itertools.count()
LOCALE = locale.setlocale(locale.LC_CTYPE)
OFTEN_MISSING = ("SimpleITK", "monai", "onnx", "onnxruntime")
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
# Files that take longer than the number of their tests tells. Several processes begin with them, so that none works on
# one at the end while the others have nothing left.
LONG_FILES = (
    "gpu_rehearsal/test_guarded_memory.py", "training/test_failures.py", "training/test_resume.py", "test_docs.py",
    "run/test_fuzz_stored.py", "gpu_rehearsal/test_rehearsal.py", "ops/test_kernel_cpu_convolution.py",
    "test_distributed.py", "test_package.py", "gpu_rehearsal/test_fake_step.py", "gpu_rehearsal/test_one_step.py",
    "io/test_fuzz.py", "verbs/test_one_dice.py", "verbs/test_train_resume.py", "verbs/test_predict_trust.py",
    "test_tutorial.py",
)  # fmt: skip


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):
        # pytest-xdist would begin with the files of the most tests
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
        _longest_first(items)
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _longest_first(items):
    """Orders tests by their files: first the long ones, then those of the most tests."""
    root, tests = Path(__file__).parent, Counter(item.path for item in items)
    long = {root / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: (long.get(item.path, len(long)), -tests[item.path], item.path))


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """Skips files that need a package which a GPU machine without a network may lack, so that the others run."""
    report = (yield).get_result()
    missing = re.search(rf"ModuleNotFoundError: .*\b({'|'.join(OFTEN_MISSING)})\b", str(report.longrepr))
    if report.failed and missing:
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"{missing[1]} is not installed")
        # half a module is left there, from which another file of tests would import
        for name, module in list(sys.modules.items()):
            if getattr(module, "__file__", None) == str(collector.path):
                del sys.modules[name]


@pytest.fixture(scope="session")
def real_data():
    """The folder of real volumes beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real volumes are not there ({SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(scope="session")
def triton_cache(tmp_path_factory):
    """Triton's cache of compiled kernels: what several tests launch is compiled once."""
    kept = os.environ.get("VNET_FAST_TRITON_CACHE")
    return Path(kept) if kept else tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="session")
def known_kernels():
    """The environment in which Triton compiles only kernels that are not known, unless they are compiled to be kept."""
    if "VNET_FAST_TRITON_CACHE" in os.environ:
        return {}
    return {"TRITON_CACHE_MANAGER": "tests.gpu_rehearsal.known_kernels:KnownKernels"}


@pytest.fixture
def cases(tmp_path):
    """A folder of six small cases in PROMISE12's layout."""
    pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    from tests.volumes import write_case

    folder = tmp_path / "cases"
    folder.mkdir()
    for index in range(6):
        write_case(folder, f"Case{index:02d}", seed=index)
    return folder


@pytest.fixture
def run_verb(capsys):
    """Runs a verb's command line in this process: returns (exit code, stdout, stderr)."""

    def run(verb, *arguments):
        module = verb.__name__
        with pytest.raises(SystemExit) as stopped:
            command_line.run(
                verb.main, command_line.parser_of(verb.Config, module), [str(argument) for argument in arguments]
            )
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


@pytest.fixture
def quick_training(monkeypatch):
    """Trains without pictures; of volumes this small, threads wait for each other."""
    monkeypatch.setattr(plotting, "available", lambda: False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def matplotlib_cache(tmp_path_factory):
    """Matplotlib's list of fonts, which every process would make anew in a home of its own."""
    return tmp_path_factory.mktemp("matplotlib")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch, matplotlib_cache):
    """Tests never write to the user's cache of prepared volumes."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp() / "homes" / str(next(HOMES))))
    monkeypatch.setenv("MPLCONFIGDIR", str(matplotlib_cache))


@pytest.fixture(autouse=True)
def _no_lines_of_slow_work(monkeypatch):
    """A command's output is the same on a slow machine, where some work takes ten seconds."""
    monkeypatch.setattr(progress, "SECONDS", 600.0)


@pytest.fixture(autouse=True)
def _returned_memory():
    """Commands keep freed memory, and so would what is tested after them in this process."""
    yield
    host_memory.return_freed_memory()


@pytest.fixture(autouse=True)
def _restored_locale():
    """Tests, and fixtures of whole modules, call SimpleITK themselves, which may leave the process at the
    C locale (`itk.kept_locale`).
    """
    locale.setlocale(locale.LC_CTYPE, LOCALE)
    yield
    locale.setlocale(locale.LC_CTYPE, LOCALE)


@pytest.fixture(autouse=True)
def _own_signals():
    """Training in this process handles signals, also in fixtures of whole modules; each test starts without."""
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
