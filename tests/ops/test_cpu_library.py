"""The library of the CPU's kernels: found, compiled at its first use, or missing with one line that says so."""

import ctypes
import os
import runpy
import shutil
import subprocess
import sys

import pytest
import torch

from vnet_fast.kernels import cpu_library as compiled
from vnet_fast.ops import cpu_library

needs_compiler = pytest.mark.skipif(compiled.find_compiler() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch, tmp_path):
    cpu_library._library.cache_clear()
    monkeypatch.setattr(cpu_library, "FOLDER", tmp_path / "cache")
    yield
    cpu_library._library.cache_clear()


@pytest.fixture
def not_built(monkeypatch, tmp_path):
    """There is no library beside the package, and compiling one is quick; what was compiled."""
    names = []
    monkeypatch.setattr(compiled, "file_name", lambda target: f"lib{target}-of-a-test.so")

    def compile_library(target, path):
        names.append(target)
        compiled.subprocess.run(
            [*compiled.find_compiler(), "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)],
            input=f'extern "C" const char* vnet_fast_digest() {{ return "{compiled.digest()}"; }}',
            text=True,
            check=True,
        )

    monkeypatch.setattr(compiled, "compile_library", compile_library)
    return names


@pytest.mark.parametrize(
    ("capability", "machine", "expected"),
    [
        ("AVX512", "x86_64", "avx512"),
        ("AVX2", "AMD64", "avx2"),
        ("DEFAULT", "x86_64", "portable"),
        ("DEFAULT", "aarch64", "portable"),
        ("SVE256", "aarch64", "portable"),
    ],
)
def test_no_instruction_runs_that_the_processor_lacks(monkeypatch, capability, machine, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(compiled.platform, "machine", lambda: machine)
    assert cpu_library.target() == expected


@needs_compiler
def test_compiled_once_at_the_first_use(not_built, caplog):
    caplog.set_level("INFO", "vnet_fast")
    for _ in range(2):
        assert isinstance(cpu_library.library(), ctypes.CDLL)
    # as another process
    cpu_library._library.cache_clear()
    assert cpu_library.library() is not None
    assert not_built == [cpu_library.target()]
    assert caplog.messages == ["compiling the kernels of the CPU, once"]


@needs_compiler
def test_a_library_of_other_sources_is_not_used(tmp_path, monkeypatch):
    path = tmp_path / "lib.so"
    subprocess.run(
        [*compiled.find_compiler(), "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)],
        input='extern "C" const char* vnet_fast_digest() { return "of other sources"; }',
        text=True,
        check=True,
    )
    assert compiled.open_library(path) is None
    (tmp_path / "text.so").write_text("no library")
    assert compiled.open_library(tmp_path / "text.so") is None
    assert compiled.open_library(tmp_path / "missing.so") is None


def test_without_a_compiler_one_line_says_what_to_install(monkeypatch, caplog):
    monkeypatch.setattr(compiled, "file_name", lambda target: "missing.so")
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert cpu_library.library() is None
    assert cpu_library.library() is None
    (message,) = caplog.messages
    assert message == (
        "the CPU's kernels are missing (no C++ compiler (g++, c++, clang++) was found), so oneDNN runs, which is "
        "slower. Install a C++ compiler such as g++"
    )


@pytest.mark.parametrize("cause", ["compiler", "folder"])
def test_what_keeps_it_from_being_compiled_is_said(monkeypatch, caplog, tmp_path, cause):
    monkeypatch.setattr(compiled, "file_name", lambda target: "missing.so")
    if cause == "compiler":
        monkeypatch.setenv("CXX", "false")
        expected = "false failed: exit code 1"
    else:
        (tmp_path / "file").touch()
        monkeypatch.setattr(cpu_library, "FOLDER", tmp_path / "file" / "cache")
        expected = "can't be made"
    assert cpu_library.library() is None
    (message,) = caplog.messages
    assert expected in message
    assert not list(tmp_path.rglob(".*missing*"))


@needs_compiler
def test_the_compiler_of_the_environment_is_taken(monkeypatch):
    monkeypatch.setenv("CXX", "ccache g++ -pthread")
    monkeypatch.setattr(compiled.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert compiled.find_compiler() == ["ccache", "g++", "-pthread"]


AVX2 = "#define __AVX2__ 1\n#define __FMA__ 1\n"
AVX512 = AVX2 + "".join(f"#define __AVX512{name}__ 1\n" for name in ("F", "BW", "DQ", "VL"))


@pytest.mark.parametrize(
    ("output", "code", "expected"),
    [
        ("#define __SSE2__ 1\n", 0, ["portable"]),
        (AVX2, 0, ["avx2", "portable"]),
        (AVX512, 0, ["avx512", "avx2", "portable"]),
        # the first generation, whose AVX-512 lacks what the kernels need
        (AVX2 + "#define __AVX512F__ 1\n#define __AVX512CD__ 1\n", 0, ["avx2", "portable"]),
        ("no such option\n", 1, ["avx512", "avx2", "portable"]),
    ],
    ids=["portable", "AVX2", "AVX-512", "Xeon Phi", "unknown"],
)
@pytest.mark.skipif(os.name == "nt", reason="no compiler is looked for")
def test_an_installation_in_place_compiles_what_this_processor_runs(tmp_path, monkeypatch, output, code, expected):
    (tmp_path / "compiler").write_text(f"#!/bin/sh\ncat <<END\n{output}END\nexit {code}\n")
    (tmp_path / "compiler").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "compiler"))
    monkeypatch.setattr(compiled.platform, "machine", lambda: "x86_64")
    assert compiled.runnable_targets() == expected


@needs_compiler
def test_what_pytorch_runs_is_compiled():
    assert cpu_library.target() in compiled.runnable_targets()


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++")
def test_clang_compiles_them_too(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "clang++")
    path = tmp_path / "library"
    compiled.compile_library("portable", path)
    assert compiled.open_library(path) is not None


def test_apples_compiler_gets_what_it_knows(monkeypatch):
    """It has no omp.h, and takes -fopenmp for its inner program only."""
    monkeypatch.setattr(sys, "platform", "darwin")
    flags = runpy.run_path(compiled.__file__)["FLAGS"]
    openmp = flags.index("-fopenmp")
    assert flags[openmp - 1] == "-Xclang"
    assert flags.count("-fopenmp") == 1
    assert not [path.name for path in compiled.SOURCES.iterdir() if "<omp.h>" in path.read_text()]


def test_pytorchs_threads_are_shared():
    """Two runtimes of OpenMP would both keep threads that spin."""
    if cpu_library.library() is None or sys.platform != "linux":
        pytest.skip("the CPU's kernels are not compiled")
    code = """
import torch
from vnet_fast.ops import cpu_library
assert cpu_library.library() is not None
print(len({line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout == "1\n", done.stderr
