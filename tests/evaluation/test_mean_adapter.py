import pytest
import torch

from modeling_tagi.data.records import Record
from modeling_tagi.evaluation.mean_adapter import mean_adapter
from modeling_tagi.tokens import Tokens

INSTRUCTIONS = {"a": "say the first word", "b": "say the last word", "c": "count"}


@pytest.fixture
def records():
    return [Record(task, text, "one two", ("one",)) for task, text in INSTRUCTIONS.items() for _ in range(2)]


@pytest.mark.parametrize("fusion", ["none", "cross_attention"])
def test_its_updates_are_the_best_approximation_of_the_mean_update(make_model, tokenizer, records, fusion):
    model = make_model("t5", fusion, "per_layer")
    model.tokenizer = tokenizer
    found = mean_adapter(model, Tokens(tokenizer, True), records, seed=0)
    assert len(found) == 1 and found.rank == model.config.r and found.memory is None
    written = model.generate_adapter(list(INSTRUCTIONS.values()))
    for path, a in found.lora_a.items():
        mean = written.scaling * (written.lora_b[path] @ written.lora_a[path]).mean(0)
        left, values, right = torch.linalg.svd(mean)
        best = left[:, :found.rank] @ values[:found.rank].diag() @ right[:found.rank]
        update = found.scaling * (found.lora_b[path] @ a)[0]
        torch.testing.assert_close(update, best, rtol=0, atol=1e-4 * float(values[0]))


def test_a_task_with_many_wordings_counts_once(make_model, tokenizer, records):
    model = make_model("t5", "none", "per_layer")
    tokens = Tokens(tokenizer, True)
    more = [Record("a", "say it", "one two", ("one",)), *records]
    one, other = (mean_adapter(model, tokens, given, seed=0) for given in (records, more))
    assert all(torch.equal(one.lora_b[path], other.lora_b[path]) for path in one.lora_b)
