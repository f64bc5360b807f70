import pytest
import torch
from transformers import T5Config

from modeling_tagi import TagiConfig, TagiModel
from modeling_tagi.data.builtin import builtin_suite
from modeling_tagi.data.records import Record
from modeling_tagi.data.tokenizer import train_tokenizer
from modeling_tagi.instructions import mean_embeddings
from modeling_tagi.tokens import Tokens
from modeling_tagi.training.known_instructions import (
    FEWEST,
    drawn_instructions,
    grouped,
    index_instructions,
    spread_rows,
)


@pytest.fixture(scope="module")
def suite():
    splits = builtin_suite(train_instances=4, eval_instances=4)
    tokenizer = train_tokenizer([r.instruction for r in splits["train"]], 300)
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
                      pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    model = TagiModel(TagiConfig(backbone_config=config, r=2, generator_hidden_size=4, generator_index_size=2)).eval()
    return model, Tokens.of(tokenizer, model.config), splits


@pytest.mark.parametrize("publish", [True, False])
def test_new_tasks_are_near_and_other_kinds_of_text_are_far(suite, publish):
    model, tokens, splits = suite
    index = index_instructions(model, tokens, splits["train"], publish=publish)

    def far(texts):
        vectors = mean_embeddings(model.get_input_embeddings(), [tokens.instruction(text) for text in texts])
        return (index.distances(vectors).min(1).values > index.threshold).float().mean().item()

    assert far({r.instruction for r in splits["unseen"]}) < 0.05
    assert far(["oak plum tea", "cat cat cat cat", "yes", "no no"]) == 1
    assert index.notes["instructions"] > 1000
    assert len(index.vectors) == 1000 if publish else 50 < len(index.vectors) <= 100
    assert len(index.texts) == 1000 if publish else index.texts is None
    assert index.threshold == max(index.notes["task_left_out"], index.notes["group_left_out"]) > 0


FOUR = {"a1": "write the plum", "a2": "write the pear", "b1": "say the hat now", "b2": "say the coat now"}


def test_the_threshold_is_of_tasks_and_groups_left_out(suite):
    model, tokens, _ = suite
    texts = FOUR
    records = [Record(task, text, "oak", ("oak",), task[0]) for task, text in texts.items()]
    index = index_instructions(model, tokens, records)
    vectors = mean_embeddings(model.get_input_embeddings(), [tokens.instruction(t) for t in texts.values()])
    apart = torch.cdist(vectors, vectors)
    others = apart + torch.eye(4) * 1e9
    strangers = apart + torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)) * 1e9
    expected = max(others.min(1).values.quantile(0.99), strangers.min(1).values.quantile(0.75))
    assert index.threshold == pytest.approx(expected.item(), rel=1e-5)


def test_a_mean_over_instructions_is_held_against_those_that_are_not_in_it(suite):
    model, tokens, _ = suite
    records = [Record(task, text, "oak", ("oak",), task[0]) for task, text in FOUR.items()]
    index = index_instructions(model, tokens, records, publish=False)
    vectors = mean_embeddings(model.get_input_embeddings(), [tokens.instruction(text) for text in FOUR.values()])
    torch.testing.assert_close(index.vectors, vectors.mean(0, keepdim=True))
    others = torch.stack([(v - (vectors.sum(0) - v) / 3).norm() for v in vectors])
    strangers = torch.stack([(v - vectors[2 - 2 * (n // 2):][:2].mean(0)).norm() for n, v in enumerate(vectors)])
    assert index.threshold == pytest.approx(max(others.quantile(0.99), strangers.quantile(0.75)).item(), rel=1e-5)


@pytest.mark.parametrize("sizes", [[20, 20, 20], [40, 2, 18], [4], [1, 1, 30], [6] * 9])
def test_no_group_is_smaller_than_what_may_be_told(sizes):
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(len(sizes), 3, generator=generator)
    rows = torch.cat([c + 0.1 * torch.randn(n, 3, generator=generator) for c, n in zip(centres, sizes)])
    members = grouped(rows, 6)
    counts = members.bincount()
    assert counts.min() >= min(FEWEST, len(rows)) and len(counts) <= 6 and counts.sum() == len(rows)
    assert torch.equal(members, grouped(rows, 6))
    if sizes == [20, 20, 20]:  # like ones are together
        assert all(len(set(members[start: start + 20].tolist())) <= 2 for start in (0, 20, 40))


def test_a_single_task_has_no_index(suite):
    model, tokens, _ = suite
    assert index_instructions(model, tokens, [Record("a", "write the plum", "oak", ("oak",))]) is None


def test_rows_are_chosen_far_apart():
    rows = torch.tensor([[0.0], [0.1], [10.0], [0.2], [5.0]])
    assert spread_rows(rows, 3) == [0, 2, 4] and spread_rows(rows, 9) == [0, 1, 2, 3, 4]


def test_statistics_are_of_unique_instructions_drawn_by_the_seed(records, make_tokens):
    tokens = make_tokens()
    everything = drawn_instructions(tokens, records + records, seed=0)
    unique = {record.instruction for record in records}
    assert len(everything) == len(unique)
    drawn = drawn_instructions(tokens, records, seed=0, most=len(unique) - 1)
    assert drawn == drawn_instructions(tokens, records, seed=0, most=len(unique) - 1)
    assert len(drawn) == len(unique) - 1 and all(row in everything for row in drawn)
