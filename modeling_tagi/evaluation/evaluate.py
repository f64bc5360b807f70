"""Methods against splits: the scores of a model beside its references, and the tables that show them."""

import warnings
from typing import Optional, Sequence

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from ..banks.adapter_bank import AdapterBank
from ..common.randomness import derived_seed
from ..configuration_tagi import TagiConfig
from ..data.records import Record
from ..modeling_tagi import TagiModel
from ..tokens import Tokens
from ..training.settings import EvaluationSettings, RunSettings
from .metrics import chance_and_majority, score
from .oracle import oracle, two_folds
from .predict import Answering, wrong_instructions
from .ranking import rank_accuracy
from .references import nearest_adapters, random_word_instructions
from .results import best_option, chosen_examples, example
from .statistics import DIFFERENCES, SCORES, mean_interval, paired_difference_by_task

# What a trained model is called, by what it reads.
# In the order of tables; other names come after.
METHODS = (
    "no_instruction", "prompted_start", "prompted", "input_only", "tagi", "wrong_instruction", "random_words",
    "nearest_adapter", "oracle",
)  # fmt: skip
COLUMNS = ("exact_match", "rouge_l", "rank_accuracy", "rank_accuracy_mean")
_PER_TASK = {  # where the score of each task is
    "exact_match": ("per_task", "exact_match"), "rouge_l": ("per_task", "rouge_l"),
    "rank_accuracy": ("per_task_ranked", "sum"), "rank_accuracy_mean": ("per_task_ranked", "mean"),
}  # fmt: skip


def evaluate_model(
    settings: RunSettings,
    model: TagiModel,
    tokens: Tokens,
    prompted: tuple[str, Optional[str]],
    splits: dict[str, list[Record]],
    train: Sequence[Record],
    bank: Optional[AdapterBank] = None,
) -> dict:
    """What a run has made, if it trained something, and the references of its settings, on every split.

    Args:
        settings: Of the run.
        model: What it ended with.
        tokens: How texts become tokens.
        prompted: Name or folder, and revision, of the backbone that it started from.
        splits: What is scored; see `spread`.
        train: What was trained on.
        bank: Its task adapters.

    Returns:
        As `score_methods`.
    """
    baseline = load_backbone(*prompted)
    own, batch_size = None, settings.evaluation.batch_size
    if settings.finetuning.steps or settings.pretraining.steps:
        own = Answering(model.to(baseline.device), tokens, settings.finetuning.reads, batch_size)
    start = Answering(baseline, tokens, "prompt", batch_size)
    labels = (settings.label, "prompted_start")
    return score_methods(own, start, splits, settings.evaluation, model.config, train, bank, settings.seed, labels)


def load_backbone(name: str, revision: Optional[str] = None) -> PreTrainedModel:
    """A language model of either kind, in fp32 and eval mode, on the GPU if there is one."""
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_pretrained(name, revision=revision, dtype=torch.float32)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def score_methods(
    own: Optional[Answering],
    start: Answering,
    splits: dict[str, list[Record]],
    settings: EvaluationSettings,
    config: TagiConfig,
    train: Sequence[Record] = (),
    bank: Optional[AdapterBank] = None,
    seed: int = 0,
    labels: tuple[str, str] = ("tagi", "prompted"),
) -> dict:
    """Scores of a model and of its references on every split.

    Args:
        own: What is evaluated; without it there are only references that need no trained model.
        start: The prompted backbone that it is compared with.
        splits: What is scored.
        settings: Which references, and how.
        config: The rank, scale and target modules of the oracle's adapters.
        train: The records that the bank's adapters were tuned on, and a source of wrong instructions.
        bank: Task adapters of the start's backbone, for `nearest_adapter`.
        seed: Of the wrong instructions, of the random words and of the oracle.
        labels: What the model and the prompted backbone are called.

    Returns:
        `splits` (see `evaluate_split`), `tasks` (the `group` and the first `split` of each) and `notes`, sentences on
        what was left out.

    Raises:
        ValueError: if `nearest_adapter` is wanted without a bank.
    """
    if "nearest_adapter" in settings.references and bank is None:
        raise ValueError(
            "evaluation.references has 'nearest_adapter', but there are no task adapters; give task_adapters.steps or "
            "task_adapters.path, or leave it out"
        )
    evaluated = [record for records in splits.values() for record in records]
    seeds = {name: derived_seed(seed, "evaluation", name) for name in ("wrong_instruction", "random_words", "oracle")}
    swapped = {}
    if own is not None and own.reads != "input":
        wrong = wrong_instructions([*evaluated, *train], seeds["wrong_instruction"])  # a lone task takes training's
        drawn = random_word_instructions([*evaluated, *train], seeds["random_words"])
        swapped = {"wrong_instruction": wrong, "random_words": drawn}
        swapped["wrong_instruction"].update(wrong_instructions(evaluated, seeds["wrong_instruction"]))
    results: dict = {"splits": {}, "tasks": {}, "notes": []}
    for split, records in splits.items():
        methods = {}
        if own is not None:
            methods[labels[0]] = own
        for name in settings.references:
            if name == "prompted":
                methods[labels[1]] = start
            elif name == "no_instruction":
                methods[name] = Answering(start.model, start.tokens, "input", start.batch_size)
            elif name in swapped:
                if all(record.task in swapped[name] for record in records):
                    methods[name] = Answering(own.model, own.tokens, own.reads, own.batch_size, swapped[name])
                else:
                    results["notes"].append(f"{split}: no {name}, since some task has no other task's words to take")
            elif name == "nearest_adapter":
                methods[name] = nearest_adapters(start, bank, train, records, config)
            elif name == "oracle":
                try:
                    two_folds(records, seeds["oracle"])
                except ValueError as error:
                    results["notes"].append(f"{split}: no oracle, since {error}")
                else:
                    methods[name] = oracle(
                        start, records, **vars(settings.oracle), seed=seeds["oracle"],
                        config=config, progress=f"{split}, oracle",
                    )
        ordered = {name: methods[name] for name in METHODS if name in methods} | methods
        pairs = [(labels[0], name) for name in ordered if own is not None and name != labels[0]]
        results["splits"][split] = evaluate_split(ordered, records, settings.rank_options, split, pairs)
        for record in records:
            results["tasks"].setdefault(record.task, {"group": record.group, "split": split})
        if len({record.task for record in records}) == 1:
            results["notes"].append(f"{split}: one task alone, so intervals over tasks have no width")
        elif results["splits"][split]["clusters"] == 1:
            results["notes"].append(
                f"{split}: all tasks are of the group {records[0].group!r}, so intervals are over its tasks and say "
                "nothing of other groups"
            )
    return results


def evaluate_split(
    methods: dict[str, Answering],
    records: Sequence[Record],
    rank: bool,
    label: str = "",
    pairs: Sequence[tuple[str, str]] = (),
) -> dict:
    """Scores of every method on one split, in per cent, as means over tasks, with 95 % intervals.

    The intervals are over the groups that the tasks come from (`mean_interval`), each task being one of its own where
    records name none.

    Args:
        methods: How each method answers.
        records: Of the split.
        rank: Whether records with options are scored by rank classification instead of by what is generated.
        label: Shown beside the progress bar.
        pairs: Methods whose difference is taken, the second from the first.

    Returns:
        `methods`: for each `exact_match` and `rouge_l` over the `n` records answered freely (`None` if there are
        none), and under rank classification `rank_accuracy` (options compared by log-likelihood) and
        `rank_accuracy_mean` (by log-likelihood per token) over `n_ranked` records; each with its `…_interval`. Beside
        them `over_records` (means over all records, as SNI's script has), `per_task` and `per_category`,
        `per_task_ranked` and `per_dataset_ranked`. `differences`: by "<first> - <second>" and score, `mean`, `low` and
        `high` over the tasks paired. `clusters`: the number of groups. `chance` and `majority` of the records with
        options; `examples`, some records with every method's answer. Means and intervals are rounded to two places,
        scores of single tasks are not.
    """
    ranked = [record for record in records if rank and record.options is not None]
    free = [record for record in records if not (rank and record.options is not None)]
    outputs: dict[int, dict[str, str]] = {number: {} for number in chosen_examples(free or ranked)}
    scores = {}
    for name, answering in methods.items():
        scores[name] = own = {"exact_match": None, "rouge_l": None, "n": len(free)}
        if free:
            answers = answering.generate(free, f"{label}, {name}")
            found = score(answers, free)
            for number in outputs:
                outputs[number][name] = answers[number]
            own.update(over_records=_rounded(found["over_records"]), per_task=found["per_task"])
            own.update(per_category=_rounded(found["per_category"]))
        if ranked:
            answers = answering.rank(ranked, f"{label}, {name}, options")
            found = rank_accuracy(answers, _groups(ranked))
            for number in outputs if not free else ():
                outputs[number][name] = best_option(ranked[number], answers[number][1])
            own.update(n_ranked=len(ranked), per_task_ranked=found["per_task"])
            own.update(per_dataset_ranked=_rounded(found["per_dataset"]))
    groups = _groups(records)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "there is one task")  # score_methods has a note of it
        for own in scores.values():
            for column in COLUMNS:
                if _PER_TASK[column][0] in own:
                    by_task = _by_task(own, column)
                    interval = mean_interval([*by_task.values()], [groups[task] for task in by_task], bounds=SCORES)
                    own[column] = round(interval.mean, 2)
                    own[f"{column}_interval"] = [round(interval.low, 2), round(interval.high, 2)]
        differing = differences(scores, pairs, groups)
    floors = chance_and_majority(records)
    return {
        "methods": scores,
        "differences": differing,
        "examples": [example((free or ranked)[number], given) for number, given in outputs.items()],
        "clusters": len(set(groups.values())),
        **{name: None if floors[name] is None else round(floors[name], 2) for name in ("chance", "majority")},
    }


def spread(records: Sequence[Record], limit: Optional[int]) -> list[Record]:
    """At most `limit` records, as many of each task as of any other where there are enough."""
    if limit is None or len(records) <= limit:
        return list(records)
    by_task: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        by_task.setdefault(record.task, []).append(number)
    chosen: list[int] = []
    turn = 0
    while len(chosen) < limit:
        layer = [numbers[turn] for numbers in by_task.values() if turn < len(numbers)]
        chosen += layer[: limit - len(chosen)]
        turn += 1
    return [records[number] for number in sorted(chosen)]


def table(results: dict, splits: Optional[Sequence[str]] = None) -> str:
    """Markdown: the methods' scores on each split, and if there are any the differences between methods.

    Args:
        results: `score_methods`'.
        splits: Which ones; `None` is all.
    """
    shown = {name: results["splits"][name] for name in (splits or results["splits"])}
    every = [scores for split in shown.values() for scores in split["methods"].values()]
    present = [column for column in COLUMNS if any(scores.get(column) is not None for scores in every)]
    lines = _head(["split", "method"], present)
    for split, found in shown.items():
        known = [name for name in METHODS if name in found["methods"]]
        for method in (*known, *(name for name in found["methods"] if name not in known)):
            scores = found["methods"][method]
            cells = [_cell(scores.get(column), scores.get(f"{column}_interval")) for column in present]
            lines.append(f"| {split} | {method.replace('_', ' ')} | " + " | ".join(cells) + " |")
        if found.get("chance") is not None and "rank_accuracy" in present:
            for name in ("chance", "majority"):
                cells = [f"{found[name]:.1f}" if "rank" in column else "–" for column in present]
                lines.append(f"| {split} | *{name}* | " + " | ".join(cells) + " |")
    rows = []
    for split, found in shown.items():
        for pair, scores in found.get("differences", {}).items():
            values = [scores.get(column) for column in present]
            cells = [_cell(value and value["mean"], value and (value["low"], value["high"]), "+") for value in values]
            pair = pair.replace(" - ", " − ").replace("_", " ")
            rows.append(f"| {split} | {pair} | " + " | ".join(cells) + " |")
    if rows:
        lines += ["", *_head(["split", "difference"], present), *rows]
    return "\n".join(lines)


def _groups(records: Sequence[Record]) -> dict[str, str]:
    groups: dict[str, str] = {}
    for record in records:
        groups.setdefault(record.task, record.group)
    return groups


def _by_task(scores: dict, column: str) -> dict[str, float]:
    place, key = _PER_TASK[column]
    return {task: values[key] for task, values in scores.get(place, {}).items()}


def differences(scores: dict[str, dict], pairs: Sequence[tuple[str, str]], groups: dict[str, str]) -> dict:
    """Of pairs of methods over the tasks paired, by "<first> - <second>" and score: `mean`, `low` and `high`.

    Args:
        scores: Of each method, as `evaluate_split` has them.
        pairs: The second is taken from the first.
        groups: That each task comes from.
    """
    found = {}
    for first, second in pairs:
        found[f"{first} - {second}"] = own = {}
        for column in COLUMNS:
            ours, theirs = (_by_task(scores[name], column) for name in (first, second))
            if ours:
                interval = paired_difference_by_task(ours, theirs, groups, bounds=DIFFERENCES)
                own[column] = {x: round(getattr(interval, x), 2) for x in ("mean", "low", "high")}
    return found


def _rounded(values):
    """Nested scores, each rounded to two places."""
    if isinstance(values, dict):
        return {name: _rounded(value) for name, value in values.items()}
    return round(values, 2) if isinstance(values, float) else values


def _head(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    heads = [*names, *(column.replace("_", " ") for column in columns)]
    return ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(names) + " ---: |" * len(columns)]


def _cell(value: Optional[float], interval: Optional[Sequence[float]] = None, sign: str = "") -> str:
    if value is None:
        return "–"
    inside = f" [{interval[0]:{sign}.1f}, {interval[1]:{sign}.1f}]" if interval else ""
    return f"{value:{sign}.1f}{inside}"
