"""Wall time of a task on a full-size T5 with random weights: prompted, and with an adapter of each fusion.

    python tests/benchmarks/inference_cost.py [--quick] [--lengths INSTRUCTION INPUT TARGET] [--threads 2] …

Each time is the median over repeats, in which the methods take turns, from reading the instruction to the last token
of the last input. Every text is as long as the mean, so nothing is padded and times compare with FLOPs.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers reads it
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch  # noqa: E402

from modeling_tagi import TagiConfig, TagiModel  # noqa: E402
from modeling_tagi.evaluation.costs import T5_SHAPES, cost_of_methods, t5_backbone  # noqa: E402
from modeling_tagi.evaluation.flops import Lengths  # noqa: E402
from modeling_tagi.training.run import quiet_libraries  # noqa: E402

FUSIONS = {"hypertuning": "none", "hint": "concat", "tagi": "cross_attention"}
QUESTION = "wall time of a task with TAGI's adapter, relative to the instruction in every input"
GOAL = 0.45


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="t5-base", choices=T5_SHAPES)
    parser.add_argument("--inputs", type=int, default=100, help="inputs of the task")
    parser.add_argument("--batch_size", type=int, default=20)
    parser.add_argument("--lengths", type=int, nargs=3, default=[288, 166, 8],
                        metavar=("INSTRUCTION", "INPUT", "TARGET"),
                        help="tokens; by default Def+2Pos of docs/results/costs.md")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves them as they are")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--quick", action="store_true", help="4 inputs, once: for a look, no result")
    options = parser.parse_args()
    if options.quick:
        options.inputs, options.batch_size, options.repeats = 4, 4, 1
    if options.threads:
        torch.set_num_threads(options.threads)
    quiet_libraries()
    torch.manual_seed(0)

    models = built(options)
    instruction, inputs = (torch.randint(3, 32000, (rows, length), device=options.device)
                           for rows, length in zip((1, options.inputs), options.lengths))  # fmt: skip
    methods = {"prompted": None, **models}
    times = {name: [] for name in methods}
    for repeat in range(-1, options.repeats):
        for name, model in methods.items():
            some = inputs if repeat >= 0 else inputs[:1]  # one each to warm up
            seconds = timed(model or models["hypertuning"], instruction, some, options, prompted=model is None)
            if repeat >= 0:
                times[name].append(seconds)
                print(f"repeat {repeat + 1}/{options.repeats}: {name:12} {seconds:8.2f} s", flush=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    costs = cost_of_methods(models["tagi"].config, Lengths(*options.lengths), options.inputs)["methods"]

    print(f"\n{'method':12} {'seconds':>8} {'relative':>9} {'FLOPs':>7} {'GFLOP/s':>8}")
    for name, seconds in medians.items():
        print(f"{name:12} {seconds:8.2f} {seconds / medians['prompted']:9.3f} {costs[name]['relative']:7.3f} "
              f"{costs[name]['flops'] / seconds / 1e9:8.1f}")
    ratio = medians["tagi"] / medians["prompted"]
    print(json.dumps({
        "question": QUESTION,
        "ratio": round(ratio, 4),
        "goal": GOAL,
        "met": round(ratio, 4) <= GOAL,
        "seconds": {name: round(seconds, 3) for name, seconds in medians.items()},
        "relative_time": {name: round(seconds / medians["prompted"], 4) for name, seconds in medians.items()},
        "relative_flops": {name: round(costs[name]["relative"], 4) for name in medians},
        **{name: getattr(options, name) for name in ("backbone", "inputs", "batch_size", "lengths", "repeats", "quick",
                                                     "device", "dtype")},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }))  # fmt: skip


def built(options) -> dict[str, TagiModel]:
    """A model for each fusion, all around one backbone."""
    models, backbone = {}, None
    for name, fusion in FUSIONS.items():
        config = TagiConfig(t5_backbone(options.backbone), fusion=fusion)
        model = TagiModel(config, backbone=backbone).eval()
        backbone = model.backbone
        models[name] = model.to(options.device, getattr(torch, options.dtype))
    return models


@torch.inference_mode()
def timed(model: TagiModel, instruction, inputs, options, prompted: bool) -> float:
    """Seconds for all `inputs [rows, seq]`, the making of the adapter included."""
    length = options.lengths[2]
    synchronize = torch.cuda.synchronize if options.device.startswith("cuda") else lambda: None
    synchronize()
    start = time.perf_counter()
    adapter = None if prompted else model.generate_adapter(instruction)
    for batch in inputs.split(options.batch_size):
        if prompted:
            batch = torch.cat([instruction.expand(len(batch), -1), batch], 1)
        model.generate(batch, attention_mask=torch.ones_like(batch), adapter=adapter, do_sample=False,
                       max_new_tokens=length, min_new_tokens=length)  # fmt: skip
    synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
