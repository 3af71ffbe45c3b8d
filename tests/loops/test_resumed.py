"""Killed at any step and resumed, a training is bit for bit the one that nobody disturbed."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = 14


def command(path, kind):
    return [sys.executable, "-m", "tests.loops.resumed", str(path), str(STEPS), kind]


def run_to_the_end(path, kind):
    """All that it prints."""
    done = subprocess.run(
        command(path, kind), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def kill_after(path, kind, step):
    """SIGKILL right behind the report of a step: the next one is under way."""
    with subprocess.Popen(
        command(path, kind), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == f"done {step}\n":
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("kind", ["learned", pytest.param("observed", marks=pytest.mark.slow)])
def test_a_killed_training_resumes_bit_for_bit(kind, tmp_path):
    step = random.randrange(1, STEPS - 1)  # another one each time
    kill_after(tmp_path / "killed", kind, step)
    resumed = run_to_the_end(tmp_path / "killed", kind)
    unbroken = run_to_the_end(tmp_path / "unbroken", kind)
    assert int(resumed[0].split()[1]) >= step
    assert resumed[-1] == unbroken[-1], f"killed after step {step}"
