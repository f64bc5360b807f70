"""What is killed: each case is one command, what must hold behind a kill, and what it leaves in the end."""

import os
import shutil
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Callable, Iterator

import torch
import yaml
from forked import tagi, train
from hub_stand_in import HubStandIn
from killed import contents, ended
from safetensors.torch import save_file
from tiny import TASKS, tiny_settings, write_tiny_data

from modeling_tagi import TagiAdapter, TagiModel
from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.data.collate import RecordCollator
from modeling_tagi.data.tables import read_table
from modeling_tagi.publishing.push import push_folder
from modeling_tagi.serving.adapters_on_disk import AdaptersOnDisk
from modeling_tagi.studies import cell, cell_folder
from modeling_tagi.tokens import Tokens
from modeling_tagi.training import teacher_cache
from modeling_tagi.training.teacher import Teacher, frozen_copy

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
         "attention_dropout": 0.2}  # fmt: skip
INSTRUCTIONS = [f"say word number {number}" for number in range(6)]


@dataclass
class Case:
    """A command that changes `folder`.

    Args:
        act: The command, called in a process of its own.
        begin: Makes what is there before it; `folder` is empty, and at the same path each time.
        holds: Says what is wrong at any moment, such as half a file that can be read; an empty text if nothing is.
        ends: What must be the same in the end; by default every file of the folder.
        share: How many of the points it gets, in comparison with the others.
    """

    folder: Path
    act: Callable[[], None]
    begin: Callable[[], None] = lambda: None
    holds: Callable[[], str] = lambda: ""
    ends: Callable[[], dict] = None
    share: int = 1

    def __post_init__(self):
        self.ends = self.ends or (lambda: contents(self.folder))


class Cases:
    """Makes the cases in a folder of their own.

    Args:
        folder: Where.
        hub: The Hub that is pushed to.
    """

    def __init__(self, folder: Path, hub: HubStandIn):
        self.folder, self.hub = folder, hub
        folder.mkdir()
        write_tiny_data(folder, unseen=["next"])

    def all(self) -> Iterator[tuple[str, Case]]:
        yield "a run (T5)", self._run("t5", {})
        yield "a run (Llama)", self._run("llama", LLAMA)
        yield "a study", self._study()
        yield "bank", self._bank()
        yield "adapter", self._adapter()
        yield "teacher's cache", self._teacher()
        yield "server's adapters", self._server()
        yield "release", self._release()
        yield "push", self._push()

    def _config(self, name: str, backbone: dict) -> Path:
        values = tiny_settings(str(self.folder), save_every=1)
        values["task_adapters"]["at_once"] = 2
        values["evaluation"] = {"every": 2, "references": []}
        if backbone:
            values["backbone"]["config"] = backbone
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
        return self.folder / f"{name}.yaml"

    def _run(self, name: str, backbone: dict) -> Case:
        config, out = self._config(name, backbone), self.folder / f"run-{name}"
        return Case(out, with_arguments(train, "train.py", str(config), "--output_dir", str(out)), share=3)

    def _study(self) -> Case:
        file, out = self.folder / "study.yaml", self.folder / "study"
        file.write_text(yaml.safe_dump({
            "config": str(self._config("cell", {})), "methods": ["tagi"], "references": ["no_instruction"],
            "workers": 1, "overrides": {"pretraining.steps": 0, "task_adapters.steps": 0, "text.steps": 0,
                                        "finetuning.distillation_weight": 0, "finetuning.alignment": "none"},
        }))  # fmt: skip

        def act():
            cell_folder.subprocess = _Forked
            with_arguments(tagi, "tagi", "study", str(file), "--output_dir", str(out))()

        return Case(out, act, ends=lambda: {k: v for k, v in contents(out).items() if "log.txt" not in k})

    @cached_property
    def model(self) -> TagiModel:
        """A checkpoint of a run, loaded; the run is made once."""
        return TagiModel.from_pretrained(self.checkpoint).eval()

    @cached_property
    def checkpoint(self) -> Path:
        made = self.folder / "run-made"
        config = self._config("made", {})
        outcome, _ = ended(with_arguments(train, "train.py", str(config), "--output_dir", str(made)), made,
                           self.folder / "log")  # fmt: skip
        if outcome.code:
            raise RuntimeError(outcome.err[-3000:])
        return made / "model"

    def _adapters(self) -> TagiAdapter:
        return self.model.generate_adapter(INSTRUCTIONS)

    def _bank(self) -> Case:
        folder = self.folder / "bank-case" / "bank"
        adapters = self._adapters()

        def act():
            bank = AdapterBank(folder)
            for start in (0, 2, 4):
                names = INSTRUCTIONS[start: start + 2]
                if not all(name in bank for name in names):
                    bank.add(names, adapters[[start, start + 1]], [{"reads": "input"}] * 2)

        def holds():
            bank = AdapterBank(folder)
            if bank.names != INSTRUCTIONS[: len(bank)] or len(bank) % 2:
                return f"the bank names {bank.names}"
            wrong = [name for n, name in enumerate(bank.names) if not same(bank.read(name), adapters[n])]
            return f"other adapters than were added: {wrong}" if wrong else ""

        def ends():  # the index by what it says: a part of it may be in either file
            files = {name: x for name, x in contents(folder.parent).items() if "/index" not in name}
            return {**files, "the index": str(list(AdapterBank(folder)._index.items()))}

        return Case(folder.parent, act, lambda: folder.mkdir(), holds, ends, share=2)

    def _adapter(self) -> Case:
        folder = self.folder / "adapter-case" / "adapter"
        old, new = self._adapters()[0], replace(self._adapters()[1], lora_alpha=32.0)

        def holds():
            try:
                read = TagiAdapter.from_pretrained(folder)
            except FileNotFoundError as refusal:
                return "" if "save the adapter there again" in str(refusal) else str(refusal)
            return "" if same(read, old) or same(read, new) else "half of the old adapter and half of the new"

        # a save by itself leaves a hidden folder beside it, which nothing reads and nobody knows to be its own
        return Case(folder.parent, lambda: new.save_pretrained(folder), lambda: old.save_pretrained(folder), holds,
                    lambda: contents(folder))  # fmt: skip

    def _teacher(self) -> Case:
        folder = self.folder / "teacher-case" / "cache"
        model = self.model
        records = read_table(self.folder / "data" / "train.jsonl")
        adapters = model.generate_adapter([TASKS[task][0] for task in ("first", "last", "second")])
        teacher = Teacher(frozen_copy(model.backbone), replace(adapters, memory=None))
        tokens = Tokens.of(model.tokenizer, model.config, 48, 8)
        collator = RecordCollator(tokens, bank_index={"first": 0, "last": 1, "second": 2})

        def act():
            teacher_cache._SHARD = 4
            kept = teacher_cache.Kept("states")
            cache = teacher_cache.TeacherCache.filled(folder, teacher, collator, records, kept, batch_size=2)
            save_file(cache(records), folder.parent / "answers.safetensors")

        return Case(folder.parent, act, share=1)

    def _server(self) -> Case:
        folder = self.folder / "server-case"
        model = self.model
        right = {text: model.generate_adapter(text) for text in INSTRUCTIONS}

        def cache():
            return AdaptersOnDisk.of(model, folder)

        def act():
            for text in INSTRUCTIONS:
                cache().folder_for(text)

        def holds():
            kept = cache()
            for name in kept.ids():
                text = kept.instruction_of(name)
                if not same(TagiAdapter.from_pretrained(kept.folder / name), right[text]):
                    return f"another adapter for {text!r}"
            return ""

        return Case(folder, act, holds=holds, share=2)

    def _release(self) -> Case:
        folder = self.folder / "release-case" / "model"
        act = with_arguments(tagi, "tagi", "release", str(self.checkpoint), str(folder))

        def begin():
            shutil.copytree(self.checkpoint, folder)
            (folder / "old.txt").write_text("of the release before")

        def holds():
            if not (folder / "config.json").is_file():
                return ""  # between two moves
            TagiModel.from_pretrained(folder)
            return ""

        return Case(folder.parent, act, begin, holds, share=2)

    def _push(self) -> Case:
        folder, name = self.folder / "push-case", "user/kept"

        def files():
            there = self.hub.repositories.get(name)
            return dict(self.hub.files(name)) if there is not None else {}

        def begin():
            self.hub.repositories.pop(name, None)
            shutil.copytree(self.checkpoint, folder / "model")

        def holds():
            there = files()
            some = {file for file in there if file not in ("README.md", ".gitattributes")}
            return f"a part of it is on the Hub: {sorted(some)}" if some and "model.safetensors" not in some else ""

        return Case(folder, lambda: push_folder(folder / "model", name), begin, holds, lambda: files(), share=2)


def with_arguments(program: Callable[[], None], *arguments: str) -> Callable[[], None]:
    """A program called with these arguments."""

    def act():
        sys.argv = list(arguments)
        program()

    return act


def same(one: TagiAdapter, two: TagiAdapter) -> bool:
    """Whether two adapters are equal in all numbers, and of one instruction."""
    return one.lora_alpha == two.lora_alpha and all(
        torch.equal(x, y[path])
        for x_by, y in ((one.lora_a, two.lora_a), (one.lora_b, two.lora_b)) for path, x in x_by.items()
    )  # fmt: skip


class _Forked:
    """Stands for `subprocess` where a study starts its cells, which then need no start of an interpreter."""

    PIPE = None

    class Popen:
        def __init__(self, command, stdin, stdout, stderr, env):
            ours, self._kept = os.pipe()
            self.returncode, self.pid = None, os.fork()
            if self.pid == 0:
                code = 70
                try:
                    os.close(self._kept)
                    for number, descriptor in enumerate((ours, stdout.fileno(), stderr.fileno())):
                        os.dup2(descriptor, number)
                    code = cell.main(command[-1])
                finally:
                    os._exit(code)
            os.close(ours)

        def poll(self):
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

        def kill(self):
            if self.poll() is None:
                os.kill(self.pid, 9)
