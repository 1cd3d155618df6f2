"""What the kernels are tested under: memory that shows what was never written, right rounding, and each library."""

import numpy as np
import pytest
import torch

from tests.ops import interpreter
from tests.ops.kernels import DEVICE, INTERPRETED
from vnet_fast.kernels import cpu_library as compiled
from vnet_fast.nn import convolution
from vnet_fast.ops import cpu_library, dispatch


@pytest.fixture(scope="session", autouse=True)
def _quick_interpreter():
    if not INTERPRETED:
        yield
        return
    with interpreter.quick():
        yield


@pytest.fixture
def poisoned_memory(monkeypatch):
    """New memory holds NaN, and 255 in bytes, until it is written."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1, device=DEVICE).isnan()
    assert torch.empty(1, dtype=torch.uint8, device=DEVICE) == 255
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def rounded_to_nearest(monkeypatch):
    """The interpreter cuts float32 off to bfloat16, where a GPU rounds to nearest."""
    if not INTERPRETED:
        return
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    from triton.runtime import interpreter as of_triton

    original = of_triton._convert_float

    def convert(data, source, target, rounding):
        if (source, target) != (triton.language.float32, triton.language.bfloat16):
            return original(data, source, target, rounding)
        narrow = torch.from_numpy(np.ascontiguousarray(data)).bfloat16()
        return narrow.view(torch.int16).numpy().reshape(data.shape)

    monkeypatch.setattr(of_triton, "_convert_float", convert)


@pytest.fixture
def through_kernels(monkeypatch):
    """Runs the kernels on CPU tensors, in Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a CUDA device")
    monkeypatch.setattr(dispatch, "can_run_kernels", lambda tensor: tensor.dtype != torch.float64)
    # PyTorch's own convolution, which it takes for small volumes, leaves the layout; cuDNN keeps it
    original = convolution._by_pytorch
    monkeypatch.setattr(
        convolution, "_by_pytorch", lambda *given: original(*given).contiguous(memory_format=torch.channels_last_3d)
    )


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """Finds the library of a set of instructions, or compiles it, or skips."""
    if compiled.find_compiler() is None:
        pytest.skip("no C++ compiler")
    names = list(compiled.targets())
    usable, folder = names[names.index(cpu_library.target()) :], tmp_path_factory.mktemp("libraries")

    def find(target):
        if target not in usable:
            pytest.skip(f"this processor does not run {target}")
        found = compiled.open_library(compiled.SOURCES.parent / compiled.file_name(target))
        if found is None:
            path = folder / compiled.file_name(target)
            if not path.exists():
                compiled.compile_library(target, path)
            found = compiled.open_library(path)
        return found

    return find


@pytest.fixture(params=["avx512", "avx2", "portable"])
def library(request, libraries):
    return libraries(request.param)


@pytest.fixture
def widest(libraries):
    return libraries(cpu_library.target())


@pytest.fixture
def threads():
    """Sets the number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
