"""`tagi run`, `generate`, `compare`, `push`, `plan`: checkpoints, adapters, texts and places that cannot be used."""

import json
import os
import shutil
import sys

from case import Case, Either, Fine, Outcome, Place, Refused, tagi, tagi_case
from world import INSTRUCTION

NO_NETWORK = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}
TAGI = (sys.executable, "-m", "modeling_tagi.commands.main")
ANSWERED = Fine(lambda place, outcome: None if outcome.out.count("\n") >= 1 else "no output line")


def _run(name: str, checkpoint: str, expects, *, instruction: str = INSTRUCTION, inputs=("dog plum",), **more) -> Case:
    return tagi_case(name, ["run", checkpoint, instruction, *inputs, "--max_new_tokens", "4"], expects, **more)


def _real(name: str, *arguments: str, expects, **variables) -> Case:
    """A case in a process of its own, whose environment is other than ours."""
    return Case(name, lambda place: place.call(tagi, *arguments, process=TAGI, variables=variables), expects)


NAMES = [
    _run("run: checkpoint missing folder", "/nope/x", Refused(("/nope/x", "there is no folder"))),
    _run("run: checkpoint hub name offline", "me/no-such", Refused(("me/no-such", "OFFLINE|offline"))),
    _real(
        "run: checkpoint hub name, no network", "run", "me/no-such", INSTRUCTION, "dog plum",
        expects=Refused(("me/no-such", "connection|network")), **NO_NETWORK,
    ),
    _run("run: checkpoint ''", "", Refused(("''|empty", "checkpoint|folder"))),
    _run("run: checkpoint is a file", "<model>/config.json", Refused((r"config\.json",))),
    _run("run: checkpoint is an adapter folder", "<adapter>", Refused(("<adapter>", "TAGI model|adapter"))),
    _run("run: checkpoint is a plain T5", "<backbone>", Refused(("<backbone>", "t5", "not a TAGI|no TAGI|TAGI"))),
    _run("run: checkpoint is run folder", "<run>", Refused(("<run>", "config.json"))),
]  # fmt: skip


def _damaged(name: str, damage, expects) -> Case:
    """A case of `tagi run` with a copy of the checkpoint that `damage` does something to."""

    def make(place: Place):
        folder = place.world.checkpoint(place.here / "ck")
        damage(folder)

    return _run(name, "<here>/ck", expects, make=make)


def _weights(change):
    """Damages the checkpoint's tensors."""

    def damage(folder):
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        file = folder / "model.safetensors"
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata)

    return damage


def _first(tensors, part="hypernetwork"):
    return next(name for name in sorted(tensors) if name.startswith(part))


def _lack_one(tensors):
    del tensors[_first(tensors)]


def _wrong_shape(tensors):
    name = _first(tensors)
    tensors[name] = tensors[name].flatten()[:-1].clone()


def _nan(tensors):
    for value in tensors.values():
        value.fill_(float("nan"))


def _truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _without(*patterns):
    def damage(folder):
        for pattern in patterns:
            found = list(folder.glob(pattern))
            assert found, pattern
            for file in found:
                file.unlink()

    return damage


def _text(name, text):
    return lambda folder: (folder / name).write_text(text)


def _pickled(folder):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


class _Harm:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def _malicious(folder):
    import pickle

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Harm()))
    (folder / "model.safetensors").unlink()


def _rank(folder):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "r": 7}))


IN_CK = "<here>/ck"
DAMAGED = [
    _damaged("ckpt without config.json", _without("config.json"), Refused((IN_CK, r"config\.json"))),
    _damaged("ckpt config.json broken", _text("config.json", "{"), Refused((IN_CK, r"config\.json"))),
    _damaged("ckpt without weights", _without("*.safetensors"), Refused((IN_CK, r"model\.safetensors"))),
    _damaged("ckpt weights truncated", _truncated, Refused((IN_CK, r"model\.safetensors"))),
    _damaged("ckpt weights empty", _text("model.safetensors", ""), Refused((IN_CK, r"model\.safetensors"))),
    _damaged("ckpt one hypernetwork tensor missing", _weights(_lack_one), Refused((IN_CK, "lacks 1"))),
    _damaged("ckpt wrong shapes", _weights(_wrong_shape), Refused(("shape|mismatch",))),
    _damaged("ckpt weights NaN", _weights(_nan), Refused((IN_CK, "finite|NaN|nan"))),
    _damaged("ckpt without tokenizer", _without("tokenizer*"), Refused((IN_CK, "tokenizer"))),
    _damaged("ckpt tokenizer broken", _text("tokenizer.json", "{}"), Refused((IN_CK, "tokenizer"))),
    _damaged("ckpt without a code file", _without("fusion.py"), ANSWERED),
    _damaged("ckpt without instruction index", _without("instruction_index.json", "instruction_index.safetensors"),
             ANSWERED),
    _damaged("ckpt instruction index broken", _text("instruction_index.json", "{"),
             Either(Refused((IN_CK, r"instruction_index\.json")), ANSWERED)),
    _damaged("ckpt config r changed", _rank, Refused((r"shape|mismatch|\br\b",))),
    _damaged("ckpt weights as pickle .bin", _pickled, Either(Refused(("safetensors",)), ANSWERED)),
]  # fmt: skip


def _stdin(name: str, text: bytes, expects) -> Case:
    return tagi_case(name, ["run", "<model>", INSTRUCTION, "--max_new_tokens", "4"], expects, stdin=text)


def _lines(count: int) -> Fine:
    def check(place: Place, outcome: Outcome):
        found = len(outcome.out.splitlines())
        return None if found == count else f"{found} lines for {count} inputs"

    return Fine(check)


TEXTS = [
    _run("run: empty instruction", "<model>", Refused(("instruction is ''",)), instruction=""),
    _run("run: whitespace instruction", "<model>", Refused(("instruction is ' '",)), instruction=" "),
    _run("run: 100k-character instruction", "<model>", Refused(("tokens", "1024")), instruction="word " * 20_000),
    _run("run: emoji instruction", "<model>", ANSWERED, instruction="write 🦊🔥"),
    _run("run: empty input", "<model>", ANSWERED, inputs=("",)),
    _stdin("run: stdin empty", b"", Refused(("no inputs",), 2)),
    _stdin("run: stdin latin-1", "caf\xe9 plum\n".encode("latin-1"), Refused(("UTF-8",))),
    _stdin("run: stdin NUL", b"dog\0plum\n", _lines(1)),
    _stdin("run: stdin blank lines", b"\n\ndog plum\n\n", _lines(1)),
    _stdin("run: one 5 MB line", b"dog plum " * 550_000 + b"\n",
           Either(Refused(("tokens|long|memory", "input")), _lines(1))),
    *(tagi_case(f"run: {field} {value}", ["run", "<model>", INSTRUCTION, "dog plum", f"--{field}", value],
                Refused((field, value), 2))
      for field, value in (("max_new_tokens", "0"), ("max_new_tokens", "-3"), ("max_new_tokens", "x"),
                           ("batch_size", "0"))),
    tagi_case("run: demonstration one word", ["run", "<model>", INSTRUCTION, "dog plum", "--demonstration", "a"],
              Refused(("demonstration",), 2)),
    _run("run: demonstration empty", "<model>", Either(Refused(("demonstration",)), ANSWERED),
         inputs=("dog plum", "--demonstration", "", "")),
    _run("run: argument not utf-8", "<model>", Refused(("UTF-8",)),
         inputs=(os.fsdecode("caf\xe9".encode("latin-1")),)),
]  # fmt: skip


def _generate(name: str, output: str, expects, **more) -> Case:
    return tagi_case(name, ["generate", "<model>", INSTRUCTION, "--output_dir", output], expects, **more)


def _a_file(place: Place):
    (place.here / "afile").write_text("mine")


def _copied_model(place: Place):
    place.world.checkpoint(place.here / "ck")


def _copied_adapter(place: Place):
    shutil.copytree(place.world.adapter, place.here / "ad")


def _broken_adapter(damage):
    def make(place: Place):
        _copied_adapter(place)
        damage(place.here / "ad")

    return make


def _is_adapter(place: Place, outcome: Outcome):
    from modeling_tagi import TagiAdapter

    TagiAdapter.from_pretrained(place.here / "ad")


GENERATE = [
    _generate("generate: output is a file", "<here>/afile", Refused(("afile", "is a file")), make=_a_file),
    _generate("generate: output below a file", "<here>/afile/x",
              Refused(("afile", "is a file|not a folder|no folder")), make=_a_file),
    _generate("generate: output ''", "", Refused(("output_dir|folder", "''|empty"))),
    _generate("generate: output /proc/x", "/proc/x", Refused(("/proc",))),
    _generate("generate: output over a checkpoint", "<here>/ck", Refused(("<here>/ck", "config.json|checkpoint")),
              make=_copied_model),
    _generate("generate: output has an adapter already", "<here>/ad", Fine(_is_adapter, replaces=True),
              make=_copied_adapter, writes=("ad",)),
    _generate("generate: output name 300 chars", "<here>/" + "a" * 300, Refused(("aaa", "long"))),
]  # fmt: skip

COMPARE = [
    tagi_case("compare: adapter with checkpoint", ["compare", "<adapter>", "<model>"], Refused(("two of a kind",))),
    tagi_case("compare: missing", ["compare", "<adapter>", "/nope"], Refused(("/nope",))),
    tagi_case("compare: file", ["compare", "<adapter>", "<model>/config.json"], Refused((r"config\.json",))),
    tagi_case(
        "compare: truncated adapter", ["compare", "<adapter>", "<here>/ad"],
        Refused((r"<here>/ad", r"adapter_model\.safetensors")),
        _broken_adapter(lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"1234567")),
    ),
    tagi_case(
        "compare: broken adapter_config", ["compare", "<adapter>", "<here>/ad"],
        Refused((r"<here>/ad", r"adapter_config\.json")),
        _broken_adapter(lambda folder: (folder / "adapter_config.json").write_text("{")),
    ),
]  # fmt: skip

PUSH = [
    tagi_case("push: missing folder", ["push", "/nope", "me/x"], Refused(("/nope",))),
    tagi_case("push: a file", ["push", "<model>/config.json", "me/x"], Refused((r"config\.json",))),
    tagi_case("push: bad name", ["push", "<model>", "a b/c!"], Refused(("a b/c!",))),
    tagi_case("push: empty folder", ["push", "<here>/ro", "me/x"], Refused(("<here>/ro",)),
              lambda place: (place.here / "ro").mkdir()),
    _real("push: no network with a token", "push", "<model>", "me/x",
          expects=Refused(("me/x", "connection|network")), HF_TOKEN="hf_x", **NO_NETWORK),
]  # fmt: skip


def _plan(name: str, *fields: str, expects, config: str = "<config>") -> Case:
    return tagi_case(name, ["plan", config, *fields], expects)


PLAN = [
    _plan("plan: missing", config="/nope.yaml", expects=Refused((r"/nope\.yaml",))),
    _plan("plan: flops 0", "--flops_per_second", "0", expects=Refused(("flops_per_second", "'0'"), 2)),
    _plan("plan: flops -1", "--flops_per_second", "-1", expects=Refused(("flops_per_second", "'-1'"), 2)),
    _plan("plan: utilisation 5", "--utilisation", "5", expects=Refused(("utilisation", "'5'"), 2)),
    _plan("plan: adapters -1", "--adapters", "-1", expects=Refused(("adapters", "'-1'"), 2)),
    _plan("plan: unknown field", "--finetunning.steps", "3", expects=Refused(("finetunning", "finetuning"), 2)),
    _plan("plan: is a checkpoint folder", config="<model>", expects=Refused(("<model>",))),
]

FLOPS = ("--flops_per_second", "1e12")


def _planned(name: str, field: str, value: str, *words: str) -> Case:
    return tagi_case(f"plan: {name}", ["plan", "<config>", *FLOPS, f"--{field}", value], Refused(words))


# What `train.py` refuses, `tagi plan` refuses too.
PLAN_LIKE_TRAIN = [
    _planned("lr -1", "finetuning.learning_rate", "-1", "learning_rate"),
    _planned("seed -1", "seed", "-1", "seed"),
    _planned("max_input_length 0", "max_input_length", "0", "max_input_length|input"),
    _planned("max_target_length -1", "max_target_length", "-1", "max_target_length|target"),
    _planned("schedule zigzag", "finetuning.schedule", "zigzag", "schedule", "zigzag"),
    _planned("target nope", "tagi.target_modules", "[nope]", "target_modules", "nope"),
    _planned("warmup 2", "finetuning.warmup", "2", "warmup"),
    tagi_case(
        "plan: backbone /nope",
        ["plan", "<config>", *FLOPS, "--backbone.name", "/nope/x", "--backbone.config.vocab_size", "60"],
        Either(Refused(("/nope/x",)), Fine(lambda place, outcome: None if "/nope/x" in outcome.out else "no note")),
    ),
    _planned("num_heads 0", "backbone.config.num_heads", "0", "num_heads"),
    _planned("n_layrs", "backbone.config.n_layrs", "3", "n_layrs"),
    tagi_case(
        "plan: options train_instances -3",
        ["plan", "<config>", *FLOPS, "--data.source", "builtin", "--data.path", "null", "--data.options",
         "{train_instances: -3}"],
        Refused(("train_instances", "-3")),
    ),
]  # fmt: skip

MALICIOUS = _damaged("checkpoint: malicious pickle .bin", _malicious, Refused((IN_CK, "safetensors")))
CASES = [*NAMES, *DAMAGED, *TEXTS, *GENERATE, *COMPARE, *PUSH, *PLAN]
