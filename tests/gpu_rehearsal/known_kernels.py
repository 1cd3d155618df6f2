"""What Triton compiles kernels to, kept, so that only kernels that have changed are compiled again.

Triton's cache knows a kernel by a hash of its source and all that it calls, the arguments' types, the target, Triton
itself and ptxas: with the same hash, the machine code is the same. `known_kernels.json` has, by this hash, what tests
ask of the code, and `KnownKernels` is a cache that finds it there. Of anything else, such as kernels of another
version of Triton, nothing is known, and they are compiled. After a change of kernels, this compiles them and keeps
what they are compiled to, in some minutes:

    python -m tests.gpu_rehearsal.known_kernels
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from triton.runtime.cache import FileCacheManager

from tests.gpu_rehearsal.machine_code import KNOWN, accesses, resources

FILE = Path(__file__).with_name("known_kernels.json")
# of a hash, characters that tell kernels apart
LENGTH = 16
# what a launch does not need, of other places
DROPPED = {"hash", "extern_libs"}
TESTS = ("tests/gpu_rehearsal/test_rehearsal.py", "tests/ops/test_kernel_compilation.py")


class KnownKernels(FileCacheManager):
    """Triton's cache, with an entry for every kernel that is known, which has a description in place of the code."""

    def get_group(self, filename):
        """The files of a kernel, as of a kernel that was compiled before."""
        found = super().get_group(filename)
        row = known()["kernels"].get(self.key[:LENGTH])
        if found is not None or row is None:
            return found
        which, shared, code = row
        metadata = known()["metadata"][which] | {"hash": base64.b32decode(self.key + "====").hex(), "shared": shared}
        files = {filename: json.dumps(metadata), f"{Path(filename).stem}.cubin": KNOWN + json.dumps(code).encode()}
        self.put_group(filename, {name: self.put(data, name) for name, data in files.items()})
        return super().get_group(filename)


@cache
def known():
    """The content of the file."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"metadata": [], "kernels": {}}


def described(folder):
    """(start of the hash, metadata, bytes of shared memory, what the code needs and does) of a cache's entry; or None.

    Args:
        folder: of the entry.
    """
    codes = list(folder.glob("*.cubin"))
    if not codes:
        return None
    metadata = json.loads(codes[0].with_suffix(".json").read_text(encoding="utf-8"))
    shared = metadata.pop("shared")
    rest = {name: value for name, value in metadata.items() if name not in DROPPED}
    cubin = codes[0].read_bytes()
    return folder.name[:LENGTH], rest, shared, resources(cubin) | accesses(cubin)


def write(folder):
    """Writes the file from caches of compiled kernels.

    Args:
        folder: the caches' folder.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(filter(None, pool.map(described, Path(folder).iterdir())))
    texts = sorted({json.dumps(rest) for _, rest, _, _ in rows})
    kernels = sorted([key, texts.index(json.dumps(rest)), shared, code] for key, rest, shared, code in rows)
    lines = [f"{json.dumps(key)}: {json.dumps(row)}" for key, *row in kernels]
    parts = '{"metadata": [\n', ",\n".join(texts), '\n],\n"kernels": {\n', ",\n".join(lines), "\n}}\n"
    FILE.write_text("".join(parts), encoding="utf-8")


def main():
    """Compiles all kernels that the tests ask for, and writes the file."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "exhaustive", *TESTS]
        subprocess.run(command, env=os.environ | {"VNET_FAST_TRITON_CACHE": folder}, check=True)
        write(folder)


if __name__ == "__main__":
    main()
