"""A checkpoint's `from_pretrained` against the bare backbone's; the import against what it needs; when commands speak.

    python tests/benchmarks/loading.py [--quick] [--backbone t5-base] [--threads 2]

The checkpoints have random weights and are saved to a temporary folder (2.5 GB for T5-base). Files are in the system's
cache, and transformers maps weights rather than reading them: what is measured is work for each tensor and module.
The alternative to the import is a process that imports torch, and of transformers what any model of this kind needs:
`AutoModelForSeq2SeqLM`, `AutoModelForCausalLM`, `AutoTokenizer`, `PreTrainedModel`, the caches, masks and T5's module.
A command's first output is what it first writes at a terminal.
"""

import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from harness import Ratio, finish, measured, parser, started
from shapes import tagi
from transformers import AutoModel, T5ForConditionalGeneration

from modeling_tagi import TagiModel

QUESTION = "time of a checkpoint's from_pretrained, relative to the bare backbone's"
NEEDED = (
    "import torch; import transformers; from transformers import AutoConfig, AutoModelForCausalLM, "
    "AutoModelForSeq2SeqLM, AutoTokenizer, DynamicCache, GenerationMixin, PreTrainedModel, StaticCache; "
    "import transformers.masking_utils; import transformers.models.t5.modeling_t5"
)
OURS = (
    "import torch; import transformers; import modeling_tagi; modeling_tagi.TagiModel; "
    "import transformers.models.t5.modeling_t5"
)


def main():
    made = parser(__doc__)
    made.add_argument("--backbone", default="t5-base", help="a T5 shape of shapes.py")
    options = started(made, quick={"backbone": "t5-small", "repeats": 1})
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options)


def compare(folder: Path, options):
    sizes = save(folder, options.backbone)
    bare, ours = folder / "bare", folder / "tagi"
    times = measured({
        "backbone": lambda: T5ForConditionalGeneration.from_pretrained(bare),
        "checkpoint": lambda: TagiModel.from_pretrained(ours),
        "checkpoint without its backbone": lambda: TagiModel.from_pretrained(folder / "generator"),
        "checkpoint with its own code": lambda: AutoModel.from_pretrained(ours, trust_remote_code=True),
    }, options)  # fmt: skip
    commands = measured({
        "import of what is needed": lambda: run("-c", NEEDED),
        "import of TagiModel": lambda: run("-c", OURS),
        "tagi --help": lambda: run("-m", "modeling_tagi.commands.main", "--help"),
        "python": lambda: run("-c", ""),
    }, options)  # fmt: skip
    spoken = measured({
        f"tagi {words[0]}": lambda words=words: first_output(folder, *words) for words in (
            ["generate", str(ours), "say", "--output_dir", "made"], ["run", str(ours), "say", "one"],
            ["train", "smoke"], ["evaluate", str(ours), "--data", "builtin"],
            ["compare", str(ours), str(ours)], ["push", str(ours), "nobody/nothing"], ["study", "studies/builtin"],
            ["plan", "smoke"], ["--version"], ["fly"],
        )
    }, options)  # fmt: skip
    of_backbone, every = times["backbone"], times | commands | spoken
    finish(QUESTION, [
        Ratio.of("from_pretrained: checkpoint / backbone", times["checkpoint"], of_backbone, at_most=1.3),
        Ratio.of("from_pretrained: checkpoint with its own code / backbone", times["checkpoint with its own code"],
                 of_backbone),
        Ratio.of("from_pretrained: checkpoint without its backbone / backbone",
                 times["checkpoint without its backbone"], of_backbone),
        Ratio("tensors: checkpoint / backbone", sizes["checkpoint"][0] / sizes["backbone"][0]),
        Ratio("bytes: checkpoint / backbone", sizes["checkpoint"][1] / sizes["backbone"][1]),
        Ratio.of("import of TagiModel / of what it needs", commands["import of TagiModel"],
                 commands["import of what is needed"], at_most=1.2),
        Ratio.of("seconds of tagi --help", commands["tagi --help"], [1.0] * options.repeats, at_most=0.5),
        *(Ratio.of(f"seconds to the first output of {name}", seconds, [1.0] * options.repeats, at_most=1)
          for name, seconds in spoken.items()),
    ], options, milliseconds={name: round(1000 * median(x), 1) for name, x in every.items()})  # fmt: skip


def save(folder: Path, backbone: str) -> dict[str, tuple[int, int]]:
    """Three checkpoints; tensors and bytes of the first two."""
    model = tagi(backbone)
    model.backbone.save_pretrained(folder / "bare")
    model.save_pretrained(folder / "tagi")
    model.config.backbone_name_or_path = str(folder / "bare")
    model.save_pretrained(folder / "generator", include_backbone=False)
    parts = {"checkpoint": model, "backbone": model.backbone}
    return {name: (len(list(x.parameters())), sum(p.nbytes for p in x.parameters())) for name, x in parts.items()}


def first_output(folder: Path, *arguments: str):
    """Starts a command at a terminal of its own, and ends it when it has written something."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "modeling_tagi.commands.main", *arguments]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment)
    try:
        if not os.read(ours, 1):
            raise RuntimeError(f"tagi {' '.join(arguments)} said nothing")
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def run(*arguments: str):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=root, env=environment)


if __name__ == "__main__":
    main()
