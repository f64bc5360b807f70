"""What a task costs by each method, in FLOPs relative to prompting: the last column of the paper's Table 2.

    python -m modeling_tagi.costs.inference --sni FOLDER --backbone t5-base t5-xl t5-xxl
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Collection, Optional, Sequence

from transformers import AutoTokenizer, T5Config

from ..common.arguments import Parser
from ..common.console import quiet_libraries
from ..common.errors import run_command
from ..common.markdown import markdown_table
from ..common.methods import METHODS, PROMPTED, TAGI
from ..common.writing import write_text
from ..configuration_tagi import TagiConfig
from ..data.records import Record
from ..data.sni import read_sni
from ..data.tokenizer import train_tokenizer
from ..hub import PACKAGE, is_repository
from ..tokens import Tokens, instruction_text
from .flops import PARTS, Lengths, TaskFlops

# d_model, d_ff, layers (of the encoder, and of the decoder), heads: T5 v1.1 and LM-Adapt, as their config.json has it
T5_SHAPES = {
    "t5-small": (512, 1024, 8, 6),
    "t5-base": (768, 2048, 12, 12),
    "t5-large": (1024, 2816, 24, 16),
    "t5-xl": (2048, 5120, 24, 32),
    "t5-xxl": (4096, 10240, 24, 64),
}
INSTRUCTION_LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
INPUT_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
SETTINGS = {"Def": 0, "Def+2Pos": 2}  # positive examples in the instruction
GOALS = (0.39, 0.35)  # the paper's TAGI, and its Hypter
_MAX_INPUT, _MAX_TARGET = 1024, 128  # the paper's limits for SNI
_VOCAB = 32000  # T5's own pieces
_LONGEST = 100_000  # tokens of an instruction: beyond that no ratio changes much


def t5_backbone(name: str) -> T5Config:
    """Returns the config of a T5 v1.1 / LM-Adapt model by its size, from `T5_SHAPES`.

    Raises:
        ValueError: for another name.
    """
    if name not in T5_SHAPES:
        raise ValueError(f"backbone is {name!r}, but its shape must be one of {', '.join(T5_SHAPES)}")
    d_model, d_ff, layers, heads = T5_SHAPES[name]
    return T5Config(
        vocab_size=32128, d_model=d_model, d_kv=64, d_ff=d_ff, num_layers=layers, num_heads=heads,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip


def lengths_of(records: Sequence[Record], tokens: Tokens) -> Lengths:
    """Returns the mean token lengths of a collection of tasks, all weighted equally; of targets the first counts.

    Raises:
        ValueError: if there are no records.
    """
    return mean_lengths(lengths_by_task(records, tokens).values())


def mean_lengths(lengths: Collection[Lengths]) -> Lengths:
    return Lengths(**{name: fmean(getattr(x, name) for x in lengths) for name in ("instruction", "input", "target")})


def lengths_by_task(records: Sequence[Record], tokens: Tokens) -> dict[str, Lengths]:
    """Returns the mean token lengths of each task."""
    if not records:
        raise ValueError("there are no records to take lengths of; give at least one")
    tasks = defaultdict(list)
    for record in records:
        tasks[record.task].append(record)
    lengths = {}
    for task, own in tasks.items():
        texts = [instruction_text(record.instruction, record.demonstrations) for record in own]
        lengths[task] = Lengths(
            instruction=fmean(len(tokens.instruction(text)) for text in texts),
            input=fmean(len(tokens.input(record.input)) for record in own),
            target=fmean(len(tokens.target(record.targets[0])) for record in own),
        )
    return lengths


def counted_methods() -> dict[str, Optional[str]]:
    """Returns the fusion of each method that tables of costs have; `None` for one that prompts the backbone.

    Hypter and HyperTuning differ in training alone.
    """
    return {name: method.fusion for name, method in METHODS.items() if method.counted}


def cost_of_methods(config: TagiConfig, lengths: Lengths, inputs: int = 100, name: Optional[str] = None) -> dict:
    """Returns each method's FLOPs for a task of `inputs` inputs, from reading the instruction to the last token.

    Args:
        config: The model's configuration, but for `fusion`, which each method sets.
        lengths: How many tokens the task's texts have. A prompt is as long as instruction and input.
        inputs: How many inputs the task has.
        name: The backbone's name; by default where its weights come from, or its family.

    Returns:
        `backbone`, `parameters`, `inputs_per_task`, `lengths`, `paper_formula` ((t + n i) / n (t + i), section B.5),
        `methods` (name -> `flops`, `relative` to prompting, and `parts`), and two curves of `relative` by method over
        `x`: `by_instruction_length` and `by_inputs`. Values of JSON alone.

    Raises:
        ValueError: if there is no input, or the backbone's family is not known.
    """
    if inputs < 1:
        raise ValueError(f"inputs is {inputs}, but a task must have at least 1")
    formulas = _formulas(config)
    methods, base = {}, sum(_parts(formulas, PROMPTED, lengths, inputs).values())
    for method in formulas:
        parts = _parts(formulas, method, lengths, inputs)
        total = sum(parts.values())
        methods[method] = {"flops": total, "relative": total / base, "parts": parts}
    t, i = lengths.instruction, lengths.input
    by_length = [(Lengths(x, i, lengths.target), inputs) for x in INSTRUCTION_LENGTHS]
    by_inputs = [(lengths, x) for x in INPUT_COUNTS]
    named = config.backbone_name_or_path or ""
    public = named.startswith(PACKAGE) or is_repository(named)
    return {
        # not a local folder, which the card would publish
        "backbone": name or (named if public else config.backbone_config.model_type),
        "parameters": formulas[PROMPTED].parameters,
        "inputs_per_task": inputs,
        "lengths": vars(lengths).copy(),
        "paper_formula": (t + inputs * i) / (inputs * (t + i)),
        "methods": methods,
        "by_instruction_length": {"x": list(INSTRUCTION_LENGTHS), **_curves(formulas, by_length)},
        "by_inputs": {"x": list(INPUT_COUNTS), **_curves(formulas, by_inputs)},
    }


def costs_if_known(config: TagiConfig, lengths: Lengths) -> dict:
    """Returns `cost_of_methods`, or `{"missing": reason}` for a backbone whose FLOPs cannot be counted."""
    try:
        return cost_of_methods(config, lengths)
    except ValueError as error:
        return {"missing": str(error)}


def ways_to_cheaper(config: TagiConfig, lengths: Lengths, inputs: int = 100) -> dict[str, float]:
    """Returns TAGI's FLOPs relative to prompting: as it is, with equal outputs for less work, and with parts left out.

    "Merged" means that the low-rank updates are added to the weights once a task.
    """
    formulas = _formulas(config)
    tagi = formulas[TAGI]
    base = sum(_parts(formulas, PROMPTED, lengths, inputs).values())
    parts = tagi.adapted(lengths, inputs)
    total = sum(parts.values())
    # the updates of the decoder's keys and values of the instruction are part of "memory", not of "lora"
    merged = parts["lora"] + tagi.lora["memory"] * lengths.instruction - tagi.merging
    ways = {
        "as it is": 0.0,
        "merged": merged,
        "half of the heads in its cross-attention": parts["fusion"] / 2,
        "a quarter of the heads in its cross-attention": parts["fusion"] * 3 / 4,
        "merged, a quarter of the heads": merged + parts["fusion"] * 3 / 4,
        "merged, no cross-attention (HINT)": merged + parts["fusion"],
    }
    ways = {way: (total - saved) / base for way, saved in ways.items()}
    needed = sum(parts[part] for part in ("instruction", "generator", "input", "output"))
    ways["merged, no fusion (HyperTuning)"] = (needed + tagi.merging) / base
    return ways


def instruction_for(config: TagiConfig, lengths: Lengths, relative: float, inputs: int = 100) -> Optional[int]:
    """Returns the length of the shortest instruction, in tokens, with which TAGI costs at most `relative` times as
    much as prompting, for inputs and targets as in `lengths`; `None` if there is none."""
    formulas = _formulas(config)

    def enough(t: int) -> bool:
        at = Lengths(t, lengths.input, lengths.target)
        return _relative(formulas, TAGI, at, inputs) <= relative

    low, high = 0, _LONGEST  # the ratio falls as the instruction grows
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _formulas(config: TagiConfig) -> dict[str, TaskFlops]:
    fields = {name: getattr(config, name) for name in (
        "backbone_config", "r", "lora_alpha", "target_modules", "layers_to_transform", "fusion_heads", "generator",
        "generator_hidden_size", "generator_index_size", "pooling", "standardise", "max_instruction_length",
    )}  # fmt: skip
    methods = counted_methods()
    made = {fusion: TaskFlops(TagiConfig(**fields, fusion=fusion)) for fusion in set(methods.values()) - {None}}
    return {method: made[fusion or "none"] for method, fusion in methods.items()}


def _parts(formulas: dict[str, TaskFlops], method: str, lengths: Lengths, inputs: int) -> dict[str, float]:
    formula = formulas[method]
    return formula.prompted(lengths, inputs) if METHODS[method].fusion is None else formula.adapted(lengths, inputs)


def _relative(formulas: dict[str, TaskFlops], method: str, lengths: Lengths, inputs: int) -> float:
    cost, base = (sum(_parts(formulas, m, lengths, inputs).values()) for m in (method, PROMPTED))
    return cost / base


def _curves(formulas: dict[str, TaskFlops], points: Sequence[tuple[Lengths, int]]) -> dict[str, list[float]]:
    return {method: [_relative(formulas, method, *point) for point in points] for method in formulas}


def sni_lengths(folder: Path, tokenizer: Optional[str] = None) -> dict[str, dict[str, Lengths]]:
    """Returns the lengths of an SNI folder's tasks, by setting (`Def`, `Def+2Pos`) and task, over all their instances.

    Without `tokenizer`, a folder or name, one is trained on these texts, since T5's needs a download.
    """
    everything = 10**9
    records = {}
    for setting, positive_examples in SETTINGS.items():
        splits = read_sni(folder, max_train_instances=everything, max_eval_instances=everything,
                          positive_examples=positive_examples)  # fmt: skip
        records[setting] = [record for split in splits.values() for record in split]
    if tokenizer is None:
        both = [record for setting in records.values() for record in setting]
        texts = {instruction_text(r.instruction, r.demonstrations): None for r in both}
        texts.update({text: None for r in both for text in (r.input, *r.targets)})
        read = train_tokenizer(texts, _VOCAB)
    else:
        read = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)  # nosec B615 # its lengths are all
    tokens = Tokens(read, True, _MAX_INPUT, _MAX_TARGET)
    return {setting: lengths_by_task(of, tokens) for setting, of in records.items()}


def report(backbones: Sequence[str], settings: dict[str, dict[str, Lengths]], inputs: int) -> dict:
    """Returns the costs of every backbone and setting, which the command writes as JSON and prints as tables."""
    made = {"inputs_per_task": inputs, "tasks": {}, "costs": []}
    for setting, tasks in settings.items():
        lengths = mean_lengths(tasks.values())
        for number, backbone in enumerate(backbones):
            config = TagiConfig(t5_backbone(backbone))
            cost = {"setting": setting, **cost_of_methods(config, lengths, inputs, backbone)}
            cost["ways_to_cheaper"] = ways_to_cheaper(config, lengths, inputs)
            cost["instruction_for"] = {str(goal): instruction_for(config, lengths, goal, inputs) for goal in GOALS}
            made["costs"].append(cost)
            if number == 0:
                formulas = _formulas(config)
                made["tasks"][setting] = [
                    {"task": task, **vars(own), "tagi": _relative(formulas, TAGI, own, inputs)}
                    for task, own in tasks.items()
                ]
    return made


def tables(made: dict) -> str:
    """Returns `report`'s result in Markdown."""
    costs, n = made["costs"], made["inputs_per_task"]
    settings = list(dict.fromkeys(cost["setting"] for cost in costs))
    lines = [f"FLOPs of a task of {n} inputs relative to prompting. Mean lengths in tokens:", ""]
    for setting in settings:
        lengths = next(cost["lengths"] for cost in costs if cost["setting"] == setting)
        texts = ", ".join(f"{name} {value:.1f}" for name, value in lengths.items())
        lines.append(f"* {setting}: {texts} (tasks: {len(made['tasks'][setting])})")
    methods = counted_methods()
    rows = [
        [cost["setting"], cost["backbone"], *(f"{cost['methods'][m]['relative']:.3f}" for m in methods),
         f"{cost['paper_formula']:.3f}", f"{cost['methods'][PROMPTED]['flops'] / 1e12:.1f}"]
        for cost in costs
    ]  # fmt: skip
    heads = ["setting", "backbone", *methods, "paper's formula", "prompted, TFLOP"]
    lines += ["", *markdown_table(heads, rows, text=2)]

    lines += ["", "Where TAGI's FLOPs go, in shares of prompting's:", ""]
    rows = []
    for cost in costs:
        tagi, base = cost["methods"][TAGI], cost["methods"][PROMPTED]["flops"]
        parts = [f"{tagi['parts'][part] / base:.3f}" for part in PARTS]
        rows.append([cost["setting"], cost["backbone"], *parts, f"{tagi['relative']:.3f}"])
    lines += markdown_table(["setting", "backbone", *PARTS, "all"], rows, text=2)

    lines += ["", "What would make TAGI cheaper, relative to prompting:", ""]
    heads = [f"{cost['setting']}, {cost['backbone']}" for cost in costs]
    rows = [[way, *(f"{cost['ways_to_cheaper'][way]:.3f}" for cost in costs)] for way in costs[0]["ways_to_cheaper"]]
    lines += markdown_table(["TAGI", *heads], rows)

    first = [cost for cost in costs if cost["setting"] == settings[0]]
    goal = "Shortest instruction, in tokens, with which TAGI costs no more than a goal, inputs and targets being as in"
    lines += ["", f"{goal} {settings[0]}:", ""]
    rows = [[goal, *(str(cost["instruction_for"][goal] or "none") for cost in first)] for goal in map(str, GOALS)]
    lines += markdown_table(["goal", *(cost["backbone"] for cost in first)], rows)

    lines += ["", f"TAGI on {costs[0]['backbone']}, task by task:", ""]
    rows = [
        [setting, row["task"], *(f"{row[name]:.0f}" for name in ("instruction", "input", "target")),
         f"{row['tagi']:.3f}"]
        for setting in settings for row in made["tasks"][setting]
    ]  # fmt: skip
    heads = ["setting", "task", "instruction", "input", "target", "tagi"]
    return "\n".join(lines + markdown_table(heads, rows, text=2))


def main(arguments=None) -> int:
    parser = Parser(prog="python -m modeling_tagi.costs.inference", description=__doc__)
    parser.add_argument("--backbone", nargs="+", default=["t5-base"], choices=T5_SHAPES, help="sizes of T5 v1.1")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--sni", type=Path, help="a Super-NaturalInstructions folder to take token lengths from")
    where.add_argument("--lengths", nargs=3, type=float, metavar=("INSTRUCTION", "INPUT", "TARGET"),
                       help="tokens of each")  # fmt: skip
    parser.add_argument("--tokenizer", help="folder or name; without it one is trained on the folder's texts")
    parser.add_argument("--inputs", type=int, default=100, help="inputs of a task")
    parser.add_argument("--json", type=Path, help="a file to write everything to")
    return run_command("costs", lambda: _call(parser.parse_args(arguments)))


def _call(options) -> int:
    quiet_libraries()
    if options.sni:
        settings = sni_lengths(options.sni, options.tokenizer)
    else:
        settings = {"given": {"given": Lengths(*options.lengths)}}
    made = report(options.backbone, settings, options.inputs)
    if options.json:
        write_text(options.json, json.dumps(made, indent=2) + "\n")
    print(tables(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
