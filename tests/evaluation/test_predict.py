import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from modeling_tagi import TagiModel
from modeling_tagi.data.records import Record
from modeling_tagi.data.tokenizer import train_tokenizer
from modeling_tagi.evaluation.predict import Answering
from modeling_tagi.tokens import Tokens, instruction_text, prompt_text

WORDS = "red green blue one two three four apple pear plum cat dog".split()
FAMILIES = ("t5", "llama")


def record(task, instruction, text, *targets, **fields):
    return Record(task, instruction, text, targets, **fields)


DEMONSTRATED = {"demonstrations": (("red cat", "cat"),)}
RECORDS = [  # in no order of length or task
    record("last", "say the last word", "one two three four apple pear plum", "plum", **DEMONSTRATED),
    record("first", "say the first word", "red", "red"),
    record("first", "say the first word", "cat dog plum", "cat"),
    record("last", "say the last word", "green blue", "blue", **DEMONSTRATED),
    record("first", "which word is first", "one two three four", "one"),
]
OPTIONS = [
    record("pick", "pick one", "red cat", "cat dog", options=("plum", "cat dog", "one two three")),
    record("choose", "choose one", "one", "pear", options=("pear", "red red")),
]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [f"{r.instruction} {r.input} Input: Output: Example 1:" for r in RECORDS + OPTIONS]
    return train_tokenizer([*WORDS, *texts], 60)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family, tokenizer, tmp_path_factory):
    special = {"pad_token_id": 0, "eos_token_id": 1, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    if family == "t5":
        backbone = T5ForConditionalGeneration(T5Config(
            d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
            initializer_factor=4.0, **special,
        ))  # fmt: skip
    else:
        backbone = LlamaForCausalLM(LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            max_position_embeddings=256, bos_token_id=None, initializer_range=0.5, **special,
        ))  # fmt: skip
    folder = tmp_path_factory.mktemp(family)
    backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = TagiModel.from_backbone(folder, r=4, lora_alpha=16, generator_hidden_size=8, generator_index_size=4)
    for stack in model.hypernetwork.stacks:
        for weight in stack.output_weights:
            torch.nn.init.normal_(weight, std=1.0)
    return model


@pytest.fixture(scope="module")
def tokens(family, tokenizer):
    return Tokens(tokenizer, family == "t5", max_input_length=64, max_target_length=6)


def ids_of(tokens, text):
    return torch.tensor([tokens.input(text)])


def answer(model, tokens, ids, **adapter):
    with torch.no_grad():
        output = model.generate(ids, max_new_tokens=6, do_sample=False, **adapter)[0]
    output = output if tokens.is_encoder_decoder else output[ids.shape[1]:]
    return tokens.tokenizer.decode(output, skip_special_tokens=True).strip()


def test_adapters_answer_as_one_record_after_the_other_would(model, tokens):
    model.eval()
    expected = [
        answer(model, tokens, ids_of(tokens, r.input), adapter=model.generate_adapter(r.instruction, r.demonstrations))
        for r in RECORDS
    ]
    assert len(set(expected)) > 2
    bare = [answer(model.backbone, tokens, ids_of(tokens, r.input)) for r in RECORDS]
    assert bare != expected
    for batch_size in (1, 2, 64):
        assert Answering(model, tokens, "adapter", batch_size).generate(RECORDS) == expected


def test_prompts_and_bare_inputs_go_to_the_backbone(model, tokens):
    model.eval()
    prompts = [prompt_text(r.instruction, r.input, r.demonstrations) for r in RECORDS]
    expected = [answer(model.backbone, tokens, ids_of(tokens, text)) for text in prompts]
    assert Answering(model.backbone, tokens, "prompt", 2).generate(RECORDS) == expected
    bare = [answer(model.backbone, tokens, ids_of(tokens, r.input)) for r in RECORDS]
    assert Answering(model.backbone, tokens, "input", 2).generate(RECORDS) == bare
    assert bare != expected and len(set(bare)) > 2


@pytest.mark.parametrize("method", ["generate", "rank"])
def test_each_instruction_is_encoded_once(model, tokens, method, monkeypatch):
    encoded, original = [], model._read

    def read(input_ids, attention_mask):
        encoded.extend(tuple(row[mask.bool()].tolist()) for row, mask in zip(input_ids, attention_mask))
        return original(input_ids, attention_mask)

    monkeypatch.setattr(model, "_read", read)
    records = RECORDS * 3 if method == "generate" else OPTIONS * 3
    getattr(Answering(model, tokens, "adapter", 2), method)(records)
    texts = {instruction_text(r.instruction, r.demonstrations) for r in records}
    assert sorted(encoded) == sorted(tuple(tokens.instruction(text)) for text in texts)


def test_another_instruction_can_be_put_in_a_tasks_place(model, tokens):
    swapped = {"first": "say the last word"}
    answers = Answering(model, tokens, "adapter", 4, swapped).generate(RECORDS)
    meant = [record(r.task, swapped.get(r.task, r.instruction), r.input, "x",
                    demonstrations=() if r.task in swapped else r.demonstrations) for r in RECORDS]  # fmt: skip
    assert answers == Answering(model, tokens, "adapter", 4).generate(meant)
    assert answers != Answering(model, tokens, "adapter", 4).generate(RECORDS)


def by_hand(model, tokens, text, option, **adapter):
    """Log-likelihood of the option's tokens, one after the other."""
    total, ids = 0.0, tokens.input(text)
    target = tokens.target(option)
    for position, token in enumerate(target):
        with torch.no_grad():
            if tokens.is_encoder_decoder:
                decoder = torch.tensor([[0] + target[:position]])
                logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=decoder, **adapter).logits
            else:
                logits = model(input_ids=torch.tensor([ids + target[:position]]), **adapter).logits
        total += torch.log_softmax(logits[0, -1].double(), -1)[token].item()
    return total, len(target)


@pytest.mark.parametrize("reads", ["adapter", "prompt", "input"])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_options_are_scored_by_their_likelihood(model, tokens, reads, batch_size):
    model.eval()
    asked = model if reads == "adapter" else model.backbone
    results = Answering(asked, tokens, reads, batch_size).rank(OPTIONS)
    assert [(task, right) for task, _, right in results] == [("pick", 1), ("choose", 0)]
    for (_, scores, _), rec in zip(results, OPTIONS):
        text = prompt_text(rec.instruction, rec.input) if reads == "prompt" else rec.input
        adapter = {"adapter": model.generate_adapter(rec.instruction)} if reads == "adapter" else {}
        expected = [by_hand(asked, tokens, text, option, **adapter) for option in rec.options]
        assert [total for total, _ in scores] == pytest.approx([total for total, _ in expected], abs=1e-3)
        assert [length for _, length in scores] == [length for _, length in expected]
        assert len({round(total, 2) for total, _ in scores}) == len(scores)


def test_the_model_is_left_in_the_mode_it_was_in(model, tokens):
    for training in (True, False):
        model.train(training)
        Answering(model, tokens, "adapter").generate(RECORDS[:1])
        assert all(module.training == training for module in model.modules())


def test_an_unknown_way_of_reading_is_refused(model, tokens):
    with pytest.raises(ValueError, match="reads is 'adapters', but must be one of 'adapter', 'prompt', 'input'"):
        Answering(model, tokens, "adapters")


@pytest.mark.parametrize("reads", ["input", "prompt"])
def test_given_adapters_are_applied_to_the_records_they_are_for(model, tokens, reads):
    made = model.generate_adapter(["say the last word", "say the first word", "green cat"])
    rows = {"last": 2, "first": 0}
    given = Answering(model, tokens, reads, 2, adapters=made, row_of=lambda r: rows[r.task])
    model.eval()
    texts = [prompt_text(r.instruction, r.input, r.demonstrations) if reads == "prompt" else r.input for r in RECORDS]
    expected = [answer(model, tokens, ids_of(tokens, text), adapter=made[rows[r.task]])
                for text, r in zip(texts, RECORDS)]  # fmt: skip
    assert given.generate(RECORDS) == expected
    assert expected != Answering(model, tokens, reads).generate(RECORDS)
    ranked = Answering(model, tokens, reads, 2, adapters=made, row_of=lambda r: 1).rank(OPTIONS)
    text = prompt_text("pick one", "red cat") if reads == "prompt" else "red cat"
    by_one = [by_hand(model, tokens, text, option, adapter=made[1])[0] for option in OPTIONS[0].options]
    assert [total for total, _ in ranked[0][1]] == pytest.approx(by_one, abs=1e-3)


def test_given_adapters_do_not_go_with_generated_ones(model, tokens):
    made = model.generate_adapter("say the last word")
    with pytest.raises(ValueError, match="adapters were given with reads='adapter'.*but go with 'prompt' or 'input'"):
        Answering(model, tokens, "adapter", adapters=made, row_of=lambda r: 0)
    with pytest.raises(ValueError, match="row_of=None, but go with"):
        Answering(model, tokens, "input", adapters=made)
