import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("tool", [["flake8"], ["isort", "--check-only", "--quiet", "."]], ids=["flake8", "isort"])
def test_the_code_passes_the_linters_of_setup_cfg(tool):
    result = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
