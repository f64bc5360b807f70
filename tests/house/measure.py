"""Measures how the package is built: sizes, circles, upward imports, what a walk through it passes, prose.

    python tests/house/measure.py [ROOT ...] [--walks] [--json]

ROOT is a checkout; several are shown side by side, such as one of before a change and one of after it. `--walks` runs
the smoke recipe and one `generate` under a profiler, which takes a minute or two each.
"""

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from imports import circles, layer_of, module_files, modules_imported  # noqa: E402

# First words of docstrings that end in "s" and are no verbs, as they occur.
NOUNS = set(
    """
    accuracies across adapters always answers args as batches bytes checkpoints classes columns cosines draws
    errors examples facts fields files flops folders groups has hashes heads indices inputs instructions is items
    its keys labels lengths less lines loss losses metrics modules names numbers objects options others outputs
    parameters passages paths plus points progress pushes quartiles records references rows scores seconds
    settings stages states steps tasks texts this those thus tokens us values was weights what's words yes zeros
    """.split()
)

# What a walk runs: each prints nothing, and is looked at from outside.
WALKS = {
    "YAML to checkpoint": """
import runpy, tempfile
sys.argv = ["train.py", "hub_configs/smoke.yaml", "--output_dir", tempfile.mkdtemp() + "/run"]
def walk():
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
""",
    "adapter to tokens": """
import torch
from transformers import T5Config
from modeling_tagi import TagiConfig, TagiModel
backbone = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=40, decoder_start_token_id=0)
model = TagiModel(TagiConfig(backbone, r=2, generator_hidden_size=8, generator_index_size=4)).eval()
adapter = model.generate_adapter([5, 6, 7])
def walk():
    model.generate(torch.tensor([[8, 9, 10, 1]]), adapter=adapter, max_new_tokens=4)
""",
}
_PROFILED = """
import os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
{walk}
seen = set()
root = os.getcwd() + "/modeling_tagi/"
def look(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(root) and code.co_name != "<module>":
        seen.add((code.co_filename, code.co_qualname))
import threading
threading.setprofile(look)
sys.setprofile(look)
out, sys.stdout = sys.stdout, sys.stderr
walk()
sys.setprofile(None)
print(len({{file for file, _ in seen}}), len(seen), file=out)
"""


def measure(root: Path, walks: bool) -> dict:
    """Returns what is counted in the checkout at `root`, by what it is called in the table."""
    files = module_files(root)
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    functions = [
        (node.end_lineno - node.lineno + 1, f"{name}.{node.name}")
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    imported = {name: modules_imported(name, files) for name in files}
    eager = {name: modules_imported(name, files, lazy=False) for name in files}
    found = {
        "files of the package": len(files),
        "lines of the package": sum(lines.values()),
        "longest function": "{} lines, {}".format(*max(functions)),
        "functions over 60 lines": sum(length > 60 for length, _ in functions),
        "files over 400 lines": sum(length > 400 for length in lines.values()),
        "circles (modules in one)": sum(map(len, circles(imported))),
        "circles without imports in functions": sum(map(len, circles(eager))),
        "upward imports": sum(
            layer_of(other) > layer_of(name) for name, others in imported.items() for other in others if name and other
        ),
        **dict(zip(("files a checkpoint carries", "lines a checkpoint carries"), carried(root))),
        "settings": int(run(root, "try:\n    from modeling_tagi.training.setting_fields import default_fields as d\n"
                                  "except ImportError:\n"
                                  "    from modeling_tagi.training.settings import default_fields as d\n"
                                  "c = lambda x: sum(map(c, x.values())) if isinstance(x, dict) and x else 1\n"
                                  "print(c(d()))")),
        **docstrings(trees),
        "lines of README": len((root / "README.md").read_text(encoding="utf-8").splitlines()),
        "lines of README over 110 characters": sum(
            len(line) > 110 for line in (root / "README.md").read_text(encoding="utf-8").splitlines()
        ),
    }  # fmt: skip
    for name, walk in WALKS.items() if walks else ():
        modules, entered = run(root, _PROFILED.format(walk=walk)).split()[-2:]
        found[f"{name}: modules, functions"] = f"{modules}, {entered}"
    return found


def docstrings(trees: dict[str, ast.Module]) -> dict[str, int]:
    """Counts the docstrings of functions and classes, and those whose first word is no verb (a word in "s")."""
    counted, without = 0, []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                text = (ast.get_docstring(node) or "").strip()
                if not text:
                    continue
                counted += 1
                word = text.split()[0].strip(",.:;`").lower()
                if not (word.endswith("s") and word.isalpha() and word not in NOUNS):
                    without.append(f"{name}.{node.name}: {text.splitlines()[0]}")
    return {"docstrings": counted, "docstrings that begin without a verb": len(without)}


def carried(root: Path) -> tuple[int, int]:
    """Saves a tiny checkpoint, and returns how many Python files are in it, and their lines."""
    with tempfile.TemporaryDirectory() as folder:
        run(root, f"""
from transformers import T5Config
from modeling_tagi import TagiConfig, TagiModel
backbone = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=40, decoder_start_token_id=0)
TagiModel(TagiConfig(backbone, r=2, generator_hidden_size=8, generator_index_size=4)).save_pretrained({folder!r})
""")  # fmt: skip
        files = list(Path(folder).rglob("*.py"))
        return len(files), sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def run(root: Path, code: str) -> str:
    """Runs Python in the checkout, and returns what it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{root}: {done.stderr[-2000:]}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("roots", nargs="*", type=Path, default=[Path(__file__).parents[2]])
    parser.add_argument("--walks", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = [measure(root.resolve(), arguments.walks) for root in arguments.roots]
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print("| |" + "|".join(f" {root} " for root in arguments.roots) + "|\n|---|" + "---|" * len(found))
    for name in found[-1]:
        print(f"| {name} |" + "|".join(f" {one.get(name, '')} " for one in found) + "|")


if __name__ == "__main__":
    main()
