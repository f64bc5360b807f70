"""The configuration of a tiny run, for tests of whole runs."""

import pytest
import yaml
from tiny import tiny_settings, write_tiny_data


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """A tiny run from nothing on three tasks, evaluated on two; returns the file of its configuration."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_data(folder, unseen=["next", "third"])
    values = tiny_settings(folder, save_every=2, learning_rate=1e-2)
    values["task_adapters"] |= {"steps": 3, "by": "task", "reads": "input"}
    values["finetuning"]["steps"] = 6
    values["evaluation"] = {"every": 3, "oracle": {"steps": 2, "examples_per_task": 2}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return folder / "tiny.yaml"
