"""What all cases share: tiny data, a tiny run, its checkpoint, an adapter; made once, and left alone by every case."""

import copy
import json
import shutil
import sys
from functools import cached_property
from pathlib import Path

import yaml
from forked import ROOT, start, tagi, train

sys.path.insert(0, str(ROOT / "tests"))

from tiny import tiny_settings, write_tiny_data  # noqa: E402

INSTRUCTION = "say the last word"


class World:
    """Folders and files that cases read; all below one folder.

    Args:
        folder: Where they are; what is there already is taken as it is.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config, self.run = folder / "tiny.yaml", folder / "run"
        self.model, self.backbone = self.run / "model", self.run / "stages" / "instruction_tuning" / "backbone"
        self.adapter, self.records = folder / "adapter", folder / "words.jsonl"
        self.logs = folder / "logs"

    def places(self) -> dict[str, Path]:
        """What commands may name as `<name>`."""
        names = ("config", "run", "model", "backbone", "adapter", "records", "folder")
        return {name: getattr(self, name) for name in names} | {"world": self.folder, "root": ROOT}

    def make(self):
        """Makes what is not there."""
        if (self.folder / "made").is_file():
            return self
        self.logs.mkdir(parents=True)
        write_tiny_data(self.folder, unseen=["next"])
        self.config.write_text(yaml.safe_dump(tiny_settings(str(self.folder))))
        self.records.write_text(json.dumps(record()) + "\n")
        self._call(train, "train.py", str(self.config), "--output_dir", str(self.run))
        self._call(tagi, "tagi", "generate", str(self.model), INSTRUCTION, "--output_dir", str(self.adapter))
        (self.folder / "made").touch()
        return self

    def _call(self, program, *arguments):
        outcome = start(program, arguments, self.folder, self.logs / program.__name__).wait()
        if outcome.code:
            raise RuntimeError(f"{' '.join(arguments)} ended with {outcome.code}: {outcome.err[-2000:]}")

    @cached_property
    def tagi_model(self):
        """The checkpoint, loaded."""
        from modeling_tagi import TagiModel

        return TagiModel.from_pretrained(self.model).eval()

    def checkpoint(self, folder: Path, without=(), config=None) -> Path:
        """A copy of the checkpoint, without some of its files and with other fields in its config."""
        shutil.copytree(self.model, folder)
        for name in without:
            for file in folder.glob(name):
                file.unlink()
        if config:
            file = folder / "config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        return folder


def record(**fields) -> dict:
    """A row of data, with other fields; `None` takes one out."""
    row = {"task": "t1", "group": "g1", "instruction": INSTRUCTION, "input": "dog plum", "targets": ["plum"]}
    row = {**row, **copy.deepcopy(fields)}
    return {name: value for name, value in row.items() if value is not None}
