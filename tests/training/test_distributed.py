"""Two processes train as one does. This file is the test and, run as a script, what the processes do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Seq2SeqTrainingArguments, T5Config

from modeling_tagi import TagiAdapter, TagiConfig, TagiModel
from modeling_tagi.training.trainer import Drawn, Objective, TagiTrainer, Teacher, frozen_copy


def rows():
    """12 rows of 2 tasks in turn, with 1 to 3 target tokens."""
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randint(2, 30, (5 + 1 + n % 3,), generator=generator) for n in range(12)]
    return [{"input": ids[:5], "target": ids[5:], "task": n % 2} for n, ids in enumerate(draw)]


def collate(chosen):
    inputs = torch.stack([row["input"] for row in chosen])
    labels = pad_sequence([row["target"] for row in chosen], batch_first=True, padding_value=-100)
    instructions = torch.tensor([[3, 4, 5], [6, 7, 8]])
    read = {"input_ids": inputs, "attention_mask": torch.ones_like(inputs), "labels": labels}
    return {
        **read, **{f"teacher_{name}": x for name, x in read.items()}, "teacher_index": torch.tensor([0, 1]),
        "task_index": torch.tensor([row["task"] for row in chosen]), "instruction_input_ids": instructions,
        "instruction_attention_mask": torch.ones_like(instructions),
    }  # fmt: skip


def main(folder):
    torch.manual_seed(0)
    backbone = T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = TagiModel(TagiConfig(
        backbone_config=backbone, r=2, lora_alpha=4, generator_hidden_size=8, generator_index_size=4
    ))  # fmt: skip
    for stack in model.hypernetwork.stacks:
        for weight in stack.output_weights:
            torch.nn.init.normal_(weight, std=0.3)
    a = {path: x.detach().expand(2, -1, -1).clone() for path, x in model.hypernetwork.shared_factors().items()}
    bank = TagiAdapter(a, {path: torch.randn(2, 16, 2) * 0.3 for path in a}, 4)
    model.set_trainable("all")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    args = Seq2SeqTrainingArguments(
        output_dir=folder, max_steps=1, optim="sgd", learning_rate=0.01, lr_scheduler_type="constant", max_grad_norm=0,
        save_strategy="no", report_to=[], remove_unused_columns=False, label_names=["labels"], use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = TagiTrainer(
        model=model,
        args=args,
        train_dataset=Drawn(rows()),
        data_collator=collate,
        batch_sampler=[list(range(4)), list(range(4, 12))] if processes == 2 else [list(range(12))],
        objective=Objective(2.0, 2.0, 3.0, "delta", 0.5),
        teacher=Teacher(frozen_copy(model.backbone), bank),
    )
    before = {name: x.clone() for name, x in model.state_dict().items()}
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save({"before": before, "after": model.state_dict()}, Path(folder) / f"{processes}.pt")


@pytest.mark.slow
def test_two_processes_take_the_step_of_one_with_both_batches(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command in ([], launch):
        subprocess.run(
            [sys.executable, *command, __file__, str(tmp_path)], env=environment, check=True, timeout=300
        )
    one, two = (torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2))
    assert max((x - one["before"][name]).abs().max() for name, x in one["after"].items()) > 1e-3
    assert all(torch.allclose(two["after"][name], x, atol=1e-6) for name, x in one["after"].items())


if __name__ == "__main__":
    main(sys.argv[1])
