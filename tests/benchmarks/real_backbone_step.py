"""A step that trains a generator for a frozen language model, 8 tasks × 2 rows of 160 tokens, at SmolLM2-135M's shape.

    python tests/benchmarks/real_backbone_step.py [--quick] [--threads 2] [--dtype bfloat16] [--rows 16] …

A step goes from a batch to changed weights: forward, backward, AdamW. Adapters are of rank 8 on q and v. Cases:

    tagi        a step of TagiTrainer whose instructions were read in an earlier step
    first read  the same, whose instructions are all new
    plain       the model's own forward, as TagiTrainer had it at 8afda04: logits of every position, instructions
                encoded in every step, with a graph
    lora        one LoRA of PEFT for all rows, with the same rank and targets, in transformers' Trainer

Random weights: a step takes as long as with those of the language model.
"""

import tempfile
from functools import partial

import harness
import shapes
import torch
from transformers import AutoModelForCausalLM, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from modeling_tagi.training.step_outputs import KeptInstructions
from modeling_tagi.training.trainer import TagiTrainer

QUESTION = "time of a step that trains a generator for a frozen model, relative to the plain way"


def random_batch(options, vocab: int) -> dict[str, torch.Tensor]:
    """Rows whose last tokens are their targets, and the instructions of their tasks."""
    rows, tasks = options.rows, options.tasks
    ids = torch.randint(3, vocab, (rows, options.input + options.target))
    labels = ids.clone()
    labels[:, :options.input] = -100
    instructions = torch.randint(3, vocab, (tasks, options.instruction))
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels,
        "instruction_input_ids": instructions, "instruction_attention_mask": torch.ones_like(instructions),
        "task_index": torch.arange(tasks).repeat_interleave(rows // tasks),
    }  # fmt: skip


def stepped(model, loss, autocast):
    """A step of AdamW on `loss`, of all that is trained."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)

    def step():
        model.train()
        with autocast():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("--backbone", default="smollm2", help="a causal one of shapes.py")
    parser.add_argument("--generator_hidden_size", type=int, default=64)
    for name, default in (("rows", 16), ("tasks", 8), ("input", 136), ("target", 24), ("instruction", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    quick = {"backbone": "tiny-llama", "repeats": 2}
    options = harness.started(parser, quick)
    config = shapes.backbone_config(options.backbone)
    fields = {"r": 8, "lora_alpha": 16, "fusion": "none", "generator": "shared",
              "generator_hidden_size": options.generator_hidden_size}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, torch.device(options.device):
        model = shapes.tagi(options.backbone, target_modules=["q_proj", "v_proj"], **fields)
        model.set_trainable("generator")
        peft = shapes.with_peft(model, AutoModelForCausalLM.from_config(config), 1)
        batch = random_batch(options, config.vocab_size)
        autocast = partial(torch.autocast, options.device.split(":")[0], getattr(torch, options.dtype),
                           enabled=options.dtype != "float32")  # fmt: skip
        given = {"output_dir": folder, "report_to": [], "use_cpu": options.device == "cpu"}
        ours = TagiTrainer(model=model, args=Seq2SeqTrainingArguments(**given), data_collator=None, batch_sampler=[])
        theirs = Trainer(model=peft, args=TrainingArguments(**given))
        alone = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}

        def first_read():
            ours._instructions = KeptInstructions()
            return ours.compute_loss(model, dict(batch))

        losses = {
            "tagi": (model, lambda: ours.compute_loss(model, dict(batch))),
            "first read": (model, first_read),
            "plain": (model, lambda: model(**batch).loss),
            "lora": (peft, lambda: theirs.compute_loss(peft, dict(alone))),
        }
        with torch.no_grad(), autocast():
            one, other = losses["tagi"][1]().item(), losses["plain"][1]().item()
        if abs(one - other) > 0.01 * other:
            raise RuntimeError(f"TagiTrainer's loss is {one}, the plain one {other}: they are not one function")
        cases = {name: stepped(of, loss, autocast) for name, (of, loss) in losses.items()}
        seconds = harness.measured(cases, options)
        memory = {name: harness.peak_memory(case, options.device, warm=False) for name, case in cases.items()}
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    tokens = options.rows * (options.input + options.target)
    harness.finish(
        QUESTION,
        [
            harness.Ratio.of("tagi / plain, time", seconds["tagi"], seconds["plain"], at_most=0.5),
            harness.Ratio("tagi / plain, memory beyond weights and optimizer", memory["tagi"] / memory["plain"],
                          at_most=0.6),
            harness.Ratio.of("tagi / lora, time", seconds["tagi"], seconds["lora"], at_most=1.1),
            harness.Ratio.of("first read / lora, time", seconds["first read"], seconds["lora"]),
            harness.Ratio("tagi / lora, memory beyond weights and optimizer", memory["tagi"] / memory["lora"]),
        ],
        options,
        trained_parameters=trained,
        milliseconds_a_token={name: round(1000 * sorted(times)[len(times) // 2] / tokens, 2)
                              for name, times in seconds.items()},
        peak_memory_mib={name: round(size / 2**20) for name, size in memory.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
