"""The cheap share of the cases of bad input; `python tests/bad_input/run.py` runs all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from share import SHARE
from tables import rows_of

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """What the script says of the share: `{(where, name): (what happened, verdict)}`."""
    table = tmp_path_factory.mktemp("bad_input") / "table.md"
    command = [sys.executable, str(HERE / "run.py"), "--share", "--output", str(table)]
    environment = {**os.environ, "TMPDIR": str(table.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert table.is_file(), done.stderr
    return {(where, name): (happened, verdict) for where, name, happened, verdict in rows_of(table)}


@pytest.mark.parametrize("where, name", SHARE, ids=lambda text: text[:60])
def test_bad_input_is_met_well(where, name, verdicts):
    happened, verdict = verdicts[where, name]
    assert verdict == "good", happened
