"""An adapter from an instruction, against one pass of the bare encoder over it; many instructions at once, against one
by one; and an adapter to disk as PEFT and back.

    python tests/benchmarks/generate_adapter.py [--quick] [--backbone t5-base] [--tokens 288] [--threads 2]

For a causal backbone (`--backbone llama`) the encoder is its stack of layers. The instruction cache is off. What
nothing can go below is told beside, measured in the same turns: `floor` is the encoder's pass and then reading every
weight of the generator once, which one instruction needs them for.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

import torch
from harness import Ratio, finish, measured, parser, started
from shapes import tagi

from modeling_tagi import TagiAdapter

QUESTION = "time of an adapter from an instruction, relative to the bare encoder's pass over the instruction"


def main():
    made = parser(__doc__)
    made.add_argument("--backbone", default="t5-base", help="a shape of shapes.py")
    made.add_argument("--tokens", type=int, default=288, help="of the instruction; by default Def+2Pos of costs.md")
    made.add_argument("--lengths", type=int, nargs="*", default=[16, 64, 512], help="to compare as well")
    made.add_argument("--tasks", type=int, default=64, help="instructions at once")
    made.add_argument("--many_tokens", type=int, nargs="*", default=[16, 64], help="lengths of those, and then mixed")
    options = started(made, quick={
        "backbone": "t5-small", "tokens": 64, "lengths": [16], "tasks": 4, "many_tokens": [16], "repeats": 2
    })  # fmt: skip
    with torch.inference_mode():
        compare(options)


def compare(options):
    model = tagi(options.backbone).to(options.device, getattr(torch, options.dtype))
    ratios, milliseconds = [], {}
    for length in dict.fromkeys([options.tokens, *options.lengths]):
        times = measured(single_cases(model, ids_of(1, length, options)), options)
        goal = {"at_most": 1.3} if length == options.tokens else {}
        ratios += [
            Ratio.of(f"one adapter / encoder, {length} tokens", times["adapter"], times["encoder"], **goal),
            Ratio.of(f"floor / encoder, {length} tokens", times["floor"], times["encoder"]),
        ]
        milliseconds[f"{length} tokens"] = {name: round(1000 * median(x), 2) for name, x in times.items()}
    for length in [*options.many_tokens, None]:
        named, rows = f"{length} tokens" if length else "16 to 512 tokens", many(length, options)
        few = argparse.Namespace(**{**vars(options), "repeats": min(options.repeats, 7 if length else 3)})
        times = measured(many_cases(model, rows), few, warmups=0)
        ratios += [
            Ratio.of(f"{options.tasks} one by one / at once, {named}", times["one by one"], times["at once"],
                     at_least=3),
            Ratio.of(f"floor of that: encoder one by one and {options.tasks} times the weights / encoder at once, "
                     f"{named}", times["floor one by one"], times["encoder at once"]),
        ]  # fmt: skip
        milliseconds[f"{options.tasks} of {named}"] = {name: round(1000 * median(x), 2) for name, x in times.items()}
    with tempfile.TemporaryDirectory() as folder:
        times = measured(disk_cases(model, Path(folder), options), options)
    milliseconds["disk"] = {name: round(1000 * median(x), 2) for name, x in times.items()}
    finish(QUESTION, ratios, options, milliseconds=milliseconds, megabytes={
        name: round(sum(x.nbytes for x in part.parameters()) / 1e6) for name, part in
        {"encoder": encoder_of(model), "hypernetwork": model.hypernetwork, "fusion": model.fusion}.items()
    })  # fmt: skip


def encoder_of(model):
    return model.backbone.get_encoder() if model.config.is_encoder_decoder else model.backbone.base_model


def ids_of(rows: int, length: int, options) -> torch.Tensor:
    return torch.randint(3, 32000, (rows, length), device=options.device)


def many(length, options) -> list[list[int]]:
    """Instructions of a length, or (`None`) of lengths from 16 to 512 in any order."""
    spread = torch.logspace(4, 9, options.tasks, base=2).round().long()[torch.randperm(options.tasks)].tolist()
    return [ids_of(1, length or each, options)[0].tolist() for each in spread]


def encoded(model, ids: torch.Tensor):
    extra = {} if model.config.is_encoder_decoder else {"use_cache": False}
    return encoder_of(model)(input_ids=ids, attention_mask=torch.ones_like(ids), **extra)


def read_weights(model):
    """One pass over the generator's weights, as a product with one row makes it."""
    for stack in model.hypernetwork.stacks:
        for weight in stack.output_weights:
            one = weight.new_ones(1, weight.shape[1])
            for layer in weight:
                one @ layer


def single_cases(model, ids):
    return {
        "encoder": lambda: encoded(model, ids),
        "floor": lambda: (encoded(model, ids), read_weights(model)),
        "adapter": lambda: model.generate_adapter(ids),
    }


def many_cases(model, rows):
    tensors = [torch.tensor([row], device=model.device) for row in rows]

    def alone():
        for ids in tensors:
            encoded(model, ids)
            read_weights(model)

    def together():  # without any padding: equal lengths in one pass
        for length in {ids.shape[1] for ids in tensors}:
            encoded(model, torch.cat([ids for ids in tensors if ids.shape[1] == length]))
        read_weights(model)

    return {
        "one by one": lambda: [model.generate_adapter(row) for row in rows],
        "at once": lambda: model.generate_adapter(rows),
        "floor one by one": alone,
        "encoder at once": together,
    }


def disk_cases(model, folder, options):
    adapter = model.generate_adapter(ids_of(1, options.tokens, options))
    plain = adapter.without_memory()
    adapter.save_pretrained(folder / "whole")
    plain.save_pretrained(folder / "plain")
    tensors = [*plain.lora_a.values(), *plain.lora_b.values()]

    def raw():
        with open(folder / "raw", "wb") as file:
            for x in tensors:
                file.write(x.cpu().contiguous().view(torch.uint8).numpy())

    return {
        "its bytes alone": raw,
        "write": lambda: plain.save_pretrained(folder / "plain"),
        "read": lambda: TagiAdapter.from_pretrained(folder / "plain"),
        "write with instruction memory": lambda: adapter.save_pretrained(folder / "whole"),
        "read with instruction memory": lambda: TagiAdapter.from_pretrained(folder / "whole"),
    }


if __name__ == "__main__":
    main()
