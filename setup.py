"""Builds the CPU's kernels where a C++ compiler is there; without one, they are compiled at their first use."""

import importlib.util
import os
import shutil
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PACKAGE = "vnet_fast.kernels"
# by its path, because the package imports PyTorch, which is not there when a wheel is built
KERNELS = Path(__file__).resolve().parent / "kernels"
SPEC = importlib.util.spec_from_file_location("cpu_library", KERNELS / "cpu_library.py")
cpu_library = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(cpu_library)


def target_of(name):
    """The set of instructions of an extension."""
    return name.rpartition("cpu_")[2]


def is_up_to_date(library):
    """Whether a library is newer than all that it is made of; one that is asked of another compiler never is."""
    if "CXX" in os.environ or not library.exists():
        return False
    sources = [Path(__file__), KERNELS / "cpu_library.py", *(KERNELS / "cpu").iterdir()]
    return library.stat().st_mtime_ns > max(source.stat().st_mtime_ns for source in sources)


class BuildKernels(build_ext):
    """Compiles a library for each set of instructions, which knows nothing of Python."""

    def finalize_options(self):
        super().finalize_options()
        # all at the same time
        self.parallel = self.parallel or True

    def get_ext_filename(self, fullname):
        *package, name = fullname.split(".")
        return str(Path(*package) / cpu_library.file_name(target_of(name)))

    def build_extension(self, extension):
        target = target_of(extension.name)
        path = Path(self.get_ext_fullpath(extension.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        before = KERNELS / path.name
        if self.editable_mode and is_up_to_date(before):
            # of an earlier installation from this folder
            shutil.copy2(before, path)
            return
        if self.editable_mode and target not in cpu_library.runnable_targets():
            # stays on this machine; on another, what is missing is compiled at its first use
            return
        try:
            cpu_library.compile_library(target, path)
        except cpu_library.CompilerError as error:
            self.warn(f"the CPU's kernels for {target} are not built: {error}")

    def copy_extensions_to_source(self):
        """Copies what was built; without a compiler nothing was."""
        folder = Path(self.build_lib)
        self.extensions = [each for each in self.extensions if (folder / self.get_ext_filename(each.name)).exists()]
        super().copy_extensions_to_source()


class PlatformWheel(bdist_wheel):
    """A wheel for one kind of processor, and for every version of Python."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


# kernels/ stands beside vnet_fast/ in the repository and is vnet_fast.kernels when imported; every folder of
# vnet_fast/ with an __init__.py is a package
setup(
    packages=[*find_packages(include=["vnet_fast", "vnet_fast.*"]), PACKAGE],
    package_dir={PACKAGE: "kernels"},
    ext_modules=[
        Extension(f"{PACKAGE}.cpu_{target}", [])
        for target in (cpu_library.targets() if cpu_library.find_compiler() else ())
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
