"""Compares what two checkouts make of the same tiny runs: every weight, loss and score, to the last bit.

    python tests/house/bit_equal.py BEFORE AFTER

All stages of a T5 and of a Llama, with fusion and without; then AFTER reads BEFORE's checkpoints and adapters, and
must write the same logits. Public names and commands are compared as well.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# Runs in a checkout, with a folder as its argument; names of before and after a renaming are both known.
RUN = '''
import dataclasses, importlib, json, os, sys
from pathlib import Path
os.environ["HF_HUB_OFFLINE"] = "1"
folder, family, fusion = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
import torch
torch.set_num_threads(1)
from modeling_tagi.data.records import Record
from modeling_tagi.data.tables import write_table
from modeling_tagi.training.settings import RunSettings, build_settings
try:
    from modeling_tagi import pipeline as run
except ImportError:
    from modeling_tagi.experiments import run
run = getattr(run, "run_experiment", None) or run.run_pipeline
WORDS = "red green blue one two three four apple pear plum cat dog".split()
TASKS = {"first": ("say the first word", 0), "last": ("say the last word", -1), "second": ("say the second word", 1),
         "next": ("say the word before the last", -2), "third": ("say the third word", 2)}
def records(tasks, length):
    for task in tasks:
        instruction, place = TASKS[task]
        for n in range(6):
            words = [WORDS[(n + 5 * k + len(task)) % 12] for k in range(length)]
            yield Record(task, instruction, " ".join(words), (words[place],))
(folder / "data").mkdir(parents=True)
write_table(list(records(["first", "last", "second"], 4)), folder / "data" / "train.jsonl")
write_table(list(records(["next", "third"], 5)), folder / "data" / "unseen.jsonl")
(folder / "text.txt").write_text("\\n".join(" ".join(WORDS[n:] + WORDS[:n]) for n in range(12)))
backbone = {
    "t5": {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
           "dropout_rate": 0.2},
    "llama": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
              "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
              "attention_dropout": 0.1},
}[family]
fields = {field.name for field in dataclasses.fields(RunSettings)}
tuning = "instruction_tuning" if "instruction_tuning" in fields else "prompted"
tasks, text = {"tasks_per_batch": 2, "examples_per_task": 2}, {"batch_size": 2, "max_length": 24}
values = {
    "output_dir": str(folder / "run"), "seed": 3, "max_input_length": 48, "max_target_length": 8,
    "data": {"source": "tables", "path": f"{folder}/data", "text": f"{folder}/text.txt"},
    "backbone": {"vocab_size": 60, "config": backbone},
    "tagi": {"r": 2, "lora_alpha": 4, "generator_hidden_size": 8, "generator_index_size": 4, "fusion": fusion,
             "input_format": "plain"},
    "text": {"steps": 3, "learning_rate": 1e-2, **text}, tuning: {"steps": 4, "learning_rate": 1e-2, **tasks},
    "task_adapters": {"steps": 3, "by": "task", "learning_rate": 1e-2, "at_once": 2},
    "pretraining": {"steps": 3, "learning_rate": 1e-2, **text},
    "finetuning": {"steps": 6, "train": "all", "learning_rate": 1e-2, "accumulation": 2, "distillation_steps": 5,
                   **tasks},
    "evaluation": {"every": 3, "oracle": {"steps": 2, "examples_per_task": 2},
                   "references": ["no_instruction", "wrong_instruction", "random_words", "nearest_adapter", "oracle"]},
}
results = run(build_settings(values))
def numbers(value):
    if isinstance(value, dict):
        return {k: numbers(v) for k, v in value.items() if "second" not in str(k)}
    return value
kept = {k: numbers(results[k]) for k in results if k not in ("run", "seconds", "hub", "schema_version", "example")}
kept["losses"] = results["run"]["losses"]
text = json.dumps(kept, sort_keys=True)
(folder / "results.json").write_text(text.replace('"prompted"', '"instruction_tuning"'))  # its name of before
from modeling_tagi import TagiModel
model = TagiModel.from_pretrained(folder / "run" / "model").eval()
adapter = model.generate_adapter("say the third word")
adapter[0].save_pretrained(folder / "adapter")
'''
READ = '''
import os, sys
from pathlib import Path
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from safetensors.torch import save_file
torch.set_num_threads(1)
from modeling_tagi import TagiAdapter, TagiModel
found = {}
for folder in map(Path, sys.argv[2:]):
    model = TagiModel.from_pretrained(folder / "run" / "model").eval()
    new = model.generate_adapter(["say the last word", "say the word before the last, then stop"])
    stored = TagiAdapter.from_pretrained(folder / "adapter")
    inputs = model.encode_inputs(["red green blue", "one two"])
    labels = torch.tensor([[5, 6, 1], [7, 1, -100]]) if model.config.is_encoder_decoder else inputs["input_ids"]
    with torch.no_grad():
        for name, adapter in (("new", new), ("stored", stored)):
            found[f"{folder.name} {name}"] = model(**inputs, adapter=adapter, labels=labels).logits.contiguous()
            found[f"{folder.name} {name} tokens"] = model.generate(**inputs, adapter=adapter, max_new_tokens=6)
save_file(found, sys.argv[1])
'''
NAMES = '''
import inspect, json
import modeling_tagi
from modeling_tagi import TagiAdapter, TagiConfig, TagiModel
merged = {}
for name in (TagiAdapter, TagiConfig, TagiModel):
    found = set()
    for c in name.__mro__:
        if "modeling_tagi" in c.__module__:
            for n, f in vars(c).items():
                if n[0] != "_":
                    f = getattr(f, "__func__", f)
                    found.add(n + (str(list(inspect.signature(f).parameters)) if inspect.isfunction(f) else ""))
    merged[name.__name__] = sorted(found)
print(json.dumps(merged))
'''
HELP = """
import sys
sys.argv = ["tagi", "--help"]
try:
    from modeling_tagi.commands.main import main
except ImportError:
    from modeling_tagi.cli import main
main()
"""
CASES = [("t5", "cross_attention"), ("t5", "none"), ("llama", "cross_attention"), ("llama", "concat")]


def python(root: Path, code: str, *arguments) -> str:
    """Runs code in a checkout, and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"in {root}: {done.stderr[-3000:]}")
    return done.stdout


def hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file of weights, of every log and of the results, by its path."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".safetensors" or file.name in ("results.json", "log.jsonl", "scores.jsonl"):
            if file.name == "results.json" and file.parent != folder:  # with times and versions in it
                continue
            place = str(file.relative_to(folder)).replace("stages/prompted/", "stages/instruction_tuning/")
            found[place] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def main(before: Path, after: Path) -> int:
    work, different = Path(tempfile.mkdtemp(prefix="bit-equal-")), 0
    for case in CASES:
        made = []
        for side, root in (("before", before), ("after", after)):
            folder = work / side / "-".join(case)
            python(root, RUN, folder, *case)
            made.append(hashes(folder))
        other = sorted(name for name in {**made[0], **made[1]} if made[0].get(name) != made[1].get(name))
        different += len(other)
        print(f"{' '.join(case)}: {len(made[0])} files of weights, losses and scores, {len(other)} different "
              f"{', '.join(other[:8])}", flush=True)  # fmt: skip
    folders, files = [work / "before" / "-".join(case) for case in CASES], []
    for side, root in (("before", before), ("after", after)):
        files.append(work / f"{side}.safetensors")
        python(root, READ, files[-1], *folders)
    same = files[0].read_bytes() == files[1].read_bytes()
    print(f"checkpoints and adapters of before, read by both: {'the same logits and tokens' if same else 'DIFFERENT'}")
    names = [json.loads(python(root, NAMES)) for root in (before, after)]
    for name in names[0]:
        gone = sorted(set(names[0][name]) - set(names[1][name]))
        print(f"{name}: {len(names[0][name])} public names, gone or with other arguments: {', '.join(gone) or 'none'}")
    helps = [python(root, HELP) for root in (before, after)]
    print("tagi --help:", "the same" if helps[0] == helps[1] else "different")
    print(work)
    return 1 if different or not same else 0


if __name__ == "__main__":
    sys.exit(main(*(Path(name).resolve() for name in sys.argv[1:3])))
