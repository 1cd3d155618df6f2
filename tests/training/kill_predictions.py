"""Predicts a folder once undisturbed, and once killed at random moments and started again each time; prints what
happened as JSON.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.training.kill_runs import SIGNALS, start, wait
from vnet_fast import predict


def main():
    folder, kills, *arguments = sys.argv[1:]
    folder, generator = Path(folder), random.Random(0)
    whole, killed = folder / "whole", folder / "killed"
    with open(folder / "output.txt", "w") as log:
        began = time.monotonic()
        assert wait(start([*arguments, "--output", str(whole)], log, predict)) == 0
        longest = time.monotonic() - began
        codes, seen = [], 0
        while len(codes) < int(kills):
            child = start([*arguments, "--output", str(killed)], log, predict)
            time.sleep(generator.uniform(0, longest))
            number = generator.choice(SIGNALS)
            os.kill(child, number)
            code = wait(child)
            if code != 0:
                codes.append([number, code])
            for mask in killed.glob("*.mhd"):
                # a header is there only with all that it names; ITK would start threads, which no fork survives
                data = mask.with_suffix(".zraw").name
                assert (killed / data).read_bytes() == (whole / data).read_bytes()
                seen += 1
        assert wait(start([*arguments, "--output", str(killed)], log, predict)) == 0
    print(json.dumps({"codes": codes, "masks seen after kills": seen}))


if __name__ == "__main__":
    main()
