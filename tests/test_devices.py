import os
import platform
import subprocess
import sys

import pytest
import torch

from vnet_fast import devices
from vnet_fast.devices import choose_precision
from vnet_fast.errors import InputError
from vnet_fast.run import configuration, configure, memory

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_auto_precision_follows_the_cpu(monkeypatch, fast, dtype):
    monkeypatch.setattr(devices, "cpu_has_fast_bf16", lambda: fast)
    chosen, message = choose_precision("auto", CPU)
    assert chosen == dtype
    assert ("bf16" in message) == fast
    assert "no fast bfloat16" in message or fast


def test_named_precisions():
    assert choose_precision("off", CPU) == (None, "float32")
    assert choose_precision("bf16", CPU)[0] is torch.bfloat16
    assert choose_precision("fp16", CPU)[0] is torch.float16


@pytest.fixture
def large_gpu(monkeypatch):
    """A GPU with as much memory as an H100's, and no other properties."""
    monkeypatch.setattr(memory, "memory_of", lambda device: 80e9)


@pytest.mark.usefixtures("large_gpu")
def test_mixed_precision_is_the_default_on_a_gpu_only(monkeypatch):
    assert choose_precision(None, CPU) == choose_precision("off", CPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert choose_precision(None, GPU) == (torch.bfloat16, "mixed precision (bf16)")
    monkeypatch.setattr(devices, "find_device", lambda name: GPU)
    for module in (configuration, configure):
        monkeypatch.setattr(module, "find_device", lambda name: GPU)
    assert configure.configure({"data": "cases"}).amp == "auto"
    assert configure.configure({"data": "cases", "amp": "off"}).amp == "off"
    for module in (configuration, configure):
        monkeypatch.setattr(module, "find_device", lambda name: CPU)
    assert configure.configure({"data": "cases"}).amp == "off"


@pytest.mark.usefixtures("large_gpu")
def test_the_demonstration_on_a_gpu_has_the_papers_size(monkeypatch):
    for module in (devices, configuration, configure):
        monkeypatch.setattr(module, "find_device", lambda name: GPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    config = configure.configure({})
    assert (config.volume, config.spacing, config.base_channels) == ((128, 128, 64), (1.0, 1.0, 1.5), 16)
    assert (config.recipe, config.iterations, config.levels) == ("fast", 120, 5)


def round_to_tf32(tensor):
    """Float32 rounded to the 11 significant bits of TF32."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("rounded", [False, True])
def test_tf32_is_seen_in_the_result_of_a_convolution(monkeypatch, rounded):
    original = torch.nn.functional.conv3d

    def conv3d(x, weight, **how):
        if rounded and x.dtype == torch.float32:
            x, weight = round_to_tf32(x), round_to_tf32(weight)
        return original(x, weight, **how)

    monkeypatch.setattr(torch.nn.functional, "conv3d", conv3d)
    assert devices.convolves_in_tf32(CPU) == rounded


def test_float32_on_a_gpu_says_whether_it_runs_on_tensor_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(devices, "convolves_in_tf32", lambda device: True)
    assert choose_precision("off", GPU) == (None, "float32 on tensor cores (TF32)")
    monkeypatch.setattr(devices, "convolves_in_tf32", lambda device: False)
    assert "because PyTorch turns it off in 3-D" in choose_precision("off", GPU)[1]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert "because PyTorch's setting is off" in choose_precision("off", GPU)[1]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_precision("off", GPU) == (None, "float32")


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="new in PyTorch 2.9")
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_a_program_may_have_set_the_precision_of_convolutions(precision):
    """After that, PyTorch refuses to tell the older setting."""
    convolutions = torch.backends.cudnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, precision
    try:
        assert devices.allows_tf32() == (precision == "tf32")
    finally:
        convolutions.fp32_precision = before
    assert devices.allows_tf32() == torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("capability", "mode"), [((9, 0), "1"), ((8, 0), None), ((10, 0), None)])
def test_cudnn_is_asked_for_tensor_cores_on_hopper(monkeypatch, capability, mode):
    variable = "TORCH_CUDNN_USE_HEURISTIC_MODE_B"
    # registered, so that what is set here is removed
    monkeypatch.setenv(variable, "")
    monkeypatch.delenv(variable)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    assert devices.find_device("auto") == GPU
    assert os.environ.get(variable) == mode
    assert not torch.backends.cudnn.benchmark
    monkeypatch.setenv(variable, "0")
    devices.find_device("cuda")
    assert os.environ[variable] == "0"


def test_devices():
    assert devices.find_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert devices.find_device("auto") == CPU
        with pytest.raises(InputError, match="no CUDA device is available"):
            devices.find_device("cuda")


@pytest.mark.parametrize(
    ("quota", "cores"), [("100000 100000", 1), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 8), ("", 8)]
)
def test_cores_are_those_of_the_affinity_within_the_quota(monkeypatch, tmp_path, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(devices, "CGROUP_QUOTA", str(tmp_path / "cpu.max"))
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert devices.available_cores() == cores


@pytest.mark.exhaustive
@pytest.mark.parametrize("asked", [None, "1"])
def test_threads_are_the_cores_unless_the_user_says(asked):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if asked:
        environment["OMP_NUM_THREADS"] = asked
    code = (
        "import torch; from vnet_fast import devices; devices.available_cores = lambda: 5; "
        "devices.use_all_cores(); print(torch.get_num_threads())"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [asked or "5"]


@pytest.mark.exhaustive
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_memory_is_kept():
    """A forward pass takes most of its memory from the memory that the pass before freed."""
    code = (
        "import resource, sys, torch; from vnet_fast import VNet, host_memory; "
        "assert host_memory.keep_freed_memory(sys.argv[1] == 'keep'); "
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "model, image = VNet(base_channels=8), torch.zeros(1, 1, 32, 64, 64)\n"
        "torch.set_grad_enabled(False)\n"
        "for _ in range(2): model(image)\n"
        "before = faults()\n"
        "for _ in range(2): model(image)\n"
        "print(faults() - before)"
    )
    faults = {}
    for setting in ("keep", "give back"):
        result = subprocess.run([sys.executable, "-c", code, setting], capture_output=True, text=True, check=True)
        faults[setting] = int(result.stdout)
    assert faults["keep"] < 0.5 * faults["give back"], faults


@pytest.fixture
def gpu_memory(monkeypatch):
    """Stands for a GPU's memory: returns its state, which tests set."""
    state = {"free": 40 << 30, "num_ooms": 0}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (state["free"], 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: state)
    monkeypatch.setattr(torch.cuda, "reset_accumulated_memory_stats", lambda: state.update(num_ooms=0))
    return state


NO_ENGINE = "FIND was unable to find an engine to execute this computation after trying 7 plans."


def test_no_engine_is_out_of_memory_if_memory_is_short(gpu_memory):
    """Certainty needs a device: the counts are those that PyTorch documents."""
    assert not devices.is_out_of_memory(RuntimeError(NO_ENGINE))
    gpu_memory["num_ooms"] = 1
    assert not devices.is_out_of_memory(RuntimeError("shapes do not match"))
    gpu_memory["num_ooms"] = 1
    assert devices.is_out_of_memory(RuntimeError(NO_ENGINE))
    # the failed allocation has explained one error
    assert not devices.is_out_of_memory(RuntimeError(NO_ENGINE))
    gpu_memory["free"] = devices.LITTLE_MEMORY - 1
    assert devices.is_out_of_memory(RuntimeError(NO_ENGINE))


def test_an_error_that_is_out_of_memory_does_not_explain_the_next(gpu_memory):
    gpu_memory["num_ooms"] = 1
    assert devices.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not devices.is_out_of_memory(RuntimeError(NO_ENGINE))


def test_no_engine_without_a_gpu_is_not_out_of_memory():
    if not torch.cuda.is_initialized():
        assert not devices.is_out_of_memory(RuntimeError(NO_ENGINE))


@pytest.mark.gpu
def test_a_failed_allocation_is_counted():
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    assert devices.is_out_of_memory(RuntimeError(NO_ENGINE))
    assert not devices.is_out_of_memory(RuntimeError(NO_ENGINE))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["model name : AMD EPYC", "cpu family : 25", "model : 17"], "AMD EPYC (family 25, model 17)"),
        (["model name : Some CPU"], "Some CPU"),
        (["Features : fp asimd"], platform.machine()),
        (None, platform.machine()),
    ],
)
def test_a_processor_has_its_family(tmp_path, monkeypatch, lines, expected):
    path = tmp_path / "cpuinfo"
    if lines is not None:
        path.write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(devices, "CPU_INFO", path)
    assert devices.processor() == expected


def test_a_constant_is_marked_as_pytorch_marks_it():
    ours, theirs = devices.constant_when_compiled(lambda: 1), torch.compiler.assume_constant_result(lambda: 1)
    assert vars(ours) == vars(theirs) != {}
