"""Task adapters tuned together over one backbone, against a run of PEFT for each.

    python tests/benchmarks/task_adapters.py [--quick] [--tasks 32] [--steps 40] …

Both tune the same adapters from the same start on the same examples in the same order, and end at the same losses,
which is shown. The shape and the length are those that the package tunes on two cores: the quickstart's backbone and
tasks of the built-in suite (a list of words in, a few words out), 4 examples of each in a step. There a step of one
adapter is too small for the machine. The table says how the gain falls with the size of a step: where one adapter's
step keeps the machine busy, both do the same arithmetic, and there is nothing more to win.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import Ratio, finish, measured, parser, peak_memory, started
from peft import LoraConfig, get_peft_model
from shapes import backbone_config

from modeling_tagi import TagiConfig, TagiModel
from modeling_tagi.common.yaml_files import read_yaml
from modeling_tagi.data.builtin import builtin_suite
from modeling_tagi.data.collate import RecordCollator
from modeling_tagi.data.sampling import TaskBatchSampler, fewer_tasks
from modeling_tagi.data.tokenizer import train_tokenizer
from modeling_tagi.lora import remove_hooks
from modeling_tagi.tokens import Tokens
from modeling_tagi.training.backbones import made_config
from modeling_tagi.training.task_adapters import AdapterTuner

QUICKSTART = Path(__file__).parents[2] / "hub_configs" / "quickstart.yaml"
QUESTION = "tuning of task adapters: a run of PEFT for each, relative to all together over one backbone"


def main():
    made = parser(__doc__)
    made.add_argument("--tasks", type=int, default=32, help="adapters")
    made.add_argument("--steps", type=int, default=40)
    made.add_argument("--examples", type=int, default=4, help="of each task in a step")
    made.add_argument("--learning_rate", type=float, default=1e-2)
    made.add_argument("--shapes", nargs="*", default=["tiny-t5", "t5-small", "tiny-llama"], help="of the table")
    made.add_argument("--table_examples", type=int, nargs="*", default=[1, 16], help="of the table, first shape")
    options = started(made, quick={"steps": 10, "repeats": 3, "shapes": [], "table_examples": [1]})

    case = Case("quickstart", options.tasks, options.examples, options.steps, options)
    seconds = measured({"together": case.together, "peft": case.apart}, options)
    ratios = [Ratio.of(f"{options.tasks} runs of PEFT / together", seconds["peft"], seconds["together"], at_least=4)]
    ours, theirs = case.together(), case.apart()
    other = Case("quickstart", options.tasks, options.examples, options.steps, options, seed=1).together()
    noise = statistics.fmean(abs(x - y) for x, y in zip(ours, other))
    ratios.append(Ratio("difference of a task's final loss / that of another draw of examples, means over tasks",
                        statistics.fmean(abs(x - y) for x, y in zip(ours, theirs)) / noise, at_most=1))  # fmt: skip
    losses = {
        "first": statistics.fmean(case.first_losses()), "together": statistics.fmean(ours),
        "peft": statistics.fmean(theirs), "another_draw": statistics.fmean(other),
        "largest_difference_of_a_task": max(abs(x - y) for x, y in zip(ours, theirs)),
    }  # fmt: skip
    memory = {"together": peak_memory(case.together, options.device),
              "one run of peft": peak_memory(lambda: case.alone(0), options.device)}  # fmt: skip
    sizes = [("quickstart", examples) for examples in options.table_examples]
    sizes += [(shape, options.examples) for shape in options.shapes]
    table = []
    for shape, examples in sizes:
        steps = 2 if shape == "t5-small" else 5
        small = Case(shape, options.tasks, examples, steps, options)
        found = measured({"together": small.together, "peft": small.apart}, options, warmups=0)
        table.append({
            "shape": shape, "examples": examples, "tokens_of_a_tasks_step": small.tokens_of_a_step(),
            "ratio": round(Ratio.of("", found["peft"], found["together"]).value, 3),
        })  # fmt: skip
        print(table[-1], flush=True)
    finish(
        QUESTION, ratios, options, table=table, tokens_of_a_tasks_step=case.tokens_of_a_step(),
        final_loss={name: round(value, 6) for name, value in losses.items()},
        memory_mib={name: round(value / 2**20, 1) for name, value in memory.items()},
    )  # fmt: skip


@dataclass
class Drawn:
    """The batches of a run: all tasks' rows of each step, and each task's own."""

    together: list[dict]
    alone: list[list[dict]]


class Case:
    """A backbone of some shape, tasks of the built-in suite, and both ways to tune adapters for them."""

    def __init__(self, shape: str, tasks: int, examples: int, steps: int, options, seed: int = 0):
        settings = read_yaml(QUICKSTART)
        records = fewer_tasks(builtin_suite(train_instances=40)["train"], tasks)
        tokenizer = train_tokenizer((f"{r.input} {r.targets[0]}" for r in records), settings["backbone"]["vocab_size"])
        if shape == "quickstart":
            config = made_config({"vocab_size": len(tokenizer), **settings["backbone"]["config"]})
        else:
            config = backbone_config(shape)
        torch.manual_seed(0)
        self.model = TagiModel(TagiConfig(config, **{**settings["tagi"], "fusion": "none"}))
        embeddings = self.model.get_input_embeddings().weight
        torch.nn.init.normal_(embeddings, std=settings["backbone"]["embedding_std"])
        self.model.to(options.device).requires_grad_(False).eval()
        self.names, self.learning_rate = list(dict.fromkeys(r.task for r in records)), options.learning_rate
        self.drawn = self._draw(records, Tokens.of(tokenizer, self.model.config), examples, steps, seed)

    def _draw(self, records, tokens, examples: int, steps: int, seed: int) -> Drawn:
        collate = RecordCollator(tokens, "input", {name: n for n, name in enumerate(self.names)}, "task")
        together, alone = [], [[] for _ in self.names]
        for rows in TaskBatchSampler(records, len(self.names), examples, steps, seed, every=True):
            together.append(self._placed(collate([records[row] for row in rows])))
            for task, name in enumerate(self.names):
                own = self._placed(collate([records[row] for row in rows if records[row].task == name]))
                own.pop("adapter_index")
                alone[task].append(own)
        return Drawn(together, alone)

    def _placed(self, batch: dict) -> dict:
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def tokens_of_a_step(self) -> float:
        """Tokens that one task's step reads and writes, a mean."""
        return statistics.fmean(
            batch["input_ids"].numel() + batch["labels"].numel() for task in self.drawn.alone for batch in task
        )

    def together(self) -> list[float]:
        """The final losses of adapters that are tuned side by side."""
        shared = self.model.hypernetwork.shared_factors()
        tuner = AdapterTuner(self.model.backbone, self.names, shared, self.model.config.lora_alpha).train()
        optimizer = self._optimizer(tuner.parameters())
        for batch in self.drawn.together:
            optimizer.zero_grad()
            tuner(**batch)["loss"].backward()
            optimizer.step()
        adapter = tuner.eval().adapter().detach()
        return [self._final_loss(task, adapter[task]) for task in range(len(self.names))]

    def apart(self) -> list[float]:
        """The final losses of adapters that PEFT tunes one after the other."""
        return [self.alone(task) for task in range(len(self.names))]

    def alone(self, task: int) -> float:
        """The final loss of a run of PEFT."""
        config, backbone = self.model.config, self.model.backbone
        remove_hooks(backbone)
        shared = self.model.hypernetwork.shared_factors()
        peft = get_peft_model(backbone, LoraConfig(
            r=config.r, lora_alpha=config.lora_alpha, lora_dropout=0.0, target_modules=list(shared),
        )).train()  # fmt: skip
        with torch.no_grad():
            for path, a in shared.items():
                backbone.get_submodule(path).lora_A["default"].weight.copy_(a)
        optimizer = self._optimizer(x for x in peft.parameters() if x.requires_grad)
        for batch in self.drawn.alone[task]:
            optimizer.zero_grad()
            peft(**batch).loss.backward()
            optimizer.step()
        with torch.no_grad():
            loss = peft.eval()(**self.drawn.alone[task][-1]).loss.item()
        peft.unload()
        return loss

    def _optimizer(self, weights):
        return torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=0.0, fused=True)

    def first_losses(self) -> list[float]:
        return [self._final_loss(task, None) for task in range(len(self.names))]

    @torch.no_grad()
    def _final_loss(self, task: int, adapter) -> float:
        """Of the examples of a task's last step."""
        return self.model(**self.drawn.alone[task][-1], adapter=adapter).loss.item()


if __name__ == "__main__":
    main()
