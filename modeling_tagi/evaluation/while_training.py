"""Scores of a model that are taken while it is finetuned, for the report's plot; nothing is chosen by them."""

from typing import Callable, Sequence

from ..data.records import Record
from ..modeling_tagi import TagiModel
from ..training.run_state import RunState
from .evaluate import spread
from .metrics import score
from .predict import Answering

MOST_RECORDS = 400


def scored_while_training(records: Sequence[Record]) -> Sequence[Record]:
    """Returns up to `MOST_RECORDS` of a split's records, spread over its tasks."""
    return spread(records, MOST_RECORDS)


def scores_on_the_way(state: RunState, split: str, records: Sequence[Record]) -> Callable[[TagiModel], dict]:
    """Returns a function that scores the model as it is: exact match and ROUGE-L of its free answers, in per cent.

    Args:
        state: The run's state; its tokens are asked for when the model is scored first.
        split: The name of the split, which goes into the scores.
        records: The split's records.
    """
    settings, records = state.settings, scored_while_training(records)

    def scores(model: TagiModel) -> dict:
        answering = Answering(model, state.tokens, settings.finetuning.reads, settings.evaluation.batch_size)
        found = score(answering.generate(records), records)
        return {"split": split, **{name: round(found[name], 2) for name in ("exact_match", "rouge_l")}}

    return scores
