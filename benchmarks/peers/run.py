"""Who breaks where: every tool's rewrites on the edge-case networks, as a table.

    python benchmarks/peers/run.py --peer fxquant=.venv/bin/python --peer brevitas=<its python>

Runs the script of each tool named in the interpreter given for it, writes `results/<tool>.json`,
and makes `docs/peers.md` from all results that are there. Without `--peer` it makes the page alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE.parents[1] / "docs" / "peers.md"


@dataclass(frozen=True)
class Peer:
    """A tool: its key, which is also in the name of its script, and how a reader knows it."""

    key: str
    title: str

    @property
    def script(self) -> Path:
        return HERE / f"peer_{self.key}.py"

    @property
    def results(self) -> Path:
        return RESULTS / f"{self.key}.json"


PEERS = (
    Peer("fxquant", "fxquant"),
    Peer("torch_ao", "torch.ao FX"),
    Peer("pt2e", "torchao PT2E"),
    Peer("brevitas", "Brevitas"),
    Peer("aimet", "AIMET"),
    Peer("nncf", "NNCF"),
)

Records = dict[tuple[str, str], dict[str, Any]]  # by network and way


def run(peer: Peer, python: str) -> None:
    """Run one tool's script, show its lines as they come, keep them."""
    command = [python, str(peer.script)]
    lines: list[dict[str, Any]] = []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(json.loads(line))
            print(f"{peer.key:9} {_progress(lines[-1])}", flush=True)
    if process.returncode:
        sys.exit(f"{peer.script.name} ended with {process.returncode}: its results are not kept")
    head, *records = lines
    kept = {"date": datetime.date.today().isoformat(), **head, "records": records}
    RESULTS.mkdir(exist_ok=True)
    peer.results.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def _progress(line: dict[str, Any]) -> str:
    if "versions" in line:
        return str(line["versions"])
    return f"{line['number']:3} {line['network']:42} {line['way']:18} {line['result']}"


# --- the page -------------------------------------------------------------------------------------

HEAD = """\
<!-- Made by benchmarks/peers/run.py from benchmarks/peers/results/. Do not edit. -->

# Who breaks where

Which quantization tools change a network while they rewrite it. Small networks, each made for one
edge case (`tests/edge_cases/networks.py`), go through the rewrites of several tools: batch-norm
folding, fusing, equalization. Fake-quants and observers are off, so that nothing is rounded and the
function should be the float network's, in `eval()`. Made by `python benchmarks/peers/run.py`; how
each tool is driven is in [benchmarks/peers](../benchmarks/peers/README.md).

| in a cell | means |
| --- | --- |
| · | kept: the largest difference is at most 1e-4 of the largest output |
| **0.5** | changed: that ratio, on one random input; nothing was said |
| refused | an error of the kind that the tool has for what it does not support |
| crash | any other error |

What errors say is listed below the table. A refusal or a crash is seen; a changed function is not.
fxquant refuses operators that have no integer form unless it is told to keep them in float, as the
other tools do unasked. NNCF leaves the layers of a PyTorch module as they are, so its column says
little.
"""


def page(found: dict[Peer, dict[str, Any]]) -> str:
    """The whole of docs/peers.md."""
    parts = [HEAD, "## In short\n", summary(found), "## Network by network\n", table(found)]
    parts += ["## What the errors say\n", errors(found)]
    return "\n".join(parts)


def summary(found: dict[Peer, dict[str, Any]]) -> str:
    """One line per way through a tool: how often each result."""
    kinds = ("kept", "changed", "refused", "crashed")
    rows = [f"| tool | way | {' | '.join(kinds)} | versions, date |", "| --- " * 7 + "|"]
    for peer in PEERS:
        if peer not in found:
            rows.append(f"| {peer.title} | not installed |" + " |" * 5)
            continue
        result = found[peer]
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        for way in result["ways"]:
            counts = Counter(r["result"] for r in result["records"] if r["way"] == way)
            numbers = " | ".join(str(counts[kind]) for kind in kinds)
            rows.append(f"| {peer.title} | {way} | {numbers} | {versions}, {result['date']} |")
    return "\n".join(rows) + "\n"


def table(found: dict[Peer, dict[str, Any]]) -> str:
    """One row per network, one column per way through a tool."""
    columns = [(peer, way) for peer in found for way in found[peer]["ways"]]
    heads = [f"{peer.title}: {way}" for peer, way in columns]
    records: dict[Peer, Records] = {
        peer: {(r["network"], r["way"]): r for r in result["records"]}
        for peer, result in found.items()
    }
    rows = [f"| case | network | {' | '.join(heads)} |", "| --: | --- |" + " :-: |" * len(columns)]
    for number, network in networks(found):
        cells = [cell(records[peer].get((network, way))) for peer, way in columns]
        rows.append(f"| {number} | {network} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def networks(found: dict[Peer, dict[str, Any]]) -> list[tuple[int, str]]:
    """All that some tool was run on, in the order of their numbers."""
    seen = {(r["number"], r["network"]): None for f in found.values() for r in f["records"]}
    return sorted(seen, key=lambda case: case[0])


def cell(record: dict[str, Any] | None) -> str:
    """One result, short."""
    if record is None:
        return ""
    if record["result"] == "changed":
        error = record["error"]
        return f"**{error}**" if isinstance(error, str) else f"**{error:.2g}**"
    return {"kept": "·", "crashed": "crash", "refused": "refused"}[record["result"]]


def errors(found: dict[Peer, dict[str, Any]]) -> str:
    """The first line of each error, under its tool; ways with the same error together."""
    parts = []
    for peer, result in found.items():
        said: dict[tuple[int, str, str], list[str]] = {}
        for record in result["records"]:
            if "line" in record:
                case = (record["number"], record["network"], record["line"])
                said.setdefault(case, []).append(record["way"])
        parts.append(f"### {peer.title}\n")
        for (number, network, line), ways in said.items():
            where = "everywhere" if len(ways) == len(result["ways"]) else ", ".join(ways)
            said_plainly = line.replace("`", "'")
            parts.append(f"- {number} {network} ({where}): `{said_plainly}`")
        parts.append("" if said else "None.\n")
    return "\n".join(parts)


def main() -> None:
    """Run the tools named, then make the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = {peer.key: peer for peer in PEERS}
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="TOOL=PYTHON",
        help=f"a tool ({', '.join(known)}) and the interpreter that has it; may be repeated",
    )
    for choice in parser.parse_args().peer:
        key, _, python = choice.partition("=")
        if key not in known or not python:
            parser.error(f"--peer takes TOOL=PYTHON with a tool of {', '.join(known)}: '{choice}'")
        run(known[key], python)
    there = [peer for peer in PEERS if peer.results.exists()]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page({peer: json.loads(peer.results.read_text()) for peer in there}))
    print(f"wrote {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}")


if __name__ == "__main__":
    main()
