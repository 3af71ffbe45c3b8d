"""Readers of files, fed with mutated bytes: only our errors come out, whatever the bytes are.

A few of every reader in every run; `pytest --fuzz 30 tests/test_fuzzed_readers.py` lets atheris
go on for 30 minutes, shared out among them.
"""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzzed_readers import READERS, feed

ROOT = Path(__file__).parent.parent
START = """
import pathlib, sys
import atheris
with atheris.instrument_imports(include=["fxquant", "json", "yaml"]):
    from tests.fuzzed_readers import main
main(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:])
"""


@pytest.fixture(autouse=True)
def formats():
    """What the readers read with."""
    pytest.importorskip("safetensors", reason="safetensors is in the extra `save`")
    pytest.importorskip("yaml", reason="pyyaml is in the extra `yaml`")


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A byte changed, a piece doubled, left out or taken from elsewhere."""
    at, length = rng.randrange(len(data) + 1), rng.choice([1, 2, 8, 64])
    piece = rng.choice([b"", rng.randbytes(length), data[at : at + length] * 2, other[-length:]])
    return data[:at] + piece + data[at + rng.choice([0, length]) :]


@pytest.mark.parametrize("name", READERS)
def test_a_few_bytes(name, tmp_path):
    rng, path = random.Random(name), tmp_path / "read"
    seeds = READERS[name].seeds(path)
    for seed in seeds:
        feed(READERS[name], path, seed)
        for _ in range(40 // len(seeds)):
            feed(READERS[name], path, mutated(seed, rng.choice(seeds), rng))


@pytest.mark.parametrize("name", READERS)
def test_what_atheris_makes_up(name, tmp_path, minutes):
    if not minutes:
        pytest.skip("it goes on for as long as --fuzz says")
    pytest.importorskip("atheris", reason="atheris is in the extra `fuzz`")
    seconds = max(1, round(60 * minutes / len(READERS)))
    limits = [f"-max_total_time={seconds}", "-timeout=60", "-rss_limit_mb=4096"]
    print_counts = ["-print_final_stats=1", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        [sys.executable, "-c", START, name, tmp_path / "corpus", *limits, *print_counts],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    print(name, re.search(r"Done \d+ runs.*", done.stderr)[0])
