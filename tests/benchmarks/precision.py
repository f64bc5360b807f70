"""bfloat16, and torch.compile, each for the training step, for reading inputs and for decoding: against plain float32.

    python tests/benchmarks/precision.py [--quick] [--threads 2] [--device cuda] [--backbones t5-base llama] …

Training computes in bfloat16 under autocast, with weights in float32, as `bf16: true` of a configuration has it;
reading and decoding have weights in bfloat16. A compiled case is compiled before it is timed; how long that took is
printed beside, and from how many steps on it has been earned back. No compiler, no such cases: `--no_compile`.
"""

import time
from copy import deepcopy
from pathlib import Path
from statistics import median

import torch
from harness import Ratio, finish, measured, parser, started, synchronize
from shapes import backbone_config

from modeling_tagi import TagiConfig, TagiModel

QUESTION = "time of a training step in bfloat16, relative to float32"
UNITS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # of a CPU, the best first


def main():
    made = parser(__doc__)
    made.add_argument("--backbones", nargs="+", default=["t5-base"])
    made.add_argument("--tasks", type=int, default=4, help="of a training step, with as many rows each")
    made.add_argument("--lengths", type=int, nargs=3, default=[64, 128, 16],
                      metavar=("INSTRUCTION", "INPUT", "TARGET"))  # fmt: skip
    made.add_argument("--rows", type=int, default=8, help="that are read, and decoded")
    made.add_argument("--new_tokens", type=int, default=16)
    made.add_argument("--layers", type=int, help="of each stack; by default the shape's own")
    made.add_argument("--no_compile", action="store_true")
    options = started(made, quick={"backbones": ["t5-small"], "layers": 1, "tasks": 2, "repeats": 3,
                                   "no_compile": True, "new_tokens": 4})  # fmt: skip
    ratios, compiling, earned = [], {}, {}
    for name in options.backbones:
        for work, cases in WORK.items():
            plain, half, compiled = cases(built(name, options), options)
            named = {"float32": plain, "bfloat16": half}
            if not options.no_compile:
                named["compiled"] = compiled
                torch._dynamo.reset()
                compiling[f"{name}, {work}"] = took(compiled, options.device)
            seconds = measured(named, options)
            if "compiled" in seconds:
                gain = median(seconds["float32"]) - median(seconds["compiled"])
                earned[f"{name}, {work}"] = round(compiling[f"{name}, {work}"] / gain) if gain > 0 else None
            for way in list(named)[1:]:
                ratios.append(Ratio.of(f"{name}, {work}: {way} / float32", seconds[way], seconds["float32"]))
    units = cpu_units() if options.device == "cpu" else list(torch.cuda.get_device_capability())
    finish(QUESTION, ratios, options, units=units, seconds_of_compiling=compiling,
           calls_that_earn_them_back=earned)  # fmt: skip


def built(name: str, options) -> TagiModel:
    config = backbone_config(name)
    if options.layers:
        for field in ("num_layers", "num_decoder_layers", "num_hidden_layers"):
            if hasattr(config, field):
                setattr(config, field, options.layers)
    return TagiModel(TagiConfig(config)).to(options.device)


def drawn(rows: int, length: int, options) -> torch.Tensor:
    return torch.randint(3, 500, (rows, length)).to(options.device)


def training_step(model: TagiModel, options):
    """Forward and backward of L_pred, generator alone trained; the optimizer has nothing to gain from either."""
    model.train().set_trainable("generator")
    instruction, given, target = options.lengths
    rows = options.tasks**2
    batch = {
        "instruction_input_ids": drawn(options.tasks, instruction, options),
        "task_index": torch.arange(options.tasks, device=options.device).repeat_interleave(options.tasks),
    }
    if model.config.is_encoder_decoder:
        batch.update(input_ids=drawn(rows, given, options), labels=drawn(rows, target, options))
    else:
        ids = drawn(rows, given + target, options)
        batch.update(input_ids=ids, labels=ids.masked_fill(torch.arange(given + target).to(ids.device) < given, -100))

    def step(of, half: bool):
        with torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=half):
            loss = of(**batch).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    compiled = torch.compile(model)
    return lambda: step(model, False), lambda: step(model, True), lambda: step(compiled, False)


def reading(model: TagiModel, options):
    """A batch of inputs behind the backbone, one token of each: what ranking and short answers are made of."""
    model.eval()
    half = deepcopy(model).to(torch.bfloat16)
    ids = drawn(options.rows, options.lengths[1], options)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :1]
    cases = []
    for of in (model, half):
        adapter = of.generate_adapter(drawn(1, options.lengths[0], options))
        cases.append((of, adapter))
    cases.append((torch.compile(model), cases[0][1]))

    def read(of, adapter):
        with torch.no_grad():
            of(**batch, adapter=adapter)

    return tuple(lambda of=of, adapter=adapter: read(of, adapter) for of, adapter in cases)


def decoding(model: TagiModel, options):
    """Greedy decoding with one adapter; compiled with a static cache, as transformers has it, also on a CPU."""
    model.eval()
    half = deepcopy(model).to(torch.bfloat16)
    whole = deepcopy(model)
    whole.backbone.forward = torch.compile(whole.backbone.forward)
    ids = drawn(options.rows, 16, options)
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False,
                "max_new_tokens": options.new_tokens, "min_new_tokens": options.new_tokens}  # fmt: skip
    instruction = drawn(1, options.lengths[0], options)

    def case(of, **more):
        adapter = of.generate_adapter(instruction)
        return lambda: of.generate(ids, adapter=adapter, **settings, **more)

    return case(model), case(half), case(whole, cache_implementation="static")


WORK = {"training step": training_step, "reading": reading, "decoding": decoding}


def took(case, device: str) -> float:
    """Seconds of a case's first two calls: the second may compile again, for shapes that have been seen to vary."""
    start = time.perf_counter()
    case()
    case()
    synchronize(device)
    return round(time.perf_counter() - start, 1)


def cpu_units() -> list[str]:
    """Those of this CPU that bfloat16 depends on."""
    flags = next((line.split(":", 1)[1].split() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("flags")), [])  # fmt: skip
    return [unit for unit in UNITS if unit in flags]


if __name__ == "__main__":
    main()
