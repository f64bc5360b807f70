import itertools

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, LogitsProcessor, PreTrainedTokenizerFast

from modeling_tagi import TagiConfig, TagiModel
from modeling_tagi.data.collate import RecordCollator
from modeling_tagi.data.records import Record
from modeling_tagi.data.tokenizer import train_tokenizer
from modeling_tagi.evaluation.predict import Answering
from modeling_tagi.tokens import OUTPUT_HEAD, Tokens, alike_in_length, instruction_text, prompt_text

WORDS = "say yes no to it a b c d e Input : Output user model Today".split()
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>", "<turn>", "<end>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<turn>{{ 'model' if message.role == 'assistant' else 'user' }} "
    "{{ message.content | trim }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>model {% endif %}"
)


@pytest.fixture
def make_tokenizer():
    """`make_tokenizer(start)`: words, with or without `<s>` before a text, and a chat template."""

    def make(start=True):
        inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*SPECIAL, *WORDS])}, "<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        if start:
            inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
        made = PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
        )
        made.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>"]})
        made.chat_template = TEMPLATE
        return made

    return make


def read(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_a_plain_causal_input_begins_with_the_tokenizers_mark_and_asks_for_the_output(make_tokenizer):
    for start, mark in ((True, "<s> "), (False, "")):
        tokens = Tokens(make_tokenizer(start), False, max_input_length=4)
        kept = "a b c" if start else "a b c d"
        assert read(tokens.tokenizer, tokens.input("a b c d e")) == f"{mark}{kept} Output :"
        assert read(tokens.tokenizer, tokens.prompt("say yes", "a b")) == f"{mark}say yes Input : a b Output :"
        assert read(tokens.tokenizer, tokens.target("yes")) == "yes </s>"


def test_a_chat_input_is_a_users_turn_and_its_target_ends_the_models(make_tokenizer):
    tokenizer = make_tokenizer()
    tokens = Tokens(tokenizer, False, max_input_length=3, max_target_length=2, input_format="chat")
    assert read(tokenizer, tokens.input("a b c d e")) == "<s> <turn> user a b c <end> <turn> model"
    prompt = "<s> <turn> user say yes Input : a b c <end> <turn> model"
    assert read(tokenizer, tokens.prompt("say yes", "a b c d e")) == prompt
    assert read(tokenizer, tokens.target("yes no it")) == "yes <end>"
    messages = [{"role": "user", "content": "a b"}]
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokens.input("a b") == whole
    answered = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": "yes"}], return_dict=False
    )
    assert whole + tokens.target("yes") == answered


def test_a_template_gives_the_same_tokens_every_day_and_leaves_no_room_for_thoughts(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{% if date_string == '26 Jul 2024' %}yes {% endif %}{% for m in messages %}{{ m.content }}<end>{% endfor %}"
        "{% if enable_thinking is defined and enable_thinking is false %}no{% endif %}"
    )
    assert read(tokenizer, Tokens(tokenizer, False, input_format="chat").input("a")) == "yes a <end> no"


def test_chat_without_a_template_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template; use 'plain', or set tokenizer.chat_template"):
        Tokens(tokenizer, False, input_format="chat")


def test_targets_of_bart_begin_as_its_texts_do_and_those_of_t5_do_not(make_config):
    made = train_tokenizer(["say the first word red cat", "Input:"], 40)
    begun = made("red cat")["input_ids"]
    assert begun[0] == made.bos_token_id
    bart, t5 = (Tokens.of(made, TagiConfig(make_config(family))) for family in ("bart", "t5"))
    assert bart.target("red cat") == bart.input("red cat") == t5.input("red cat") == begun
    assert t5.target("red cat") == begun[1:]
    assert Tokens.of(made, make_config("bart")).target("red cat") == begun  # a backbone's config says the same


@pytest.mark.parametrize("family, input_format", [("t5", "plain"), ("llama", "plain"), ("llama", "chat")])
def test_encoded_inputs_are_what_training_reads(make_model, make_tokenizer, family, input_format):
    model = make_model(family, input_format=input_format)
    model.tokenizer = tokenizer = make_tokenizer()
    records = [Record("t", "say it", text, ("yes",)) for text in ("a b c", "d")]
    trained = RecordCollator(Tokens.of(tokenizer, model.config, 8, 4))(records)
    used = model.encode_inputs([record.input for record in records])
    for row in range(2):
        inputs = trained["input_ids"][row][trained["attention_mask"][row].bool()]
        if family == "llama":
            inputs = inputs[trained["labels"][row][: len(inputs)] == -100]
        assert torch.equal(used["input_ids"][row][used["attention_mask"][row].bool()], inputs)
    padding = 0 if family == "llama" else -1
    assert used["attention_mask"][1].tolist()[padding] == 0
    cut = Tokens.of(tokenizer, model.config, 2).input("a b c")
    assert model.encode_inputs("a b c", max_length=2)["input_ids"].tolist() == [cut]
    assert len(cut) < len(trained["input_ids"][0])
    adapter = model.generate_adapter("say it")
    assert model.generate(**used, adapter=adapter, max_new_tokens=2).shape[0] == 2


def test_encoded_inputs_of_t5_are_its_tokenizers(make_model, tokenizer):
    model = make_model("t5")
    model.tokenizer = tokenizer
    expected = tokenizer(["ab cd", "e"], return_tensors="pt", padding=True)
    found = model.encode_inputs(["ab cd", "e"])
    assert all(torch.equal(found[name], expected[name]) for name in ("input_ids", "attention_mask"))
    with pytest.raises(ValueError, match="there are no inputs; give a text"):
        model.encode_inputs([])


def test_the_input_format_comes_with_the_checkpoint(make_backbone, make_tokenizer, tmp_path):
    make_backbone("llama", bos_token_id=3).save_pretrained(tmp_path / "backbone")
    make_tokenizer().save_pretrained(tmp_path / "backbone")
    assert TagiModel.from_backbone(tmp_path / "backbone", r=2).config.input_format == "plain"  # unless it is asked for
    model = TagiModel.from_backbone(tmp_path / "backbone", r=2, input_format="chat")
    model.save_pretrained(tmp_path / "chat")
    again = TagiModel.from_pretrained(tmp_path / "chat")
    assert again.config.input_format == "chat"
    read_again = read(AutoTokenizer.from_pretrained(tmp_path / "chat"), again.encode_inputs("a b")["input_ids"][0])
    assert read_again == "<s> <turn> user a b <end> <turn> model"


class Only(LogitsProcessor):
    """Lets nothing but one token be written."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor(self.token), 0.0)


@pytest.mark.parametrize("fusion", ["none", "concat"])
def test_an_output_ends_with_the_models_turn_as_training_ends_it(make_model, make_tokenizer, fusion):
    tokenizer = make_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<end>")
    for input_format, written in (("chat", 1), ("plain", 4)):
        model = make_model("llama", fusion, input_format=input_format)
        model.tokenizer = tokenizer
        assert model.generation_config.eos_token_id == 1  # as in a base model's file: the turn's end is none of its
        inputs, adapter = model.encode_inputs("a b"), model.generate_adapter("say it")
        options = {"adapter": adapter, "max_new_tokens": 4, "do_sample": False, "logits_processor": [Only(end)]}
        length = inputs["input_ids"].shape[1]
        assert model.generate(**inputs, **options).shape[1] == length + written
        assert model.generate(**inputs, **options, eos_token_id=2).shape[1] == length + 4  # who says so decides
        assert model.generation_config.eos_token_id == 1


def test_a_stock_backbone_asked_in_a_chat_ends_with_its_turn(make_backbone, make_tokenizer, monkeypatch):
    backbone, tokenizer, seen = make_backbone("llama"), make_tokenizer(), []
    tokens = Tokens(tokenizer, False, 8, 4, input_format="chat")
    monkeypatch.setattr(backbone, "generate", lambda input_ids, **options: seen.append(options) or input_ids)
    Answering(backbone, tokens, "prompt").generate([Record("t", "say it", "a b c", ("yes",))])
    assert seen[0]["eos_token_id"] == [1, tokenizer.convert_tokens_to_ids("<end>")]


def test_chat_is_for_causal_backbones(make_config):
    with pytest.raises(ValueError, match="input_format is 'chat', but a backbone of type 't5'.*use 'plain'"):
        TagiConfig(make_config("t5"), input_format="chat")
    with pytest.raises(ValueError, match="input_format is 'chats', but must be one of 'plain', 'chat'"):
        TagiConfig(make_config("llama"), input_format="chats")


def test_the_line_before_an_output_mirrors_the_one_before_an_input():
    assert prompt_text("say it", "a").endswith("\n\nInput:\na") and OUTPUT_HEAD == "\n\nOutput:\n"


def costs(lengths, groups):
    return sum(max(lengths[number] for number in group) * len(group) + 64 for group in groups)


@pytest.mark.parametrize("lengths", [[512, 16] * 5, list(range(16, 513, 50)), [300, 20, 25, 310], [1] * 5 + [200]])
def test_rows_of_like_length_are_read_together_at_about_the_least_cost(lengths):
    groups = alike_in_length(lengths)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths))) and len(groups) > 1
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        ends = [0, *(place for place, cut in enumerate(cuts, start=1) if cut), len(lengths)]
        assert costs(lengths, groups) <= 1.05 * costs(lengths, [order[i:j] for i, j in zip(ends, ends[1:])])


def test_rows_without_much_padding_stay_together_and_in_order():
    for lengths in ([7], [40, 3, 20], [288] * 64, [300, 290, 310, 295]):
        assert alike_in_length(lengths) == [list(range(len(lengths)))]


def test_no_pass_is_larger_than_it_should_be():
    groups = alike_in_length([512] * 200)
    assert sorted(number for group in groups for number in group) == list(range(200))
    assert len(groups) == 4 and max(map(len, groups)) == 64
    assert alike_in_length([40000, 40001]) == [[0], [1]]  # one alone may be
    assert alike_in_length([7] * 5, at_most=2) == [[0, 1], [2, 3], [4]]


def test_a_gpu_reads_more_at_once():
    lengths = [512, 16] * 4
    assert len(alike_in_length(lengths)) == 2 and len(alike_in_length(lengths, on_cpu=False)) == 1


def test_a_token_that_begins_and_ends_texts_stands_before_inputs():
    both = Tokenizer(models.BPE(vocab={"<pad>": 0, "</s>": 1, "a": 2, "b": 3}, merges=[]))
    both.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    opt = PreTrainedTokenizerFast(tokenizer_object=both, bos_token="</s>", eos_token="</s>", pad_token="<pad>")
    assert Tokens(opt, False).start == [1] and Tokens(opt, False).input("ab")[:3] == [1, 2, 3]
    both.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    t5 = PreTrainedTokenizerFast(tokenizer_object=both, bos_token="</s>", eos_token="</s>", pad_token="<pad>")
    assert Tokens(t5, True).start == [] and Tokens(t5, True).input("ab") == [2, 3, 1]


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("input_format", ["plain", "chat"])
def test_of_a_huge_input_no_more_is_tokenized_than_can_be_kept(make_tokenizer, monkeypatch, both, input_format):
    monkeypatch.setattr("modeling_tagi.tokens._HUGE", 300)
    text, read = "a b c d e " * 200, []
    expected = Tokens(make_tokenizer(), both, 20, input_format=input_format).input(text[:300])
    tokens = Tokens(make_tokenizer(), both, 20, input_format=input_format)
    known = tokens._known
    monkeypatch.setattr(tokens, "_known", lambda text, special: read.append(len(text)) or known(text, special))
    assert tokens.input(text) == expected and max(read) <= 300
    # where the piece holds fewer tokens than are kept, the whole text is read
    tokens = Tokens(make_tokenizer(), both, 1000, input_format="plain")
    assert len(tokens.input("a" + " " * 400 + "b c")) > len(tokens.input("a"))


def test_demonstrations_follow_the_instruction():
    text = instruction_text(" Say no. ", [("a", "no"), ["b", "no"]])
    assert text == "Say no.\n\nExample 1: Input: a Output: no\n\nExample 2: Input: b Output: no"


def test_a_prompt_ends_with_the_input():
    assert prompt_text("Say no.", "a?") == "Say no.\n\nInput:\na?"
    assert prompt_text("Say no.", "a?", [("b", "no")]) == instruction_text("Say no.", [("b", "no")]) + "\n\nInput:\na?"


@pytest.mark.parametrize("instruction", ["", "  \n", None, 3])
def test_an_empty_instruction_is_refused(instruction):
    with pytest.raises(ValueError, match="the instruction is .* not empty"):
        instruction_text(instruction)


@pytest.mark.parametrize("pair", ["ab", ("a",), ("a", "b", "c"), 3, ("a", None), [("a", "b"), ("c", "d")]])
def test_a_malformed_demonstration_is_named(pair):
    with pytest.raises(ValueError, match=r"demonstration 2 is .* pair \(input, output\)"):
        instruction_text("Say no.", [("a", "no"), pair])


def test_demonstrations_as_one_text_are_refused():
    with pytest.raises(ValueError, match="the demonstrations are 'ab'.*list of pairs"):
        instruction_text("Say no.", "ab")
