"""Good folders of every kind, of which each case spoils a copy, and tools to spoil them."""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from modeling_tagi import TagiModel
from modeling_tagi.banks.adapter_bank import AdapterBank

CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"


class World:
    """What cases are given, `given`, and what they have no business in, `outside`; each copies them.

    `checkpoint`, `chat` (a Llama for chats), `apart` (a generator without its backbone), `backbone`, `adapter`,
    `memory` (an adapter with an instruction memory), `bank`, `function`.
    """

    def __init__(self, folder: Path, make_model, make_backbone, tokenizer):
        self.folder = folder
        given = folder / "given"
        for name, family, fusion in (("checkpoint", "t5", "none"), ("fused", "t5", "cross_attention"),
                                     ("chat", "llama", "none")):  # fmt: skip
            model = make_model(family, fusion)
            model.tokenizer = tokenizer
            model.save_pretrained(given / name)
        make_backbone("t5").save_pretrained(given / "backbone")
        tokenizer.save_pretrained(given / "backbone")
        model = TagiModel.from_pretrained(given / "checkpoint").eval()
        fused = TagiModel.from_pretrained(given / "fused").eval()
        model.generate_adapter("say it").save_pretrained(given / "adapter")
        fused.generate_adapter("say it").save_pretrained(given / "memory")
        AdapterBank(given / "bank").add(["one", "two"], model.generate_adapter(["one", "two"]))
        model.function("say it").save(given / "function")
        outside = folder / "outside"
        (outside / "adapter").mkdir(parents=True)
        shutil.copytree(given / "adapter", outside / "adapter", dirs_exist_ok=True)
        shutil.copy(given / "checkpoint" / "model.safetensors", outside / "model.safetensors")
        shutil.copy(given / "checkpoint" / "config.json", outside / "config.json")
        (outside / "secret.json").write_text(json.dumps({"secret": "hf_outside"}))

    def copied(self, to: Path) -> "Place":
        shutil.copytree(self.folder, to)
        return Place(to / "given", to / "outside")


class Place:
    """A case's own copy: `place / "checkpoint"` is a folder of it."""

    def __init__(self, given: Path, outside: Path):
        self.given, self.outside = given, outside

    def __truediv__(self, name: str) -> Path:
        return self.given / name

    @property
    def up(self) -> str:
        """The way from one of the folders out of what was given."""
        return os.path.relpath(self.outside, self.given / "checkpoint")

    def edit(self, name: str, **fields):
        """Gives a JSON file other fields; dots are written as two underscores."""
        file = self.given / name
        found = json.loads(file.read_text())
        for path, value in fields.items():
            *above, last = path.split("__") if not path.startswith("_") else [path]
            inner = found
            for key in above:
                inner = inner[key]
            inner[last] = value
        file.write_text(json.dumps(found))

    def code(self, name: str) -> Path:
        """Puts code in a file that leaves a trace when it runs."""
        file = self.given / name
        file.write_text(f"open({str(self.outside / 'ran')!r}, 'w')\nclass Class: pass\n")
        return file

    def pickle(self, name: str):
        """Puts a pickle in a file that leaves a trace when it is read, as torch writes them."""
        file = self.given / name
        file.unlink(missing_ok=True)
        torch.save({"x": torch.zeros(1), "bomb": _Bomb(str(self.outside / "ran"))}, file)

    def plain_pickle(self, name: str):
        """As `pickle`, without a zip around it."""
        (self.given / name).write_bytes(pickle.dumps(_Bomb(str(self.outside / "ran"))))

    def link(self, name: str, to: str):
        """Puts a link in place of a file."""
        file = self.given / name
        file.unlink(missing_ok=True)
        file.symlink_to(to if os.path.isabs(to) else self.outside / to)

    def header(self, name: str, header: Any, length: int | None = None, body: bytes = b"\0" * 64):
        """Writes a file of safetensors with any header."""
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        (self.given / name).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)

    def index(self, name: str, file: str):
        """Has a checkpoint's index of shards name a file."""
        folder = self.given / name
        weights = folder / "model.safetensors"
        keys = json.loads(weights.read_bytes()[8: 8 + struct.unpack("<Q", weights.read_bytes()[:8])[0]])
        weights.unlink()
        described = {"metadata": {}, "weight_map": {key: file for key in keys if key != "__metadata__"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(described))

    def bank(self, folder: str):
        """Has the bank's index name a folder."""
        self.edit("bank/index.json", adapters__one={"folder": folder})


class _Bomb:
    def __init__(self, file: str):
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


def tensors(file: Path, **more):
    save_file(more, file)
