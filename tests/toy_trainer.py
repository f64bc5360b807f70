"""A trainer of the tiny models on their records, and what tests ask of it."""

import pytest
import torch
from transformers.trainer_callback import PrinterCallback

from modeling_tagi.data.collate import RecordCollator
from modeling_tagi.data.sampling import Drawn
from modeling_tagi.training.objective import Objective
from modeling_tagi.training.trainer import TagiTrainer

FAMILIES = ("t5", "llama")
PREDICTION = Objective(distillation_weight=0, alignment="none")
ALL_TERMS = Objective(distillation_weight=2.0, alignment="delta", alignment_weight=0.5)
GROUPS = {"one": 0, "two": 1}


@pytest.fixture
def make_trainer(records, make_tokens, training_arguments):
    def make(model, batches, family="t5", objective=None, teacher=None, bank=GROUPS, eval_dataset=None,
             **arguments):  # fmt: skip
        collator = RecordCollator(make_tokens(family), bank_index=bank if teacher is not None else None)
        trainer = TagiTrainer(
            model=model,
            args=training_arguments(**arguments),
            train_dataset=Drawn(records),
            eval_dataset=eval_dataset,
            data_collator=collator,
            batch_sampler=batches,
            objective=objective,
            teacher=teacher,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make


def weights(model):
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def batch_of(trainer, records):
    return trainer.data_collator(records)
