"""A step of finetuning, 8 tasks × 4 examples, at T5-base's shape with random weights.

    python tests/benchmarks/finetuning_step.py [--quick] [--threads 2] [--tasks 8] [--lengths 72 42 8] …

A step goes from records to changed weights: collation, forward, backward, AdamW. Cases:

    prompted        the backbone itself is finetuned, with the instruction in every input
    prediction      TAGI's generator is trained, without a teacher
    distillation    all losses; the teacher reads every batch
    states, top_k   L_pred and L_kl; the teacher's answers are in a cache on disk
    naive           a generator that encodes the instruction for every example, makes the factors of a layer in each
                    call of that layer, projects the instruction in each row's attention; no teacher
    release         as naive, and the instruction is in the input too: so do the authors' programs; its FLOPs alone

Of `prediction` and `naive` the losses are compared first: they are one function. FLOPs are counted beside the times:
where a ratio of times is near that of FLOPs, nothing is left but the arithmetic. The texts have a quarter of real
lengths (`Def+2Pos` of docs/results/costs.md): at whole ones a step of prompted finetuning needs more than 20 GiB.
"""

import tempfile
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import harness
import shapes
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import Seq2SeqTrainingArguments

from modeling_tagi.data.collate import RecordCollator
from modeling_tagi.data.records import Record
from modeling_tagi.hypernetwork import masked_mean
from modeling_tagi.lora import evaluating
from modeling_tagi.modeling_tagi import prediction_loss
from modeling_tagi.seq2seq import Seq2Seq, concat_memory
from modeling_tagi.training.objective import Objective
from modeling_tagi.training.teacher import Teacher, frozen_copy
from modeling_tagi.training.teacher_cache import KEPT, Kept, TeacherCache
from modeling_tagi.training.trainer import TagiTrainer

QUESTION = "time of a finetuning step with distillation, relative to prompted finetuning of the same backbone"


class Texts:
    """Stands for [`Tokens`]: any text is as many tokens as its kind has."""

    is_encoder_decoder, pad = True, 0

    def __init__(self, instruction: int, input: int, target: int, vocab: int):
        self.lengths, self.vocab = {"instruction": instruction, "input": input, "target": target}, vocab

    def _ids(self, kind: str, text: str) -> list[int]:
        generator = torch.Generator().manual_seed(int(text))
        return torch.randint(3, self.vocab, (self.lengths[kind],), generator=generator).tolist()

    def instruction(self, text):
        return self._ids("instruction", text)

    def input(self, text):
        return self._ids("input", text)

    def target(self, text):
        return self._ids("target", text)

    def prompt(self, instruction, input):
        return self.instruction(instruction) + self.input(input)


class Steps:
    """The cases, on one set of weights; each with an optimizer of its own."""

    def __init__(self, options, folder: str, trained: str = "generator"):
        self.device, self.folder, self.trained, tasks = options.device, folder, trained, options.tasks
        with torch.device(options.device):
            self.model = shapes.tagi(options.backbone)
        for stack in self.model.hypernetwork.stacks:  # a fresh generator's factors are zero
            for weight in stack.output_weights:
                torch.nn.init.normal_(weight, std=0.02)
        self.records = [Record(str(task), str(task), str(1000 * task + number), (str(number),))
                        for task in range(tasks) for number in range(options.examples)]  # fmt: skip
        self.texts = Texts(*options.lengths, self.model.backbone.config.vocab_size)
        bank = shapes.random_adapters(self.model, tasks).to(options.device)
        self.numbers = {str(task): task for task in range(tasks)}
        backbone = self.model.backbone  # which the teacher shares while it is not trained
        bf16 = options.dtype == "bfloat16"
        self.teacher = Teacher(backbone if trained == "generator" else frozen_copy(backbone), bank, bf16)
        self.autocast = partial(torch.autocast, options.device.split(":")[0], getattr(torch, options.dtype),
                                enabled=options.dtype != "float32")  # fmt: skip
        self.model.set_trainable(trained)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizers = {True: torch.optim.AdamW(weights, lr=1e-6, fused=True),
                           False: torch.optim.AdamW(backbone.parameters(), lr=1e-6, fused=True)}  # fmt: skip
        self.arguments = Seq2SeqTrainingArguments(output_dir=folder, report_to=[], use_cpu=options.device == "cpu")
        self.objective = Objective()  # all losses, with the paper's weights
        self.kl = replace(self.objective, alignment="none")

    def cache(self, kind: str) -> TeacherCache:
        """The teacher's answers on disk."""
        return TeacherCache.filled(Path(self.folder) / kind, self.teacher, self.collator(True), self.records,
                                   Kept(kind, temperature=self.kl.temperature))  # fmt: skip

    def collator(self, taught: bool, cache=None) -> RecordCollator:
        made = RecordCollator(self.texts, "adapter", self.numbers if taught else None, "task")
        made.answers = cache
        return made

    def tagi(self, objective=None, cache=None):
        """TagiTrainer's loss on a batch of all records."""
        collator = self.collator(objective is not None, cache)
        teacher = self.teacher if objective is not None else None
        trainer = TagiTrainer(model=self.model, args=self.arguments, data_collator=collator, batch_sampler=[],
                              objective=objective, teacher=teacher)  # fmt: skip
        return lambda: trainer.compute_loss(self.model, to(self.device, collator(self.records)))

    def prompted(self):
        batch = to(self.device, RecordCollator(self.texts, "prompt")(self.records))
        return self.model.backbone(**batch).loss

    def naive(self, instruction_in_input: bool):
        batch = to(self.device, self.collator(False)(self.records))
        if instruction_in_input:
            batch |= to(self.device, RecordCollator(self.texts, "prompt")(self.records))
        return naive_loss(self.model, **batch)

    def stepped(self, loss, hypernetwork: bool = True):
        """A step of the optimizer on `loss`, of what TAGI trains, or of the backbone in any case."""

        def step():
            self.model.set_trainable(self.trained)
            if not hypernetwork:
                self.model.backbone.requires_grad_(True)
            self.model.train()
            with self.autocast():
                value = loss()
            value.backward()
            self.optimizers[hypernetwork].step()
            self.optimizers[hypernetwork].zero_grad()

        return step


def to(device: str, batch: dict) -> dict:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def naive_loss(model, input_ids, attention_mask, labels, task_index, instruction_input_ids,
               instruction_attention_mask):  # fmt: skip
    """L_pred of a [`TagiModel`] on T5 without any sharing between the examples of a task."""
    encoder = model.backbone.get_encoder()
    mask = instruction_attention_mask[task_index]
    memory = encoder(input_ids=instruction_input_ids[task_index], attention_mask=mask)[0]
    pooled = masked_mean(memory, mask)
    pooled = F.layer_norm(pooled, pooled.shape[-1:])
    with naive_hooks(model, pooled, memory, mask):
        states = encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        states, mask = concat_memory(memory, mask, states, attention_mask)
        logits = model.backbone(encoder_outputs=(states,), attention_mask=mask, labels=labels).logits
    return prediction_loss(logits, labels)


@contextmanager
def naive_hooks(model, pooled, memory, mask):
    scaling, handles = model.config.lora_alpha / model.config.r, []
    shared = model.hypernetwork.shared_factors()

    def update(module, args, output, generator, kind, path):
        a, b = generator(kind, pooled, shared[path])
        return output + scaling * ((args[0] @ a.transpose(1, 2)) @ b.transpose(1, 2))

    def fuse(module, args, output, attention):
        keys, values = attention.project(memory)
        return (attention(output[0], keys, values, mask), *output[1:])

    for stack in model.hypernetwork.stacks:
        for paths, generator in zip(stack.paths, generators(stack)):
            for kind, path in enumerate(paths):
                hook = partial(update, generator=generator, kind=kind, path=path)
                handles.append(model.backbone.get_submodule(path).register_forward_hook(hook))
    for module, attention in zip(Seq2Seq().fused_modules(model.backbone), model.fusion):
        handles.append(module.register_forward_hook(partial(fuse, attention=attention)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def generators(stack) -> list:
    """A layer's MLP each, as if every layer had its own weights: (kind, `pooled [rows, d_model]`, shared A) -> one
    module's `A [rows, rank, d_in]` and `B [rows, d_out, rank]`."""
    shapes, weights = list(stack.kinds_by_shape), [weight.unbind() for weight in stack.output_weights]

    def generate(kind, pooled, shared_a, layer, hidden_weight, hidden_bias):
        index = stack.index[kind].expand(len(pooled), -1)
        hidden = F.relu(torch.cat([pooled, index], -1) @ hidden_weight + hidden_bias)
        d_in, d_out = stack.shapes[kind]
        flat = hidden * hidden.shape[-1] ** -0.5 @ weights[shapes.index((d_in, d_out))][layer]
        a, b = flat.split([stack.rank * d_in, stack.rank * d_out], -1)
        return shared_a + a.unflatten(-1, (stack.rank, d_in)), b.unflatten(-1, (d_out, stack.rank))

    hidden = zip(stack.hidden_weight.unbind(), stack.hidden_bias.unbind())
    return [partial(generate, layer=layer, hidden_weight=weight, hidden_bias=bias)
            for layer, (weight, bias) in enumerate(hidden)]  # fmt: skip


def require_one_function(steps: Steps):
    """Refuses to compare what does not compute the same loss."""
    with torch.no_grad(), evaluating(steps.model), steps.autocast():
        ours, theirs = steps.tagi()().item(), steps.naive(False).item()
    if abs(ours - theirs) > 0.01 * ours:
        raise RuntimeError(f"the naive generator's loss is {theirs}, ours {ours}: they are not one function")


def flops(case) -> int:
    """Of the matrix products, backward included."""
    with FlopCounterMode(display=False) as counter:
        case()
    return counter.get_total_flops()


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("--backbone", default="t5-base", help="any of shapes.py's T5")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--examples", type=int, default=4, help="of each task")
    parser.add_argument("--lengths", type=int, nargs=3, default=[72, 42, 8],
                        metavar=("INSTRUCTION", "INPUT", "TARGET"),
                        help="tokens")  # fmt: skip
    quick = {"backbone": "tiny-t5", "tasks": 4, "repeats": 2}
    options = harness.started(parser, quick)
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(options, folder)
        require_one_function(steps)
        losses = {
            "prompted": steps.prompted,
            "prediction": steps.tagi(),
            "distillation": steps.tagi(steps.objective),
            **{kind: steps.tagi(steps.kl, steps.cache(kind)) for kind in KEPT},
            "naive": partial(steps.naive, False),
            "release": partial(steps.naive, True),
        }
        cases = {name: steps.stepped(loss, name != "prompted") for name, loss in losses.items()}
        counted = {name: flops(case) for name, case in cases.items()}  # and warms up
        del cases["release"]  # the largest by far, and no other than the naive one with more tokens
        seconds = harness.measured(cases, options, warmups=0)
        memory = {name: harness.peak_memory(case, options.device, warm=False) for name, case in cases.items()}

    def time(name, one, other, **goal):
        return harness.Ratio.of(name, seconds[one], seconds[other], **goal)

    def space(name, one, other, **goal):
        return harness.Ratio(name, memory[one] / memory[other], **goal)

    rows = options.tasks * options.examples
    harness.finish(
        QUESTION,
        [
            time("distillation / prompted, time", "distillation", "prompted", at_most=1.5),
            time("naive / ours, time", "naive", "prediction", at_least=3),
            space("ours / naive, memory beyond weights and optimizer", "prediction", "naive", at_most=0.5),
            time("cached states / no distillation, time", "states", "prediction", at_most=1.15),
            time("cached top_k / no distillation, time", "top_k", "prediction", at_most=1.15),
            time("distillation / no distillation, time", "distillation", "prediction"),
            space("distillation / prompted, memory beyond weights and optimizer", "distillation", "prompted"),
            *(harness.Ratio(f"{one} / {other}, FLOPs", counted[one] / counted[other]) for one, other in (
                ("distillation", "prompted"), ("release", "prediction"), ("naive", "prediction"),
                ("states", "prediction"), ("top_k", "prediction"),
            )),
        ],
        options,
        examples_per_second={name: round(rows / sorted(times)[len(times) // 2], 3) for name, times in seconds.items()},
        peak_memory_mib={name: round(size / 2**20) for name, size in memory.items()},
        gflops={name: round(number / 1e9, 1) for name, number in counted.items()},
    )


if __name__ == "__main__":
    main()
