"""Full-size models on a GPU: training with all losses, adapters from instructions, decoding with an adapter a row.

    python tests/benchmarks/full_size.py [--backbones t5-base t5-large t5-xl] [--frozen t5-xxl] [--device cuda] …
    python tests/benchmarks/full_size.py --quick    # tiny ones, also on a CPU

Random weights at T5's shapes, bfloat16 under autocast, the paper's 1,024 tokens in and 128 out. A step goes from
records to changed weights, with L_pred, L_kl (the teacher reads every batch) and L_ins. Its matrix products are
counted as they run (recomputation included: of the models under gradient checkpointing it is the hardware's
utilisation); utilisation is their rate by the GPU's data sheet, where it is known, and by that of a product of 8,192 ×
8,192 matrices. A batch is made larger, twice and twice again, until the memory is full.
"""

import argparse
import gc
import tempfile
from statistics import median
from typing import Optional

import torch
from decoding import timed
from finetuning_step import Steps, flops
from harness import Ratio, finish, measured, parser, peak_memory, started
from shapes import random_adapters, tagi

QUESTION = "model FLOPs of a training step by the time it takes, relative to those of a large matrix product"
GOAL = 0.4  # at XL
SHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 FLOPs a second, SXM


def main():
    made = parser(__doc__)
    made.set_defaults(device="cuda" if torch.cuda.is_available() else "cpu", dtype="bfloat16")
    made.add_argument("--backbones", nargs="*", default=["t5-base", "t5-large", "t5-xl"], help="trained whole")
    made.add_argument("--frozen", nargs="*", default=["t5-xxl"],
                      help="of which the generator is trained, under gradient checkpointing")  # fmt: skip
    made.add_argument("--tasks", type=int, default=4, help="of a batch")
    made.add_argument("--examples", type=int, default=2, help="of each task")
    made.add_argument("--lengths", type=int, nargs=3, default=[288, 1024, 128],
                      metavar=("INSTRUCTION", "INPUT", "TARGET"), help="tokens")  # fmt: skip
    made.add_argument("--instructions", type=int, default=64, help="made adapters of at once")
    made.add_argument("--rows", type=int, default=32, help="that are decoded, an adapter each")
    made.add_argument("--new_tokens", type=int, default=128)
    options = started(made, quick={
        "backbones": ["tiny-t5"], "frozen": ["tiny-t5"], "tasks": 2, "lengths": [16, 16, 4], "instructions": 4,
        "rows": 2, "new_tokens": 8, "repeats": 2,
    })  # fmt: skip
    if options.device == "cpu" and not options.quick:
        raise SystemExit("full_size.py needs a GPU, and there is none: give --quick for a look at tiny models")
    options.input_tokens = 16
    rate = best_rate(options)
    training, inference = {}, {}
    for name, trained in [*((name, "all") for name in reversed(options.backbones)),
                          *((name, "generator") for name in options.frozen)]:  # fmt: skip
        training[f"{name}, {trained}"] = train(name, trained, rate, options)
        print(name, training[f"{name}, {trained}"], flush=True)
    for name in options.backbones:
        inference[name] = infer(name, options)
        print(name, inference[name], flush=True)
    goals = {"t5-xl, all": {"at_least": GOAL}}
    by_sheet = [Ratio(f"{name}: FLOPs of a step / by the data sheet", one["tflops_per_second"] / sheet(),
                      **goals.get(name, {})) for name, one in training.items() if sheet()]  # fmt: skip
    finish(QUESTION, [
        *by_sheet,
        *(Ratio(f"{name}: FLOPs of a step / of a large product", one["utilisation"],
                **({} if by_sheet else goals.get(name, {}))) for name, one in training.items()),
        *(Ratio(f"{name}: tokens per second, an adapter a row / bare", one["an adapter a row / bare"])
          for name, one in inference.items()),
    ], options, training=training, inference=inference, best_tflops=rate / 1e12, sheet_tflops=sheet())  # fmt: skip


def sheet() -> Optional[float]:
    """TFLOPs a second of this GPU by its maker; `None` where it is not in the table."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((rate / 1e12 for known, rate in SHEET.items() if known in name), None)


def best_rate(options) -> float:
    """FLOPs per second of a large product in the dtype of the run."""
    size = 8192 if options.device.startswith("cuda") else 1024
    x = torch.randn(size, size, device=options.device).to(getattr(torch, options.dtype))
    return 2 * size**3 / min(measured({"product": lambda: x @ x}, options, warmups=3)["product"])


def train(name: str, trained: str, rate: float, options) -> dict:
    """Time, memory and FLOPs of steps, and the largest batch whose step fits."""
    step = stepping(name, trained, options)
    counted = flops(step)
    seconds = median(measured({name: step}, options)[name])
    found = {
        "examples_per_second": round(options.tasks * options.examples / seconds, 3),
        "tflops_per_second": round(counted / seconds / 1e12, 3),
        "utilisation": round(counted / seconds / rate, 4),
        "peak_memory_gib": round(peak_memory(step, options.device) / 2**30, 3),
    }
    if options.device.startswith("cuda"):
        found["held_memory_gib"] = round(torch.cuda.memory_allocated() / 2**30, 3)
        del step
        found["largest_batch_that_fits"] = largest(name, trained, options)
    return found


def stepping(name: str, trained: str, options):
    """A step of training a model of that shape."""
    empty(options)
    own = argparse.Namespace(**{**vars(options), "backbone": name})
    steps = Steps(own, tempfile.gettempdir(), trained)
    if trained == "generator":
        steps.model.gradient_checkpointing_enable({"use_reentrant": False})
    return steps.stepped(steps.tagi(steps.objective))


def largest(name: str, trained: str, options) -> int:
    """Examples of the largest batch of a power of two times `options.tasks` tasks that can be stepped."""
    examples, fits = options.examples, 0
    while True:
        try:
            step = stepping(name, trained, argparse.Namespace(**{**vars(options), "examples": examples}))
            step()
            step()  # the optimizer's states are there now
        except torch.OutOfMemoryError:
            empty(options)
            return fits
        fits, examples = options.tasks * examples, 2 * examples
        del step


def empty(options):
    gc.collect()
    if options.device.startswith("cuda"):
        torch.cuda.empty_cache()


def infer(name: str, options) -> dict:
    """Adapters and tokens per second, weights in the dtype of the run."""
    empty(options)
    with torch.device(options.device):
        model = tagi(name).to(getattr(torch, options.dtype))
    ids = torch.randint(3, model.backbone.config.vocab_size, (options.instructions, options.lengths[0]))
    ids = ids.to(options.device)
    with torch.inference_mode():
        made = median(measured({"adapters": lambda: model.generate_adapter(ids)}, options)["adapters"])
    adapters = random_adapters(model, options.rows).to(model.device, model.dtype)
    seconds = timed(model, adapters[0].merge_into(model), adapters, options.rows, options)
    tokens = options.rows * options.new_tokens
    return {
        "adapters_per_second": round(options.instructions / made, 2),
        "tokens_per_second": {way: round(tokens / median(values), 1) for way, values in seconds.items()},
        "an adapter a row / bare": round(Ratio.of("", seconds["bare"], seconds["an adapter a row"]).value, 4),
    }


if __name__ == "__main__":
    main()
