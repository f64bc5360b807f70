"""32 rows with 32 different adapters: against PEFT's `adapter_names`, and against one PEFT adapter for all rows.

    python tests/benchmarks/mixed_adapters.py [--quick] [--backbones t5-base llama] [--lengths INPUT TARGET] …

All have the same weights, the same adapters and the same tokens, and their logits are compared before anything is
timed. PEFT mixes adapters by a loop over them in every module, and in evaluation mode alone; so it has no backward.
No way of mixing is faster than the bare backbone: `adapter_names / bare backbone` is the most that there is to win in
the time of a whole pass, and `what adapters add` is what is left when the backbone's own time is taken away (ours
counts as a hundredth of that at least, which is about what can be told apart).
"""

import argparse
import copy
from functools import partial
from statistics import median

from harness import Ratio, finish, measured, parser, peak_memory, started

import torch  # isort: skip
from shapes import random_adapters, tagi, with_peft
from torch.nn import functional as F

from modeling_tagi.lora import remove_hooks

QUESTION = "a batch whose rows have an adapter each, relative to PEFT's adapter_names, in the time of a forward pass"


def main():
    made = parser(__doc__)
    made.add_argument("--backbones", nargs="+", default=["t5-base", "llama"])
    made.add_argument("--rows", type=int, default=32, help="and adapters")
    made.add_argument("--rank", type=int, default=8)
    made.add_argument("--lengths", type=int, nargs=2, default=[16, 4], metavar=("INPUT", "TARGET"), help="tokens")
    made.add_argument("--ranks", type=int, nargs="*", default=[4, 16, 64], help="of the first's table, at its batch")
    made.add_argument("--batches", type=int, nargs="*", default=[1, 8, 128], help="of the table, at the rank above")
    made.add_argument("--table_lengths", type=int, nargs="*", default=[1, 64, 166], help="of the table, of input")
    options = started(made, quick={"backbones": ["t5-small"], "lengths": [16, 4], "rows": 8, "repeats": 3, "ranks": [],
                                   "batches": [], "table_lengths": [1]})  # fmt: skip
    ratios, table, memory, apart = [], [], {}, {}
    for name in options.backbones:
        question = Case(name, options.rank, options.rows, options.lengths, options)
        apart[name] = question.difference()
        seconds = measured(question.cases(), options)
        ratios += question.ratios(seconds, held=True)
        memory[name] = question.memory(options)
        sizes = [(rank, options.rows, options.lengths[0]) for rank in options.ranks]
        sizes += [(options.rank, rows, options.lengths[0]) for rows in options.batches]
        sizes += [(options.rank, options.rows, length) for length in options.table_lengths]
        for rank, rows, length in sizes if name == options.backbones[0] else ():
            case = question.of_size(rank, rows, [length, options.lengths[1]], options)
            few = argparse.Namespace(**{**vars(options), "repeats": min(2, options.repeats)})
            found = case.ratios(measured(case.cases(), few, warmups=1 if rows * length < 100 else 0))
            table.append({"backbone": name, "rank": rank, "rows": rows, "tokens": length,
                          **{ratio.name.split(", ", 1)[1]: round(ratio.value, 3) for ratio in found}})  # fmt: skip
            print(table[-1], flush=True)
    first = [r for r in ratios if "adapter_names" in r.name]
    finish(QUESTION, first + [r for r in ratios if r not in first], options, table=table, memory_mib=memory,
           largest_difference_of_logits=apart)  # fmt: skip


class Case:
    """One backbone, with as many adapters as rows, in the package and in PEFT."""

    def __init__(self, name: str, rank: int, rows: int, lengths: list[int], options):
        self.name = name
        self.model = tagi(name, fusion="none", r=rank, lora_alpha=2 * rank, generator_hidden_size=8).to(
            options.device, getattr(torch, options.dtype)
        )
        self.model.requires_grad_(False)
        self._fill(rank, rows, lengths, options)

    def of_size(self, rank: int, rows: int, lengths: list[int], options) -> "Case":
        """The same backbone in another case."""
        if rank == self.model.config.r:
            other = copy.copy(self)
            other._fill(rank, rows, lengths, options)
            return other
        return Case(self.name, rank, rows, lengths, options)

    def _fill(self, rank, rows, lengths, options):
        model = self.model
        self.adapters = random_adapters(model, rows).to(model.device, model.dtype)
        shared = {id(x): x for x in (*model.backbone.parameters(), *model.backbone.buffers())}
        self.bare = copy.deepcopy(model.backbone, dict(shared))
        wrapped = copy.deepcopy(model.backbone, dict(shared))
        for backbone in (self.bare, wrapped):
            remove_hooks(backbone)
        self.peft = with_peft(model, wrapped, rows).eval()
        with torch.no_grad():
            for path, a in self.adapters.lora_a.items():
                layer = self.peft.base_model.model.get_submodule(path)
                for number in range(rows):
                    layer.lora_A[str(number)].weight.copy_(a[number])
                    layer.lora_B[str(number)].weight.copy_(self.adapters.lora_b[path][number])
        self.peft.set_adapter("0")
        vocabulary = model.backbone.config.vocab_size
        self.ids = torch.randint(3, vocabulary, (rows, lengths[0]), device=model.device)
        targets = lengths[1] if model.config.is_encoder_decoder else min(lengths)  # a causal model's are in the input
        self.labels = torch.randint(3, vocabulary, (rows, targets), device=model.device)
        self.names = [str(number) for number in range(rows)]

    def arguments(self) -> dict:
        given = {"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids), "use_cache": False}
        if self.model.config.is_encoder_decoder:
            given["decoder_input_ids"] = self.labels
        return given

    def logits(self, which: str):
        if which == "bare":
            return self.bare(**self.arguments()).logits
        if which == "peft one":
            return self.peft(**self.arguments()).logits
        if which == "peft mixed":
            return self.peft(**self.arguments(), adapter_names=self.names).logits
        return self.model(**self.arguments(), adapter=self.adapters if which == "mixed" else self.adapters[0]).logits

    def difference(self) -> float:
        """Of the logits from PEFT's, the largest, relative to the largest that adapters change."""
        with torch.inference_mode():
            ours, theirs, bare = (self.logits(which) for which in ("mixed", "peft mixed", "bare"))
        relative = ((ours - theirs).abs().max() / (theirs - bare).abs().max()).item()
        if not relative < (1e-2 if self.model.dtype == torch.float32 else 0.5):
            raise RuntimeError(f"{self.name}: logits differ from PEFT's by {relative:.3g} of what adapters change")
        return relative

    @torch.inference_mode()
    def forward(self, which: str):
        self.logits(which)

    def both(self, which: str):
        """Forward and backward, to the gradients of the adapters."""
        if which == "mixed":
            factors = [x for x in (*self.adapters.lora_a.values(), *self.adapters.lora_b.values())]
        else:
            factors = [x for name, x in self.peft.named_parameters() if name.endswith(("_A.0.weight", "_B.0.weight"))]
        for x in factors:
            x.requires_grad_(True)
        logits = self.logits(which)
        F.cross_entropy(logits[:, -self.labels.shape[1]:].flatten(0, 1).float(), self.labels.flatten()).backward()
        if not all(x.grad is not None for x in factors):
            raise RuntimeError(f"{which}: an adapter got no gradient")
        for x in factors:
            x.grad = None
            x.requires_grad_(False)

    def cases(self) -> dict:
        forward = ("mixed", "peft mixed", "peft one", "bare")
        return {
            **{which: partial(self.forward, which) for which in forward},
            **{f"train {which}": partial(self.both, which) for which in ("mixed", "peft one")},
        }

    def ratios(self, seconds: dict, held: bool = False) -> list[Ratio]:
        """How much faster than PEFT's mixed batch, how much slower than its single adapter."""
        above = {which: [x - y for x, y in zip(seconds[which], seconds["bare"])] for which in ("mixed", "peft mixed")}
        size = f"{self.ids.shape[0]} × {self.ids.shape[1]} tokens forward"
        goal = lambda **goal: goal if held else {}  # noqa: E731
        return [
            Ratio.of(f"{self.name}, {size}: PEFT's adapter_names / mixed", seconds["peft mixed"], seconds["mixed"],
                     **goal(at_least=4)),
            Ratio.of(f"{self.name}, {size}: PEFT's adapter_names / bare backbone (the most there is to win)",
                     seconds["peft mixed"], seconds["bare"]),
            Ratio(f"{self.name}, {size}: what adapters add, PEFT's adapter_names / mixed",
                  median(above["peft mixed"]) / max(median(above["mixed"]), 0.01 * median(seconds["bare"])),
                  **goal(at_least=4)),
            Ratio.of(f"{self.name}, {size}: mixed / one PEFT adapter", seconds["mixed"], seconds["peft one"],
                     **goal(at_most=1.2)),
            Ratio.of(f"{self.name}, {size}: mixed / bare backbone", seconds["mixed"], seconds["bare"]),
            Ratio.of(f"{self.name}, {size} and back: mixed / one PEFT adapter", seconds["train mixed"],
                     seconds["train peft one"], **goal(at_most=1.2)),
        ]  # fmt: skip

    def memory(self, options) -> dict[str, float]:
        """MiB beyond the models'."""
        return {which: round(peak_memory(case, options.device) / 2**20, 1)
                for which, case in self.cases().items()}  # fmt: skip


if __name__ == "__main__":
    main()
