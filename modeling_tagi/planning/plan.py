"""`tagi plan`: what a run will take, worked out from its settings before anything is spent."""

import dataclasses
import itertools
import math
import time
from pathlib import Path
from statistics import fmean
from typing import Optional

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from ..common.console import quiet_libraries
from ..common.markdown import markdown_table
from ..configuration_tagi import TagiConfig, new_model_fields
from ..costs.flops import TaskFlops
from ..costs.inference import lengths_of
from ..costs.work import FLOAT, RunWork, TextLengths, Work, stages_that_train, trained_parameters
from ..data.sources import read_source
from ..evaluation.evaluate import spread
from ..instructions import instruction_text
from ..tokens import Tokens
from ..training import stages
from ..training.backbones import backbone_config, made_config
from ..training.settings import RunSettings
from .checks import check_data, check_run, check_setup, memory_there
from .speed import measured_flops_per_second
from .trial import STEPS, timed_trial

_LOOKED_AT = 2000  # records, and passages of text, whose lengths are taken
_TRIAL_SECONDS = 30
_AROUND = {"evaluation": "evaluation, report", "start": "start, reading data"}
_TOKENS = ("hypernetwork", "backbone", "target", "teacher")


def plan_run(
    settings: RunSettings,
    flops_per_second: Optional[float] = None,
    utilisation: float = 0.4,
    adapters: Optional[int] = None,
    with_data: bool = True,
    startup: float = 0.0,
) -> dict:
    """Parameters, memory, tokens, FLOPs and time of every stage.

    Lengths are the configured limits, which give upper bounds and the memory, and beside them the means of the data
    where that and the backbone's tokenizer are at hand; FLOPs and time are by the means if there are any.

    A named backbone's shape is its own where it is a folder or has been loaded before; else what `backbone.config`
    says; else it is asked of the Hub. No weights are loaded or made.

    Args:
        settings: Of the run.
        flops_per_second: Of the device; `None` measures this machine.
        utilisation: Share of that speed that training gets.
        adapters: How many task adapters there are, if the data does not say.
        with_data: Whether to read the data.
        startup: Seconds that a command takes before it begins.

    Returns:
        `backbone`, `parameters`, `data`, `stages`, `total`, `device`, `time` and `notes`. Values of JSON alone.
        Seconds are those of a few steps of every stage, tried on this machine, where that takes no longer than half
        a minute and the backbone is at hand (`time` is then what comes on top of the stages); else FLOPs by the speed.

    Raises:
        ValueError: for what the run would refuse, or a backbone whose shape is not to be had.
    """
    quiet_libraries()
    notes: list[str] = []
    began = time.perf_counter()
    splits, text = _data(settings, notes) if with_data else (None, None)
    tokenizer = _tokenizer(settings, splits, text, notes) if splits is not None else None
    startup += time.perf_counter() - began
    backbone, source = backbone_shape(settings, len(tokenizer) if tokenizer is not None else None, notes)
    settings = dataclasses.replace(settings, tagi=new_model_fields(backbone, settings.tagi))
    check_setup(settings, backbone)
    config = TagiConfig(backbone, **settings.tagi)
    if tokenizer is not None and source != "config":
        check_run(settings, tokenizer, splits, text, here=False)
    elif splits is not None:
        check_data(settings, splits, text)

    counted = _counted(splits["train"], settings.task_adapters.by) if splits is not None else None
    number = counted["adapters"] if counted is not None else adapters
    planned = stages_that_train(settings)
    if number is None and ("task_adapters" in planned or settings.task_adapters.given):
        notes.append(
            "how many task adapters there are is not known without the data: taken as "
            f"{settings.task_adapters.at_once} (at_once); say it with --adapters"
        )
    work = RunWork(settings, TaskFlops(config), number, counted and counted["records"])
    limits = TextLengths(
        config.max_instruction_length, settings.max_input_length, settings.max_target_length, settings.text.max_length
    )
    means, longest = None, limits
    if tokenizer is not None:
        tokens = Tokens.of(tokenizer, config, settings.max_input_length, settings.max_target_length)
        means, longest = _looked_at(splits["train"], text, tokens, limits)

    speed = flops_per_second
    if speed is None:
        speed = measured_flops_per_second(torch.bfloat16 if settings.bf16 else torch.float32)
    rate = speed * utilisation
    rows = [_stage(work, name, settings, limits, means, longest, counted, rate) for name in planned]
    around = None
    on_disk = settings.backbone.name is None or Path(settings.backbone.name).is_dir()  # nothing is downloaded for it
    if flops_per_second is None and means is not None and on_disk:
        around = _tried(settings, splits, text, tokenizer, work, rows, math.ceil(longest.target), notes)
        if around is not None:
            around["start"] = startup
    made = {
        "output_dir": settings.output_dir,
        "backbone": {
            "name": settings.backbone.name or "from scratch",
            "model_type": backbone.model_type,
            "shape_from": source,
        },
        "parameters": _parameters(work, settings, number),
        "data": counted,
        "lengths": {
            name: found and dataclasses.asdict(found)
            for name, found in (("limit", limits), ("longest", means and longest), ("mean", means))
        },
        "stages": rows,
        "total": {
            "flops": sum(row["flops"] for row in rows),
            "seconds": sum(row["seconds"] for row in rows) + sum((around or {}).values()),
            "memory": max((row["memory"]["total"] for row in rows), default=0),
            "disk": sum(row["disk"]["kept"] for row in rows)
            + max((row["disk"]["checkpoints"] for row in rows), default=0)
            + FLOAT * sum(x.numel() for x in work.formula.model.parameters()),  # model/, as it goes to the Hub
        },
        "device": {
            "name": "given" if flops_per_second is not None else _machine(),
            "dtype": "bfloat16" if settings.bf16 else "float32",
            "flops_per_second": speed,
            "utilisation": utilisation,
        },
        "time": around,
        "notes": notes,
    }
    _warn_of_memory(made, flops_per_second is None)
    return made


def backbone_shape(
    settings: RunSettings, vocab_size: Optional[int], notes: list[str]
) -> tuple[PretrainedConfig, str]:
    """The backbone's config and where it was found: `scratch`, `repository` or `config`.

    Raises:
        ValueError: if it is not to be had.
    """
    backbone = settings.backbone
    if backbone.name is None:
        return backbone_config(settings, vocab_size or backbone.vocab_size), "scratch"
    declared = made_config(backbone.config) if "model_type" in backbone.config else None
    try:
        # without the network where the recipe says the shape: a plan is to be quick, and the same everywhere
        found = AutoConfig.from_pretrained(
            backbone.name, revision=backbone.revision, local_files_only=declared is not None, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        if declared is None:
            raise ValueError(
                f"the shape of the backbone {backbone.name!r} is not to be had ({str(error).splitlines()[0]}); go "
                "online, name a folder, or say it in the fields of backbone.config: model_type and what makes its size"
            ) from None
        notes.append(f"{backbone.name} is not on this machine: its shape is what backbone.config says")
        return declared, "config"
    wrong = [name for name, value in backbone.config.items() if getattr(found, name, value) != value]
    if wrong:
        notes.append(
            f"backbone.config says {wrong[0]} {backbone.config[wrong[0]]!r}, but {backbone.name} has "
            f"{getattr(found, wrong[0])!r}" + (f"; {len(wrong) - 1} more differ" if len(wrong) > 1 else "")
            + "; planned with the latter"
        )  # fmt: skip
    return found, "repository"


def _data(settings: RunSettings, notes: list[str]):
    """Splits and text; nothing, and a note, where they are not."""
    try:
        splits, text, _ = read_source(
            **dataclasses.asdict(settings.data), train_tasks=settings.train_tasks, seed=settings.seed
        )
    except FileNotFoundError as error:
        notes.append(f"the data is not read, lengths are the limits: {error}")
        return None, None
    return splits, text


def _tokenizer(settings: RunSettings, splits, text, notes: list[str]):
    backbone = settings.backbone
    if backbone.name is None:
        return stages.read_tokenizer(settings, splits["train"], text)
    try:
        return AutoTokenizer.from_pretrained(
            backbone.name, revision=backbone.revision, local_files_only="model_type" in backbone.config,
            trust_remote_code=False,
        )
    except (OSError, ValueError):
        notes.append(f"the tokenizer of {backbone.name} is not on this machine: lengths are the limits")
        return None


def _counted(train, by: str) -> dict:
    return {
        "records": len(train),
        "tasks": len({record.task for record in train}),
        "groups": len({record.group for record in train}),
        "adapters": len({getattr(record, by) for record in train}),
    }


def _looked_at(train, text, tokens: Tokens, limits: TextLengths) -> tuple[TextLengths, TextLengths]:
    """Mean and greatest lengths of some of the data."""
    records = spread(train, _LOOKED_AT)
    task = lengths_of(records, tokens)
    passages = [len(tokens.plain(passage)) for passage in itertools.islice(text, _LOOKED_AT)] or [limits.passage]
    longest = TextLengths(
        max(len(tokens.instruction(instruction_text(r.instruction, r.demonstrations))) for r in records),
        max(len(tokens.input(r.input)) for r in records),
        max(len(tokens.target(r.targets[0])) for r in records),
        max(passages),
    )
    return TextLengths(task.instruction, task.input, task.target, fmean(passages)), longest


def _parameters(work: RunWork, settings: RunSettings, number: Optional[int]) -> dict:
    model = work.formula.model
    trained = sum(x.numel() for x in trained_parameters(model, settings))
    sizes = {name: sum(x.numel() for x in getattr(model, name).parameters()) for name in
             ("backbone", "hypernetwork", "fusion")}  # fmt: skip
    return {
        **sizes,
        "total": sum(sizes.values()),
        "trained": trained,
        "frozen": sum(sizes.values()) - trained,
        "adapter": work.adapter,
        "adapters_in_bank": number,
    }


def _stage(work: RunWork, name: str, settings: RunSettings, limits, means, longest, counted, rate: float) -> dict:
    own, steps = getattr(settings, name), work.steps(name)
    passage = getattr(own, "max_length", None)
    if passage is not None:
        limits = dataclasses.replace(limits, passage=passage)
        longest = dataclasses.replace(longest, passage=min(longest.passage, passage))
        means = means and dataclasses.replace(means, passage=min(means.passage, passage))
    most = work.step(name, limits).times(steps)
    expected = work.step(name, means).times(steps) if means is not None else None
    flops = (expected or most).flops
    memory = work.memory(name, longest)
    epochs = most.rows / counted["records"] if counted is not None and passage is None else None
    return {
        "name": name,
        "steps": steps,
        "rows_per_step": most.rows / max(1, steps),
        "epochs": epochs,
        "tokens": {"limit": _tokens(most), "mean": expected and _tokens(expected)},
        "flops": flops,
        "seconds": flops / rate,
        "memory": {**memory, "total": sum(memory.values())},
        "disk": work.disk(name, longest),
    }


def _tried(
    settings, splits, text, tokenizer, work: RunWork, rows, longest_target: int, notes: list[str]
) -> Optional[dict]:
    """Puts the seconds of a trial on this machine into the stages' rows, and returns those of what is no stage that
    trains; `None`, and a note, if it would take too long or cannot be done."""
    predicted = sum(row["seconds"] / max(1, row["steps"]) for row in rows) * STEPS
    if predicted > _TRIAL_SECONDS:
        notes.append(
            f"no steps were tried here, which would take about {_time(predicted)}: time is by products of matrices, "
            "which steps of training do not reach as a rule"
        )
        return None
    try:
        trial = timed_trial(settings, splits, text, tokenizer, longest_target)
    except (OSError, RuntimeError) as error:
        notes.append(f"no steps could be tried here ({str(error).splitlines()[0]}): time is by products of matrices")
        return None
    for row in rows:
        name, groups, share = row["name"], 1, 1.0
        if name == "task_adapters":  # the last group may be smaller than those before
            at_once = min(settings.task_adapters.at_once, work.adapters)
            groups = math.ceil(work.adapters / at_once)
            share = work.adapters / (groups * at_once)
        times = trial.stages[name]
        row["seconds"] = times.of(0, groups) + share * times.of(row["steps"], 0)
        if name == "finetuning":
            row["seconds"] += trial.scores_on_the_way(settings, splits)
    return {"evaluation": trial.evaluation(settings, splits)}


def _tokens(work: Work) -> dict:
    return {name: getattr(work, name) for name in _TOKENS}


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"this CPU, {threads} thread{'s' if threads > 1 else ''}"


def _warn_of_memory(plan: dict, here: bool):
    if not here:
        return
    there, _ = memory_there()
    if plan["total"]["memory"] > there:
        plan["notes"].append(
            f"it does not fit into this machine's {_bytes(there)}: fewer rows a batch (and more accumulation), "
            "gradient_checkpointing or a frozen backbone take less"
        )


def shown(plan: dict) -> str:
    """The plan for people."""
    backbone, device, total = plan["backbone"], plan["device"], plan["total"]
    parameters = plan["parameters"]
    from_where = {"scratch": "", "repository": "", "config": ", shape by the recipe"}[backbone["shape_from"]]
    lines = [f"Plan of {Path(plan['output_dir']).name}: {backbone['name']} ({backbone['model_type']}{from_where})", ""]
    bank = parameters["adapters_in_bank"]
    rows = [[name, f"{_millions(parameters[name])}"] for name in
            ("backbone", "hypernetwork", "fusion", "total", "trained", "frozen")]  # fmt: skip
    rows.append(["a task adapter" + (f" (of {bank})" if bank else ""), _millions(parameters["adapter"])])
    lines += markdown_table(["parameters", "millions"], rows)

    data = plan["data"]
    if data is not None:
        lines += ["", f"Data to train on: {data['records']:,} records, {data['tasks']} tasks, {data['groups']} groups"]
    lengths = {name: found for name, found in plan["lengths"].items() if found is not None}
    names = list(lengths["limit"])
    lines += ["", *markdown_table(
        ["tokens of", *lengths], [[name, *(f"{found[name]:,.0f}" for found in lengths.values())] for name in names]
    )]  # fmt: skip
    at = "the mean lengths" if "mean" in lengths else "the limits of all lengths"
    lines += ["", f"Tokens in millions, at {at}:", ""]
    rows = []
    for stage in plan["stages"]:
        tokens, most = stage["tokens"]["mean"] or stage["tokens"]["limit"], stage["tokens"]["limit"]
        epochs = "–" if stage["epochs"] is None else f"{stage['epochs']:.1f}"
        rows.append([stage["name"], f"{stage['steps']:,}", f"{stage['rows_per_step']:,.0f}", epochs,
                     *(_millions(tokens[name]) for name in _TOKENS), _millions(sum(most.values()))])  # fmt: skip
    heads = ["stage", "steps", "rows a step", "epochs", *(f"{name} reads" for name in ("hypernetwork", "backbone")),
             "targets", "teacher reads", "at most"]  # fmt: skip
    lines += markdown_table(heads, rows)

    at = "the greatest lengths of the data" if "mean" in lengths else "the limits of all lengths"
    lines += ["", f"Memory at {at}, and time:", ""]
    rows = []
    for stage in plan["stages"]:
        memory = stage["memory"]
        rows.append([stage["name"], *(_bytes(memory[name]) for name in memory), _bytes(stage["disk"]["checkpoints"]),
                     _bytes(stage["disk"]["kept"]), _flops(stage["flops"]), _time(stage["seconds"])])  # fmt: skip
    for name, seconds in (plan["time"] or {}).items():
        rows.append([_AROUND[name], *[""] * 8, _time(seconds)])
    rows.append(["all", "", "", "", "", _bytes(total["memory"]), _bytes(total["disk"]), "", _flops(total["flops"]),
                 _time(total["seconds"])])  # fmt: skip
    heads = ["stage", "weights", "gradients", "optimizer", "activations, roughly", "memory", "checkpoints", "kept",
             "FLOPs", "time"]  # fmt: skip
    lines += markdown_table(heads, rows)
    speed = f"{_flops(device['flops_per_second'])}/s in {device['dtype']}, {device['utilisation']:.0%} of it used"
    if plan["time"] is not None:
        timed = f"time: of {STEPS} steps of every stage and a few answers, tried on {device['name']}, as busy as it is"
    else:
        timed = f"time: {'a device of' if device['name'] == 'given' else device['name'] + ', measured:'} {speed}; "
        timed += "evaluation and the reading of data are not counted"
    notes = [
        timed,
        "a sequence is as long as it is: padding to the longest of a batch comes on top",
        *plan["notes"],
    ]
    return "\n".join([*lines, "", *(f"* {note}" for note in notes)])


def _millions(number: float) -> str:
    return f"{number / 1e6:,.{1 if number >= 1e7 else 3}f}"


def _bytes(number: float) -> str:
    return _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _flops(number: float) -> str:
    return _scaled(number, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"))


def _scaled(number: float, base: int, units) -> str:
    for unit in units[:-1]:
        if number < base:
            return f"{number:.3g} {unit}"
        number /= base
    return f"{number:,.1f} {units[-1]}"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} s"
