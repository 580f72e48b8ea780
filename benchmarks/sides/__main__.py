"""Measures one side of a line in a process of its own, and prints the result as its last line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.sides import own, peer
from benchmarks.sides.work import Work
from components.machine import keep_memory

SIDES = {"ours": own.ours, "torchvision": own.torchvision, "lightly": peer.plain, "script": peer.script}


def main() -> None:
    keep_memory()
    side, method, backbone, size, batch, data, workers, precision, steps = sys.argv[1:]
    work = Work(method, backbone, int(size), int(batch), Path(data))
    clock, flops = SIDES[side](work, int(steps), int(workers), precision)
    parts = clock.seconds()
    print(json.dumps({"seconds": sum(parts.values()), "parts": parts, "flops": flops, "memory": clock.memory}))


if __name__ == "__main__":
    main()
