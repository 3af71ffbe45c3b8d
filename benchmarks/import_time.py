"""What `import fxquant` adds to `import torch`.

    python benchmarks/import_time.py [--rounds 15] [--json import_time.json]

Each round is a process of its own that imports one after the other, with compiled bytecode, and
counts its processor's time; the ratio is the median of the rounds'.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.progress import track

from measures import write

IMPORTS = """
import time
start = time.process_time()
import torch
middle = time.process_time()
import fxquant
print(middle - start, time.process_time() - start)
"""


def measure(rounds: int) -> dict[str, float | str]:
    """The row: milliseconds of torch, of both, and the ratio."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as bytecode:
        environment = os.environ | {"PYTHONPATH": path, "PYTHONPYCACHEPREFIX": bytecode}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def seconds() -> tuple[float, float]:
            command = [sys.executable, "-c", IMPORTS]
            done = subprocess.run(command, env=environment, capture_output=True, check=True)
            torch, both = map(float, done.stdout.split())
            return torch, both

        seconds()  # which writes the bytecode
        found = [seconds() for _ in track(range(rounds), "imports")]
    return {
        "what": "import fxquant",
        "torch_ms": 1e3 * statistics.median(torch for torch, _ in found),
        "both_ms": 1e3 * statistics.median(both for _, both in found),
        "import_ratio": statistics.median(both / torch for torch, both in found),
    }


def main() -> None:
    """Measure, print the figures, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the row here, too")
    arguments = parser.parse_args()
    row = measure(arguments.rounds)
    print("import torch {torch_ms:.0f} ms, then fxquant: {import_ratio:.3f} of it".format(**row))
    if arguments.json:
        write(arguments.json, [row])


if __name__ == "__main__":
    main()
