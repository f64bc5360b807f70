"""What a task costs with an adapter instead of its instruction in every input: wall time and FLOPs, each fusion.

    python tests/benchmarks/inference_cost.py [--quick] [--threads 2] [--lengths INSTRUCTION INPUT TARGET] …

A full-size T5 with random weights; every text is as long as the mean, so nothing is padded and times compare with
FLOPs. Three things are timed, in turns: making the adapter, one input, and a batch. A task of n inputs takes the first
once and as many batches as it fills (what is left over is interpolated): its batches are alike. FLOPs are counted by
`modeling_tagi.costs.flops` for the task itself.
"""

import statistics

import torch
from harness import Ratio, finish, measured, parser, started
from shapes import backbone_config

from modeling_tagi import TagiConfig, TagiModel
from modeling_tagi.costs.flops import Lengths, TaskFlops
from modeling_tagi.costs.inference import (
    INPUT_COUNTS,
    INSTRUCTION_LENGTHS,
    T5_SHAPES,
    instruction_for,
    ways_to_cheaper,
)

FUSIONS = {"cross_attention": "TAGI", "concat": "HINT", "none": "HyperTuning"}
QUESTION = "wall time of a task with TAGI's adapter, relative to the instruction in every input"
WALL, FLOPS = 0.45, 0.35
TIMED_LENGTHS = (16, 64, 288, 1024)  # of the instruction
MOST_INPUTS = 1000  # where a break-even point is looked for


def main():
    made = parser(__doc__)
    made.add_argument("--backbone", default="t5-base", choices=[*T5_SHAPES, "tiny-t5"])
    made.add_argument("--inputs", type=int, default=100, help="inputs of the task")
    made.add_argument("--batch_size", type=int, default=20)
    made.add_argument("--lengths", type=int, nargs=3, default=[288, 166, 8],
                      metavar=("INSTRUCTION", "INPUT", "TARGET"),
                      help="tokens; by default Def+2Pos of docs/results/costs.md")  # fmt: skip
    made.add_argument("--fusion_heads", type=int, help="of the cross-attention; as many as the backbone's by default")
    options = started(made, quick={"backbone": "tiny-t5", "batch_size": 4, "repeats": 2})

    models = built(options)
    lengths = Lengths(*options.lengths)
    flops = Flops(models)
    parts = timed(models, lengths, options.batch_size, options)
    prompted = walls(parts["prompted"], options.inputs, options.batch_size)
    ratios = [
        Ratio.of(f"wall, {fusion} ({method})", walls(parts[fusion], options.inputs, options.batch_size), prompted,
                 at_most=WALL) for fusion, method in FUSIONS.items()
    ]  # fmt: skip
    ratios += [
        Ratio(f"FLOPs, {fusion} ({method})", flops.relative(fusion, lengths, options.inputs), at_most=FLOPS)
        for fusion, method in FUSIONS.items()
    ]
    seconds = {way: {part: statistics.median(of) for part, of in own.items()} for way, own in parts.items()}
    finish(
        QUESTION, ratios, options,
        seconds={way: rounded(own) for way, own in seconds.items()},
        flops_floor=floor(models["cross_attention"].config, flops, lengths, options.inputs),
        by_inputs={
            "x": list(INPUT_COUNTS),
            "flops": flops.curves([(lengths, n) for n in INPUT_COUNTS]),
            "wall": walls_by_inputs(parts, INPUT_COUNTS, options.batch_size),
        },
        by_instruction_length={
            "x": list(INSTRUCTION_LENGTHS),
            "flops": flops.curves([(Lengths(x, *options.lengths[1:]), options.inputs) for x in INSTRUCTION_LENGTHS]),
            "wall": walls_by_length(models, options),
        },
        break_even=break_even(parts, flops, lengths, options),
    )  # fmt: skip


def built(options) -> dict[str, TagiModel]:
    """A model for each fusion, all around one backbone."""
    models, backbone = {}, None
    for fusion in FUSIONS:
        config = TagiConfig(backbone_config(options.backbone), fusion=fusion, fusion_heads=options.fusion_heads)
        model = TagiModel(config, backbone=backbone).eval()
        backbone = model.backbone
        models[fusion] = model.to(options.device, getattr(torch, options.dtype))
    return models


def timed(models: dict[str, TagiModel], lengths: Lengths, batch_size: int, options) -> dict[str, dict]:
    """Way -> part -> seconds of each repeat; the parts are "adapter", "one" input and "batch"."""
    instruction, inputs = (torch.randint(3, 500, (rows, length), device=options.device)
                           for rows, length in ((1, lengths.instruction), (batch_size, lengths.input)))  # fmt: skip
    adapters = {fusion: model.generate_adapter(instruction) for fusion, model in models.items()}

    def adapter_of(fusion):
        models[fusion].generate_adapter(instruction)

    def answer(way, batch):
        if way == "prompted":
            batch = torch.cat([instruction.expand(len(batch), -1), batch], 1)
        models["none" if way == "prompted" else way].generate(
            batch, attention_mask=torch.ones_like(batch), adapter=adapters.get(way), do_sample=False,
            max_new_tokens=lengths.target, min_new_tokens=lengths.target,
        )  # fmt: skip

    cases = {("adapter", fusion): lambda fusion=fusion: adapter_of(fusion) for fusion in models}
    for way in ("prompted", *models):
        cases["one", way] = lambda way=way: answer(way, inputs[:1])
        cases["batch", way] = lambda way=way: answer(way, inputs)
    seconds = measured({f"{way}: {part}": case for (part, way), case in cases.items()}, options)
    nothing = {"prompted: adapter": [0.0] * options.repeats}
    seconds.update(nothing)
    return {
        way: {part: seconds[f"{way}: {part}"] for part in ("adapter", "one", "batch")} for way in ("prompted", *models)
    }


def walls(parts: dict[str, list[float]], inputs: int, batch_size: int) -> list[float]:
    """Seconds of a task of `inputs` inputs, repeat by repeat."""
    full, rest = divmod(inputs, batch_size)
    seconds = []
    for adapter, one, batch in zip(parts["adapter"], parts["one"], parts["batch"]):
        left = one + (batch - one) * (rest - 1) / max(1, batch_size - 1) if rest else 0.0
        seconds.append(adapter + full * batch + left)
    return seconds


def walls_by_inputs(parts: dict[str, dict], counts, batch_size: int) -> dict[str, list[float]]:
    """Fusion -> wall time relative to prompting, for each number of inputs."""

    def relative(fusion, inputs):
        pairs = zip(*(walls(parts[way], inputs, batch_size) for way in (fusion, "prompted")))
        return round(statistics.median(one / other for one, other in pairs), 4)

    return {fusion: [relative(fusion, inputs) for inputs in counts] for fusion in FUSIONS}


def walls_by_length(models: dict[str, TagiModel], options) -> dict[str, list]:
    """Wall time relative to prompting over lengths of the instruction, of batches small enough for the longest."""
    fewer = type(options)(**{**vars(options), "repeats": min(options.repeats, 3)})
    lengths, rows = ([16, 288], 2) if options.quick else (list(TIMED_LENGTHS), 4)
    curves = {"x": lengths, **{fusion: [] for fusion in FUSIONS}}
    for length in lengths:
        parts = timed(models, Lengths(length, *options.lengths[1:]), rows, fewer)
        for fusion, relative in walls_by_inputs(parts, [options.inputs], rows).items():
            curves[fusion] += relative
    return curves


class Flops:
    """FLOPs of a task by fusion, relative to prompting."""

    def __init__(self, models: dict[str, TagiModel]):
        self.formulas = {fusion: TaskFlops(model.config) for fusion, model in models.items()}

    def relative(self, fusion: str, lengths: Lengths, inputs: int) -> float:
        formula = self.formulas[fusion]
        return sum(formula.adapted(lengths, inputs).values()) / sum(formula.prompted(lengths, inputs).values())

    def curves(self, points: list[tuple[Lengths, int]]) -> dict[str, list[float]]:
        return {fusion: [round(self.relative(fusion, *point), 4) for point in points] for fusion in FUSIONS}


def floor(config: TagiConfig, flops: Flops, lengths: Lengths, inputs: int) -> dict:
    """What stands in the way of fewer FLOPs: the backbone's own work on the inputs, which every method has that reads
    all of them, even if its adapter cost nothing; and the steps from TAGI to there."""
    formula = flops.formulas["none"]
    own = formula.adapted(lengths, inputs)
    t, i = lengths.instruction, lengths.input
    return rounded({
        "the inputs alone, nothing for the adapter": (own["input"] + own["output"])
        / sum(formula.prompted(lengths, inputs).values()),
        "paper's formula": (t + inputs * i) / (inputs * (t + i)),
        **{f"TAGI, {way}": relative for way, relative in ways_to_cheaper(config, lengths, inputs).items()},
        f"tokens of instruction with which TAGI is at {FLOPS}": instruction_for(config, lengths, FLOPS, inputs),
    })  # fmt: skip


def break_even(parts: dict[str, dict], flops: Flops, lengths: Lengths, options) -> dict[str, dict]:
    """From how many inputs, and (at `options.inputs`) from what length of the instruction, an adapter is the cheaper;
    `None` where it is not up to `MOST_INPUTS`, or 1,024 tokens."""
    counts, tokens = range(1, MOST_INPUTS + 1), range(1, max(INSTRUCTION_LENGTHS) + 1)
    by_wall = walls_by_inputs(parts, counts, options.batch_size)
    return {
        fusion: {
            "inputs, by wall": _first(counts, by_wall[fusion]),
            "inputs, by FLOPs": _first(counts, (flops.relative(fusion, lengths, n) for n in counts)),
            "tokens of instruction, by FLOPs": _first(tokens, (
                flops.relative(fusion, Lengths(t, *options.lengths[1:]), options.inputs) for t in tokens
            )),
        } for fusion in FUSIONS
    }  # fmt: skip


def _first(xs, relative):
    return next((x for x, ratio in zip(xs, relative) if ratio <= 1), None)


def rounded(values: dict) -> dict:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


if __name__ == "__main__":
    main()
