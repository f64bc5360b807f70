"""Every benchmark runs, and ends with its line of JSON; no time is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from everything import NAMES  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_ends_with_one_line_of_json(name):
    root = HERE.parents[1]
    done = subprocess.run(
        [sys.executable, f"tests/benchmarks/{name}.py", "--quick"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert {"question", "ratio", "goal", "met"} <= result.keys()
    assert isinstance(result["question"], str) and result["question"]
    assert isinstance(result["ratio"], float) and result["ratio"] > 0
    assert result["met"] in (True, False)
