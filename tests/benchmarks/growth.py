"""How time and memory of a training step grow: over unique tasks a batch, instruction length, rank and layers.

    python tests/benchmarks/growth.py [--quick] [--output docs/results/growth] …

A step is forward and backward of the whole model with its fusion, from the instructions' tokens to the gradients of
generator, fusion and backbone. One size varies, the others stay. The exponent is the slope of a line through the
logarithms, over all points and over the last two: 1 where cost is proportional, less where something does not grow.
Over the instruction's length attention costs its square, which shows once it outweighs what grows in proportion. A
picture of each goes to the output folder.
"""

import statistics
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Ratio, finish, measured, parser, peak_memory, started
from transformers import T5Config

from modeling_tagi import TagiConfig, TagiModel

SIZES = {
    "tasks": ("unique tasks a batch", [1, 2, 4, 8, 16, 32]),
    "length": ("tokens of an instruction", [16, 32, 64, 128, 256, 512]),
    "rank": ("rank", [4, 8, 16, 32, 64, 128]),
    "layers": ("layers of encoder and of decoder", [1, 2, 4, 8, 16]),
}
QUESTION = "how a training step's time and memory grow: the largest exponent, but for that of the instruction's length"
OUTPUT = Path(__file__).parents[2] / "docs" / "results" / "growth"


def main():
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=32, help="examples of a batch")
    made.add_argument("--lengths", type=int, nargs=2, default=[32, 8], metavar=("INPUT", "TARGET"), help="tokens")
    made.add_argument("--base", type=int, nargs=4, default=[8, 64, 16, 4], metavar=tuple(map(str.upper, SIZES)),
                      help="what stays where it does not vary")  # fmt: skip
    made.add_argument("--width", type=int, default=128, help="of the backbone")
    made.add_argument("--output", type=Path, help="folder of the pictures; by default docs/results/growth, and none "
                      "are made with --quick")  # fmt: skip
    options = started(made, quick={"repeats": 2, "width": 64})
    base, curves, ratios = dict(zip(SIZES, options.base)), {}, []
    for name, (label, values) in SIZES.items():
        values = values[1::2] if options.quick else values
        cases = {str(value): step(options, **{**base, name: value}) for value in values}
        seconds = measured(cases, options)
        curves[name] = {
            "values": values,
            "seconds": [round(statistics.median(seconds[case]), 5) for case in cases],
            "memory_mib": [round(peak_memory(case, options.device) / 2**20, 2) for case in cases.values()],
        }
        for kind in ("seconds", "memory_mib"):
            curve = curves[name][kind]
            what = f"{kind.split('_')[0]} over {label}"
            fitted, at_end = ({}, {}) if name == "length" else ({"at_most": 1.0}, {"at_most": 1.05})
            ratios += [Ratio(f"exponent of {what}", exponent(values, curve), **fitted),
                       Ratio(f"exponent of {what}, last two points", exponent(values[-2:], curve[-2:]),
                             **at_end)]  # fmt: skip
        print(name, curves[name], flush=True)
    if options.output is not None or not options.quick:
        for name, (label, _) in SIZES.items():
            plot(curves[name], label, options.output or OUTPUT, name, options)
    ratios.sort(key=lambda ratio: (ratio.at_most or 2, -ratio.value))
    options.output = None  # a path is no fact
    finish(QUESTION, ratios, options, curves=curves)


def step(options, tasks: int, length: int, rank: int, layers: int):
    """A training step of a model and a batch of these sizes."""
    torch.manual_seed(0)
    width, vocabulary = options.width, 1000
    backbone = T5Config(
        vocab_size=vocabulary, d_model=width, d_kv=width // 8, d_ff=4 * width, num_layers=layers, num_heads=8,
        decoder_start_token_id=0, feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0,
    )  # fmt: skip
    model = TagiModel(TagiConfig(backbone, r=rank)).to(options.device, getattr(torch, options.dtype)).train()
    batch = {
        "input_ids": torch.randint(3, vocabulary, (options.rows, options.lengths[0])),
        "labels": torch.randint(3, vocabulary, (options.rows, options.lengths[1])),
        "instruction_input_ids": torch.randint(3, vocabulary, (tasks, length)),
        "task_index": torch.arange(options.rows) * tasks // options.rows,
    }
    return partial(train, model, {name: tensor.to(options.device) for name, tensor in batch.items()})


def train(model: TagiModel, batch: dict):
    model(**batch).loss.backward()
    model.zero_grad()


def exponent(values: list[float], costs: list[float]) -> float:
    """p of `cost ~ value^p`, fitted."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def plot(curve: dict, label: str, folder: Path, name: str, options):
    """Time and memory over one size, with lines of the fitted exponents."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    values = np.array(curve["values"])
    for axes, kind, unit in zip(figure.subplots(1, 2), ("seconds", "memory_mib"), ("time (s)", "memory (MiB)")):
        slope, start = np.polyfit(np.log(values), np.log(curve[kind]), 1)
        axes.plot(values, curve[kind], "o", label="measured")
        axes.plot(values, np.exp(start) * values**slope, "-", label=f"exponent {slope:.2f}")
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel=unit)
        axes.set_xticks(values, map(str, values))
        axes.minorticks_off()
        low, high = min(curve[kind]), max(curve[kind])
        ticks = np.geomspace(low, high, 4) if high > 1.3 * low else [low]
        axes.set_yticks(ticks, [f"{tick:.3g}" if tick < 1000 else f"{tick:,.0f}" for tick in ticks])
        axes.set_ylim(low / 1.5, high * 1.5)
        axes.legend()
    figure.suptitle(f"A training step over {label}, {options.rows} examples, {options.threads} threads")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main()
