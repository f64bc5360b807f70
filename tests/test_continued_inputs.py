"""What a causal model reads behind the instruction: the prompt, and no second beginning of text."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from modeling_tagi import TagiConfig, TagiModel
from modeling_tagi.configuration_tagi import new_model_fields
from modeling_tagi.data.collate import RecordCollator
from modeling_tagi.data.records import Record
from modeling_tagi.tokens import Tokens, generation_tensors
from modeling_tagi.training.stage_keys import settings_of
from modeling_tagi.training.stages import STAGES

WORDS = "say yes no to it a b c d e Input : Output user model".split()
SPECIAL = ["<pad>", "</s>", "<s>", "<unk>", "<turn>", "<end>"]
ROWS = [("say yes", "a b c d"), ("say no to it a", "e"), ("say it", "b <s> c")]
FAMILIES = ["llama", "gemma2", "gpt2", "gpt_neox"]


@pytest.fixture
def make_tokenizer():
    """`make_tokenizer(mark, end)`: words behind `mark`, which is `<s>` for the tiny backbones, and before `end`."""

    def make(mark="<s>", end=""):
        inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*SPECIAL, *WORDS])}, "<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        special = [(word, SPECIAL.index(word)) for word in (mark, end) if word]
        if special:
            whole = f"{mark} $A {end}".strip()
            inner.post_processor = processors.TemplateProcessing(single=whole, special_tokens=special)
        made = PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
        )
        made.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>"]})
        made.chat_template = (
            "{{ bos_token }}{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else 'user' }} "
            "{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>model {% endif %}"
        )
        return made

    return make


@pytest.fixture
def made(make_model, make_tokenizer):
    """`made(family, fusion, **fields)`: a model that changes nothing yet, whose inputs continue instructions."""

    def make(family="llama", fusion="concat", tokenizer=None, **fields):
        model = make_model(family, fusion, awake=False, **{"continues_instruction": True, **fields})
        model.tokenizer = tokenizer or make_tokenizer(end="</s>")  # whose end is no part of a prompt
        return model

    return make


def prompts(model, rows=ROWS):
    tokens = Tokens.of(model.tokenizer, model.config)
    return [torch.tensor([tokens.prompt(*row)]) for row in rows]


@torch.no_grad()
def last_logits(model, ids):
    return model.backbone(ids).logits[0, -1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fusion", ["concat", "cross_attention"])
def test_behind_its_instruction_an_input_is_read_as_the_prompt_is(made, family, fusion):
    model = made(family, fusion)
    tokens = Tokens.of(model.tokenizer, model.config)
    adapter = model.generate_adapter([instruction for instruction, _ in ROWS])
    expected = torch.stack([last_logits(model, prompt) for prompt in prompts(model)])
    for batch in (  # padded on either side, or not at all
        model.encode_inputs([text for _, text in ROWS]),
        RecordCollator(tokens)([Record("t", *row, ("yes",)) for row in ROWS]),
    ):
        with torch.no_grad():
            logits = model(batch["input_ids"], batch["attention_mask"], adapter=adapter).logits
        labels = batch.get("labels", torch.full_like(batch["input_ids"], -100))
        ends = (batch["attention_mask"].bool() & (labels == -100)).long() * torch.arange(logits.shape[1])
        found = logits[torch.arange(len(ROWS)), ends.argmax(1)]
        assert torch.allclose(found, expected, atol=1e-5)
    for number, (_, text) in enumerate(ROWS):
        with torch.no_grad():
            alone = model(model.encode_inputs(text)["input_ids"], adapter=adapter[number]).logits[0, -1]
        assert torch.allclose(alone, expected[number], atol=1e-5)


def test_instruction_and_input_are_the_prompts_tokens(made):
    tokens = Tokens.of(made().tokenizer, made().config)
    for instruction, text in ROWS:
        assert tokens.instruction(instruction) + tokens.input(text)[1:] == tokens.prompt(instruction, text)


@pytest.mark.parametrize("options", [
    {}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}, {"cache_implementation": "static"},
], ids=["greedy", "beams", "samples", "static"])  # fmt: skip
def test_what_is_generated_is_what_the_prompt_gives(made, options):
    model, options = made(), {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 99, **options}
    batch, adapter = model.encode_inputs([text for _, text in ROWS]), model.generate_adapter([x for x, _ in ROWS])
    whole = generation_tensors(Tokens.of(model.tokenizer, model.config), [p[0].tolist() for p in prompts(model)])
    torch.manual_seed(0)
    expected = model.backbone.generate(**whole, **options)[:, whole["input_ids"].shape[1]:]
    torch.manual_seed(0)
    found = model.generate(**batch, adapter=adapter, **options)[:, batch["input_ids"].shape[1]:]
    assert torch.equal(found, expected)
    index = torch.tensor([2, 0])
    again = model.generate(batch["input_ids"][index], adapter=adapter, task_index=index, max_new_tokens=6,
                           do_sample=False, eos_token_id=99)  # fmt: skip
    if not options.get("do_sample") and "num_beams" not in options:
        assert torch.equal(again[:, batch["input_ids"].shape[1]:], expected[index])


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_later_calls_know_what_an_earlier_one_did_not_see(made, cut):
    model = made()
    batch, adapter = model.encode_inputs([text for _, text in ROWS]), model.generate_adapter([x for x, _ in ROWS])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        whole = model(ids, mask, adapter=adapter).logits[:, -1]
        cache = None
        for start in range(0, ids.shape[1], cut):
            end = min(start + cut, ids.shape[1])
            part = model(ids[:, start:end], mask[:, :end], adapter=adapter, past_key_values=cache, use_cache=True)
            cache = part.past_key_values
        assert torch.allclose(part.logits[:, -1], whole, atol=1e-5)
        # and a row of its own without a mask
        one = model(ids[:1], adapter=adapter[0]).logits[:, -1]
        first = model(ids[:1, :3], adapter=adapter[0], use_cache=True)
        second = model(ids[:1, 3:], adapter=adapter[0], past_key_values=first.past_key_values)
        assert torch.allclose(second.logits[:, -1], one, atol=1e-5)


@pytest.mark.parametrize("copies", [{"do_sample": False}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_cache_of_generate_goes_on(made, copies):
    model = made()
    batch, adapter = model.encode_inputs(["a b", "c d"]), model.generate_adapter("say it")
    out = model.generate(**batch, adapter=adapter, max_new_tokens=3, eos_token_id=99,
                         return_dict_in_generate=True, **copies)  # fmt: skip
    with torch.no_grad():
        whole = model(out.sequences, adapter=adapter).logits[:, -1]
        cache = out.past_key_values
        new = out.sequences[:, cache.get_seq_length() - adapter.memory.mask.shape[1]:]
        last = model(new, adapter=adapter, past_key_values=cache).logits[:, -1]
    assert torch.allclose(last, whole, atol=1e-5)


def test_without_an_instruction_to_continue_the_beginning_stays(made):
    for model, adapter in ((made(), None), (made(), "without"), (made(fusion="none"), "own")):
        if adapter is not None:
            adapter = model.generate_adapter("say it").without_memory()
        ids = model.encode_inputs("a b")["input_ids"]
        assert ids[0, 0] == model.config.bos_token_id
        with torch.no_grad():
            assert torch.allclose(model(ids, adapter=adapter).logits, model.backbone(ids).logits, atol=1e-5)
    plain = made(fusion="none", continues_instruction=False)
    assert torch.equal(plain.generate_adapter("say it").lora_a["model.layers.0.self_attn.q_proj"],
                       made(fusion="none").generate_adapter("say it").lora_a["model.layers.0.self_attn.q_proj"])


def test_training_has_gradients_alike_with_checkpointing(made):
    model, grads = made(fusion="cross_attention"), []
    batch = RecordCollator(Tokens.of(model.tokenizer, model.config))([Record("t", *row, ("yes",)) for row in ROWS])
    for checkpointing in (False, True):
        model.train()
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**batch).loss.backward()
        grads.append([p.grad.clone() for p in model.hypernetwork.parameters() if p.grad is not None])
    assert grads[0] and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads))


def test_a_chat_begins_once(made, make_tokenizer):
    for mark in ("<s>", ""):  # the tokenizer has it, or the template alone
        model = made(tokenizer=make_tokenizer(mark), input_format="chat")
        tokens = Tokens.of(model.tokenizer, model.config)
        ids = tokens.instruction("say it") + tokens.input("a b")[1:]
        shown = " ".join(model.tokenizer.convert_ids_to_tokens(ids))
        assert shown == "<s> say it <turn> user a b <end> <turn> model"
        adapter, batch = model.generate_adapter("say it"), model.encode_inputs(["a b", "a b c d"])
        with torch.no_grad():
            found = model(**batch, adapter=adapter).logits[0, -1]
        assert torch.allclose(found, last_logits(model, torch.tensor([ids])), atol=1e-5)


def test_a_checkpoint_that_says_nothing_reads_as_before(made, make_tokenizer, tmp_path):
    model = made(continues_instruction=False)
    model.save_pretrained(tmp_path / "old")
    file = tmp_path / "old" / "config.json"
    fields = json.loads(file.read_text())
    assert fields.pop("continues_instruction") is False
    file.write_text(json.dumps(fields))  # as it was written before there was the field
    old = TagiModel.from_pretrained(tmp_path / "old")
    assert not old.config.continued
    tokens = Tokens.of(old.tokenizer, old.config)
    whole = tokens.instruction("say it") + tokens.input("a b")
    shown = " ".join(old.tokenizer.convert_ids_to_tokens(whole))
    assert shown == "<s> say it </s> <s> a b Output :"
    adapter, batch = old.generate_adapter("say it"), old.encode_inputs("a b")
    with torch.no_grad():
        assert torch.allclose(
            old(**batch, adapter=adapter).logits[0, -1], last_logits(old, torch.tensor([whole])), atol=1e-5
        )
    new = made()
    new.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["continues_instruction"] is True
    assert TagiModel.from_pretrained(tmp_path / "new").config.continued


def test_new_models_continue_unless_they_are_told_otherwise(make_backbone, make_config, tmp_path):
    for family in ("llama", "t5"):
        make_backbone(family).save_pretrained(tmp_path / family)
    assert TagiModel.from_backbone(tmp_path / "llama", r=2).config.continued
    assert not TagiModel.from_backbone(tmp_path / "llama", r=2, fusion="none").config.continues_instruction
    assert not TagiModel.from_backbone(tmp_path / "llama", r=2, continues_instruction=False).config.continued
    assert not TagiModel.from_backbone(tmp_path / "t5", r=2).config.continues_instruction
    assert new_model_fields(make_config("llama", bos_token_id=None), {"r": 2}) == {"r": 2}
    # a run that was begun before there was the field goes on with false
    before, said = {"tagi.r": 2}, {"tagi.r": 2, "tagi.continues_instruction": False}
    stage = STAGES["finetuning"]
    assert settings_of(stage, said) == settings_of(stage, before)
    assert settings_of(stage, {**said, "tagi.continues_instruction": True}) != settings_of(stage, before)


def test_what_cannot_continue_is_refused(make_config, made, make_tokenizer):
    with pytest.raises(ValueError, match="continues_instruction is True, but a backbone of type 't5' reads inputs in"):
        TagiConfig(make_config("t5"), continues_instruction=True)
    with pytest.raises(ValueError, match="continues_instruction is 'yes', but must be true or false"):
        TagiConfig(make_config("llama"), continues_instruction="yes")
    model = made(tokenizer=make_tokenizer("<turn>"))
    with pytest.raises(ValueError, match=r"begins texts with the tokens \[4\], but .* bos_token_id 2, .*=False"):
        model.encode_inputs("a b")
    assert made(tokenizer=make_tokenizer("")).encode_inputs("a")["input_ids"][0, 0] != 2  # there is nothing to hide
