"""The library of the CPU's kernels: how it is compiled from `cpu/`, and how a compiled one is opened.

One source gives a library for each set of instructions. It knows nothing of Python or PyTorch, so that one build serves
all their versions. Only the standard library is needed here, because `setup.py` builds with this file too.

The threads are OpenMP's. PyTorch brings a runtime of its own with the same name, which the libraries share with it if
PyTorch is imported first. Two runtimes would both keep threads that spin while they wait.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "cpu"
MAIN = "library.cpp"
# The sets of instructions for each processor, the widest first, with the flags of GCC and Clang: no more than what
# PyTorch asks a processor for before it says that it has such a set.
AVX2 = ("-mavx2", "-mfma")
TARGETS = {
    "x86_64": {
        "avx512": (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
        "avx2": AVX2,
        "portable": (),
    },
}
PORTABLE = {"portable": ()}
# what GCC and Clang define for a processor with a set of instructions
MACROS = {
    "avx512": {"__AVX512F__", "__AVX512BW__", "__AVX512DQ__", "__AVX512VL__", "__FMA__"},
    "avx2": {"__AVX2__", "__FMA__"},
}
# sums may be contracted to fused multiply-adds; the order of sums stays as it is written
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fPIC",
    "-shared",
    # the names of vectors in functions that are inlined
    "-Wno-psabi",
    # Apple's compiler has neither this flag nor a runtime; PyTorch's is found when the library is opened
    *(("-Xclang", "-fopenmp", "-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-fopenmp",)),
)
COMPILERS = ("g++", "c++", "clang++")
# of a compilation, which takes ten to sixty
MAX_SECONDS = 300


class CompilerError(Exception):
    """A library was not compiled; the message says why."""


def targets() -> dict[str, tuple[str, ...]]:
    """The sets of instructions that this kind of processor may have, the widest first, with the compiler's flags."""
    machine = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    return TARGETS.get(machine, PORTABLE)


def file_name(target: str) -> str:
    """The name of the library of a set of instructions; one in .so would pass for a module of Python."""
    return f"libvnet_fast_cpu_{target}.so.0"


@functools.cache
def digest() -> str:
    """Of the sources and of how they are compiled, so that a library of other sources is never used."""
    hashed = hashlib.sha256(repr((TARGETS, FLAGS)).encode())
    for path in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        hashed.update(path.name.encode() + b"\0" + path.read_bytes())
    return hashed.hexdigest()[:32]


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler: `CXX`, or the first of COMPILERS that is installed; None if there is none."""
    if os.name == "nt":
        # the sources use the extensions of GCC and Clang, and libraries have other names
        return None
    names = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    for name in names:
        command = shlex.split(name)
        if command and shutil.which(command[0]):
            return command
    return None


def runnable_targets() -> list[str]:
    """The sets of instructions that this very processor has, by the compiler; all of `targets` if it can't say."""
    compiler, names = find_compiler(), list(targets())
    try:
        command = [*(compiler or ["none"]), "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
        macros = subprocess.run(command, capture_output=True, text=True, timeout=MAX_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return names
    defined = {line.split()[1] for line in macros.splitlines() if line.startswith("#define ")}
    return [name for name in names if MACROS.get(name, set()) <= defined]


def compile_library(target: str, path: Path, extra: tuple[str, ...] = ()) -> None:
    """Compiles the library of a set of instructions.

    Args:
        target: of `targets`.
        path: of the library; it appears when it is complete.
        extra: more flags.

    Raises:
        CompilerError: if there is no compiler, or it fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise CompilerError(f"no C++ compiler ({', '.join(COMPILERS)}) was found")
    part = path.with_name(f".{path.name}.{os.getpid()}")
    flags = [*FLAGS, *targets()[target], f'-DSOURCE_DIGEST="{digest()}"', *extra]
    try:
        done = subprocess.run(
            [*compiler, *flags, str(SOURCES / MAIN), "-o", str(part)],
            capture_output=True,
            text=True,
            timeout=MAX_SECONDS,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
            raise CompilerError(f"{compiler[0]} failed: {' '.join(lines[:1]) or f'exit code {done.returncode}'}")
        part.replace(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f"{compiler[0]} failed: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def open_library(path: Path) -> ctypes.CDLL | None:
    """A compiled library, or None if there is none of these sources at a path, or it can't be loaded."""
    if sys.platform == "win32" or not path.is_file():
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    library.vnet_fast_digest.restype = ctypes.c_char_p
    return library if library.vnet_fast_digest() == digest().encode() else None
