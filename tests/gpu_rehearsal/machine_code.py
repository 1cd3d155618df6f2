"""What machine code needs and does, by NVIDIA's tools, which come with Triton."""

import json
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton

# what stands before the description of known code, in place of the code (`known_kernels.py`)
KNOWN = b"known kernel "
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def resources(cubin):
    """Registers per thread, and bytes of stack, where a kernel spills registers."""
    if cubin.startswith(KNOWN):
        return _known(cubin, "registers", "stack")
    sizes = {
        key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", _run("cuobjdump -res-usage", cubin))
    }
    return {"registers": sizes["REG"], "stack": sizes["STACK"] + sizes["LOCAL"]}


def accesses(cubin):
    """The instructions that read and write memory, counted by width in bits, and the number of those that spill."""
    if cubin.startswith(KNOWN):
        return _known(cubin, "spills", "loads", "stores")
    # without the analysis of data flow, which takes the most time
    code = _run("nvdisasm -c -ndf", cubin)
    counts = {operation: Counter() for operation in ("LDG", "STG", "LDL", "STL")}
    for operation, modifiers in re.findall(r"\b(LDG|LDGSTS|STG|LDL|STL)((?:\.\w+)*) ", code):
        width = re.search(r"\.[US]?(8|16|64|128|256)\b", modifiers)
        counts["LDG" if operation == "LDGSTS" else operation][int(width[1]) if width else 32] += 1
    spills = counts["LDL"].total() + counts["STL"].total()
    return {"spills": spills, "loads": counts["LDG"], "stores": counts["STG"]}


def _known(cubin, *names):
    description = json.loads(cubin.removeprefix(KNOWN))
    return {name: description[name] for name in names}


def _run(command, cubin):
    tool, *options = command.split()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / tool, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
