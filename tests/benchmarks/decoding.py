"""Tokens per second while decoding: one adapter for the batch, and one for each row, against none and a merged one.

    python tests/benchmarks/decoding.py [--quick] [--threads 2] [--backbones t5-base llama] [--rows 1 8 32] …

Backbones are full-size shapes with random weights; inputs are short, so that time goes into the tokens written. By
default adapters are LoRA updates alone; with `--fusion cross_attention` or `concat` they are made from instructions of
288 tokens, which are read in every step. The hypernetwork is counted while tokens are written: it must not be entered.

An adapter for each row has a floor of its own: every row's factors are read for every token, which no other row
shares. It is printed beside, as the ratio of the bytes of weights that a step reads without and with them.
"""

import torch
from harness import Ratio, finish, measured, parser, started
from shapes import random_adapters, tagi
from torch import nn

from modeling_tagi import TagiAdapter, TagiModel
from modeling_tagi.configuration_tagi import FUSIONS
from modeling_tagi.seq2seq import memory_projections

QUESTION = "tokens per second with one adapter for the batch, relative to the bare backbone"
GOAL = 0.9


def main():
    made = parser(__doc__)
    made.add_argument("--backbones", nargs="+", default=["t5-base", "llama"])
    made.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], help="of a batch")
    made.add_argument("--rank", type=int, default=32)
    made.add_argument("--fusion", default="none", choices=FUSIONS)
    made.add_argument("--instruction_tokens", type=int, default=288)
    made.add_argument("--input_tokens", type=int, default=16)
    made.add_argument("--new_tokens", type=int, default=32)
    options = started(made, quick={"backbones": ["t5-small", "tiny-llama"], "rows": [1, 8], "repeats": 3,
                                   "new_tokens": 16})  # fmt: skip
    ratios, tokens_per_second, floors = [], {}, {}
    for name in options.backbones:
        model = tagi(name, fusion=options.fusion, r=options.rank).to(options.device, getattr(torch, options.dtype))
        entered = []
        model.hypernetwork.register_forward_pre_hook(lambda *_: entered.append(True))
        adapters = made_adapters(model, max(options.rows), options)
        entered.clear()
        merged = adapters[0].without_memory().merge_into(model)
        for rows in options.rows:
            seconds = timed(model, merged, adapters, rows, options)
            floors[f"{name}, {rows} rows"] = floor_of_rows(model, rows)
            for way in ("one adapter", "an adapter a row"):
                for other in ("bare", "merged"):
                    what = f"{name}, fusion {options.fusion}, {rows} rows: {way} / {other}"
                    ratios.append(Ratio.of(what, seconds[other], seconds[way], at_least=GOAL))
            tokens_per_second[f"{name}, {rows} rows"] = {
                way: round(rows * options.new_tokens / min(values), 1) for way, values in seconds.items()
            }
        if entered:
            raise RuntimeError(f"the hypernetwork of {name} was entered {len(entered)} times while decoding")
    finish(QUESTION, ratios, options, best_tokens_per_second=tokens_per_second, floor_of_an_adapter_a_row=floors)


def made_adapters(model: TagiModel, number: int, options) -> TagiAdapter:
    if options.fusion == "none":
        return random_adapters(model, number).to(options.device)
    vocabulary = model.config.backbone_config.vocab_size
    with torch.inference_mode():
        return model.generate_adapter(torch.randint(3, vocabulary, (number, options.instruction_tokens)).tolist())


def timed(model: TagiModel, merged: nn.Module, adapters, rows: int, options) -> dict[str, list[float]]:
    """Seconds of each way to write `options.new_tokens` for every row."""
    ids = torch.randint(3, model.config.backbone_config.vocab_size, (rows, options.input_tokens)).to(options.device)
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False,
                "max_new_tokens": options.new_tokens, "min_new_tokens": options.new_tokens}  # fmt: skip
    one, each = adapters[0], adapters[:rows]
    return measured({
        "bare": lambda: model.backbone.generate(ids, **settings),
        "merged": lambda: merged.generate(ids, **settings),
        "one adapter": lambda: model.generate(ids, adapter=one, **settings),
        "an adapter a row": lambda: model.generate(ids, adapter=each, **settings),
    }, options)  # fmt: skip


def floor_of_rows(model: TagiModel, rows: int) -> float:
    """Bytes of weights that a step reads without an adapter for each row, relative to those with it: what the ratio
    would be if nothing but reading them from memory took time, as it is for few rows."""
    decoder = model.backbone.get_decoder() if model.config.is_encoder_decoder else model.backbone
    once = set(memory_projections(model.backbone))  # their outputs are cached
    modules = {m for m in decoder.modules() if hasattr(m, "weight") and not isinstance(m, nn.Embedding)} - once
    modules.add(model.backbone.get_output_embeddings())
    weights = sum(module.weight.numel() for module in modules)
    targets = [model.backbone.get_submodule(path) for path in model.hypernetwork.shared_factors()]
    factors = sum(model.config.r * (m.in_features + m.out_features) for m in targets if m in modules)
    return round(weights / (weights + rows * factors), 4)


if __name__ == "__main__":
    main()
