import pytest
import torch
from toy_records import TRAIN, record

from modeling_tagi import TagiAdapter, TagiModel
from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.evaluation.backbones import adaptable
from modeling_tagi.evaluation.nearest_adapter import encode_instructions, nearest_adapters, nearest_rows
from modeling_tagi.evaluation.predict import Answering
from modeling_tagi.hypernetwork import masked_mean
from modeling_tagi.tokens import Tokens

FAMILIES = ("t5", "llama")


def read_tokens(family, tokenizer):
    return Tokens(tokenizer, family == "t5", 64, 4)


def test_the_nearest_is_the_one_with_the_highest_cosine_whatever_its_length():
    # cosines to (1, 0): 0.6, 0.8, 0; to (0, 5): 0.8, 0.6, 1
    candidates = torch.tensor([[3.0, 4.0], [0.08, 0.06], [0.0, 1.0]])
    assert nearest_rows(torch.tensor([[1.0, 0.0], [0.0, 5.0]]), candidates) == [1, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoding_is_what_the_hypernetwork_pools(make_model, tokenizer, family, monkeypatch):
    model, tokens = make_model(family, fusion="none"), read_tokens(family, tokenizer)
    pooled = []
    forward = type(model.hypernetwork).forward

    def remembered(self, x):
        pooled.append(x)
        return forward(self, x)

    monkeypatch.setattr(type(model.hypernetwork), "forward", remembered)
    texts = ["say the first word", "count"]
    for text in texts:
        model.adapter_from_ids(torch.tensor([tokens.instruction(text)]))
    for asked in (model, model.backbone):
        for batch_size in (1, 2):
            encoded = encode_instructions(asked, tokens, texts, batch_size)
            assert encoded.shape == (2, 32) and torch.allclose(encoded, torch.cat(pooled[:2]), atol=1e-5)


@pytest.fixture(params=FAMILIES)
def bank(request, make_model, tokenizer, tmp_path):
    """Adapters of two tasks and one group, tuned (as it were) on a backbone; with that backbone and its tokens."""
    family = request.param
    model, tokens = make_model(family, fusion="none"), read_tokens(family, tokenizer)
    model.tokenizer = tokenizer
    bank = AdapterBank(tmp_path / "bank")
    generator = torch.Generator().manual_seed(0)
    for name in ("count", "first", "other"):
        shapes = model.generate_adapter("x")
        b = {path: torch.randn(x.shape, generator=generator) for path, x in shapes.lora_b.items()}
        adapter = TagiAdapter(shapes.lora_a, b, shapes.lora_alpha, peft_config=shapes.peft_config)
        bank.add([name], adapter, [{"reads": "input"}])
    return bank, model, tokens


def test_a_task_is_answered_with_the_adapter_of_its_nearest_instruction(bank):
    bank, model, tokens = bank
    start = Answering(model.backbone, tokens, "prompt", 2)
    # as trained ones are written: nothing can be nearer
    records = [record("p", "how many letters are there", "c d e"), record("q", "which word is first", "a"),
               record("r", "what does not belong", "f g")]  # fmt: skip
    adapters = bank.load()
    for reads, expected_reads in ((None, "input"), ("prompt", "prompt")):
        nearest = nearest_adapters(start, bank, TRAIN, records, model.config, reads)
        assert [nearest.row_of(r) for r in records] == [0, 1, 2]  # "other" is a group
        assert nearest.reads == expected_reads
        alone = [
            Answering(adaptable(model.backbone, model.config), tokens, expected_reads, adapters=adapters[row],
                      row_of=lambda _: 0).generate([r])[0]
            for row, r in enumerate(records)
        ]  # fmt: skip
        assert nearest.generate(records) == alone
    assert alone != start.generate(records)


def test_the_nearest_is_taken_by_the_encodings(bank):
    bank, model, tokens = bank
    start = Answering(model.backbone, tokens, "prompt")
    asked = [record("p", "say the last letter"), record("q", "sum of the numbers"), record("r", "z")]
    known = {r.instruction: {"words": 1, "numbers": 0, "other": 2}[r.group] for r in TRAIN}

    def pooled(text):
        ids = torch.tensor([tokens.instruction(text)])
        encoder = model.backbone.get_encoder() if tokens.is_encoder_decoder else model.backbone.base_model
        return masked_mean(encoder(input_ids=ids)[0], torch.ones_like(ids))[0]

    nearest = nearest_adapters(start, bank, TRAIN, asked)
    for r in asked:
        cosine = {text: torch.cosine_similarity(pooled(r.instruction), pooled(text), 0).item() for text in known}
        assert nearest.row_of(r) == known[max(cosine, key=cosine.get)]


def test_a_bank_of_other_tasks_is_refused(bank):
    bank, model, tokens = bank
    start = Answering(model.backbone, tokens, "prompt")
    with pytest.raises(ValueError, match="has adapters of count, first, other, …; none is a task or group of the"):
        nearest_adapters(start, bank, [record("new", "never seen")], TRAIN)
    with pytest.raises(FileNotFoundError, match="run the stage task_adapters first"):
        nearest_adapters(start, AdapterBank(bank.folder / "nothing"), TRAIN, TRAIN)
    assert isinstance(adaptable(model), TagiModel)
