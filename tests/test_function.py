import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, pipeline
from without_package import run_without_package

from modeling_tagi import TagiModel, load_function
from modeling_tagi.data.records import Record
from modeling_tagi.evaluation.predict import Answering
from modeling_tagi.function import Answer, generate_rows, score_rows
from modeling_tagi.instructions import InstructionIndex, mean_embeddings
from modeling_tagi.tokens import Tokens, training_tensors

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "function.md"
OPTIONS = ["a", "abc", "b c d", "abcabcabc"]
TEXTS = ["ab", "abc d e f", "x" * 15, "hello there you", "ab"]
CASES = [("t5", "cross_attention"), ("bart", "concat"), ("llama", "cross_attention"), ("gemma2", "concat"),
         ("mistral", "none"), ("gpt2", "none"), ("phi3", "cross_attention")]  # fmt: skip


@pytest.fixture(scope="module")
def made(make_model, tokenizer):
    """`made(family, fusion)`: a model that reads letters."""

    def make(family="llama", fusion="none", **fields):
        model = make_model(family, fusion, **fields)
        model.tokenizer = tokenizer
        return model

    return make


# The core


def whole(model, tokens, text, option, adapter):
    """Returns an option's log-likelihood of one pass over input and option, as training reads them."""
    target = tokens.target(option)
    batch = training_tensors(tokens, [tokens.input(text)], [target])
    with torch.no_grad():
        logits = model(**batch, adapter=adapter).logits
    logits, labels = model.kind.predicted(logits, batch["labels"])
    of_target = logits[labels != -100].log_softmax(-1)
    return of_target[range(len(target)), target].sum().item(), len(target)


@pytest.mark.parametrize("family, fusion", CASES)
def test_options_are_scored_as_by_a_pass_for_each_whatever_the_batch_and_the_rows_adapters(made, family, fusion):
    model = made(family, fusion)
    tokens, adapters = Tokens.of(model.tokenizer, model.config), model.generate_adapter(["say ab", "to x add y and z"])
    index = [1, 0, 0, 1, 0]
    expected = [[whole(model, tokens, text, option, adapters[number]) for option in OPTIONS]
                for text, number in zip(TEXTS, index)]  # fmt: skip
    rows, options = [tokens.input(text) for text in TEXTS], [[tokens.target(option) for option in OPTIONS]] * 5
    for at_most in (1, 3, 9, 64):  # fewer than an input's options, too
        scores = score_rows(model, tokens, rows, options, adapters, index, at_most)
        for row, wanted in zip(scores, expected):
            assert [total for total, _ in row] == pytest.approx([total for total, _ in wanted], abs=1e-4)
            assert [length for _, length in row] == [length for _, length in wanted]
    own = score_rows(model, tokens, rows[:2], [options[0][:1], options[0][2:]], adapters, index[:2])
    assert [len(row) for row in own] == [1, 2] and own[1][0][0] == pytest.approx(expected[1][2][0], abs=1e-4)


@pytest.mark.parametrize("family, fusion", CASES[:3])
def test_rows_with_adapters_of_their_own_write_what_each_writes_alone(made, family, fusion):
    model = made(family, fusion)
    tokens, adapters = Tokens.of(model.tokenizer, model.config), model.generate_adapter(["say ab", "to x add y and z"])
    rows, index = [tokens.input(text) for text in TEXTS], [1, 0, 0, 1, 0]
    expected = []
    for row, number in zip(rows, index):
        output = model.generate(torch.tensor([row]), adapter=adapters[number], max_new_tokens=6, do_sample=False)
        output = output if model.config.is_encoder_decoder else output[:, len(row):]
        expected.append(model.tokenizer.decode(output[0], skip_special_tokens=True).strip())
    assert any(expected)
    for at_most in (1, 3, 64):
        assert generate_rows(model, tokens, rows, 6, adapters, index, at_most) == expected


# Calls


@pytest.mark.parametrize("family, fusion", [("t5", "concat"), ("llama", "none")])
def test_scores_are_those_of_evaluation_and_the_best_option_is_the_answer(made, family, fusion):
    model = made(family, fusion)
    classify = model.function("say ab", OPTIONS, demonstrations=[("x", "abc")])
    records = [Record("t", "say ab", text, ("a",), demonstrations=(("x", "abc"),), options=OPTIONS) for text in TEXTS]
    ranked = Answering(model, classify.tokens, "adapter", 3).rank(records)
    scores = classify.scores(TEXTS)
    for own, (_, pairs, _) in zip(scores, ranked):
        assert list(own) == OPTIONS
        assert list(own.values()) == pytest.approx([total / length for total, length in pairs], abs=1e-5)
    assert classify(TEXTS) == [max(own, key=own.get) for own in scores]


@pytest.mark.parametrize("options", [None, OPTIONS])
def test_several_inputs_are_answered_as_each_alone_and_in_their_order(made, options):
    classify = made("llama", "cross_attention").function("say ab", options, max_new_tokens=6, batch_size=3)
    texts = [("ab" * (7 * n % 5) + "cd")[: 1 + n % 7] for n in range(20)]
    alone = [classify.detailed(text) for text in texts]
    assert classify(texts) == [one.text for one in alone] and classify(reversed(texts)) == classify(texts)[::-1]
    assert len({str(one) for one in alone}) > 2
    for one, together in zip(alone, classify.detailed(texts)):
        assert isinstance(together, Answer) and together.how == one.how == "adapter"
        assert options is None or list(together.scores.values()) == pytest.approx([*one.scores.values()], abs=1e-5)
        assert (together.scores is None) == (options is None)


def test_nothing_but_an_option_is_answered(made):
    model, generator = made("t5", "concat"), torch.Generator().manual_seed(0)
    letters = [chr(97 + n) for n in torch.randint(0, 26, (300,), generator=generator).tolist()]
    texts = ["".join(letters[n: n + 1 + n % 9]) for n in range(0, 290, 3)] + ["", " ", "answer: something else", "ü"]
    for options in (["yes", "no"], ["positive", "pos", "positive, too"], ("a", "b")):
        assert set(model.function("say what it is", options)(texts)) <= set(options)


def test_text_ends_where_the_model_ends_it_or_at_the_limit(made):
    model = made("t5", "none")
    write = model.function("say ab", max_new_tokens=7)
    batch = model.encode_inputs(TEXTS)
    output = model.generate(**batch, adapter=write.adapter, max_new_tokens=7, do_sample=False)
    assert write(TEXTS) == [text.strip() for text in model.tokenizer.batch_decode(output, skip_special_tokens=True)]
    short = model.function("say ab", max_new_tokens=1)
    assert all(len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) <= 2 for text in short(TEXTS))
    with pytest.raises(ValueError, match="has no options to score; make it with options="):
        write.scores("ab")


def test_sixteen_at_once_get_each_their_own_answer(made):
    model = made("llama", "cross_attention")
    functions = [model.function(f"say {letter}", OPTIONS if n % 2 else None, max_new_tokens=5)
                 for n, letter in enumerate("abcdefghijklmnop")]  # fmt: skip
    expected = [function(TEXTS[: 1 + n % 5]) for n, function in enumerate(functions)]

    async def at_once():
        return await asyncio.gather(*(f.call_async(TEXTS[: 1 + n % 5]) for n, f in enumerate(functions)))

    assert asyncio.run(at_once()) == expected and len({str(answers) for answers in expected}) > 3


# Instructions that are far from training's


@pytest.fixture
def indexed(made):
    """`indexed(threshold)`: a model that was finetuned on one instruction."""

    def make(threshold):
        model = made("llama", "none")
        ids = Tokens.of(model.tokenizer, model.config).instruction("say ab")
        model.instruction_index = InstructionIndex(
            mean_embeddings(model.get_input_embeddings(), [ids]), None, threshold
        )
        return model

    return make


@pytest.mark.parametrize("if_far, how", [("warn", "adapter"), ("abstain", "abstained"), ("prompt", "prompt")])
@pytest.mark.parametrize("options", [None, OPTIONS])
def test_a_far_instruction_warns_abstains_or_is_prompted(indexed, caplog, if_far, how, options):
    model = indexed(1e-6)
    near = model.function("say ab", options, if_far=if_far, max_new_tokens=5)
    assert near.how == "adapter" and near("ab") is not None
    far = model.function("to x add y and z", options, if_far=if_far, max_new_tokens=5)
    assert far.how == how and {answer.how for answer in far.detailed(TEXTS)} == {how}
    assert "far from all that this generator was finetuned on" in caplog.text
    tokens = far.tokens
    if how == "abstained":
        assert far(TEXTS) == [None] * 5 and far("ab") is None and far.detailed("ab") == Answer(None, None, how)
        assert options is None or far.scores(TEXTS) == [None] * 5
    elif how == "prompt" and options is None:
        rows = [tokens.prompt("to x add y and z", text) for text in TEXTS]
        assert far(TEXTS) == generate_rows(model.backbone, tokens, rows, 5)
    elif how == "prompt":
        record = Record("t", "to x add y and z", "ab", ("a",), options=OPTIONS)
        (_, pairs, _), = Answering(model.backbone, tokens, "prompt").rank([record])
        assert list(far.scores("ab").values()) == pytest.approx([total / n for total, n in pairs], abs=1e-5)
    else:
        assert far(TEXTS) == model.function("to x add y and z", options, max_new_tokens=5)(TEXTS)


def test_what_is_far_cannot_be_told_without_an_index(made):
    with pytest.raises(ValueError, match="if_far is 'abstain', but must be 'warn', or, for a model with an index"):
        made().function("say ab", if_far="abstain")


# What is refused


@pytest.mark.parametrize("options", [
    [], ["a"], ["a", "a"], ["a", " a "], ["a", ""], ["a", " "], "ab", {"a", "b"}, ["a", 1], 3
])  # fmt: skip
def test_options_that_give_no_choice_are_refused(made, options):
    with pytest.raises(ValueError, match="the options are .*must be a list of at least two texts, none of them empty"):
        made().function("say ab", options)


@pytest.mark.parametrize("given, message", [
    ({"max_new_tokens": 0}, "max_new_tokens is 0, but must be a whole number of at least 1"),
    ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0"),
    ({"batch_size": True}, "batch_size is True"),
    ({"if_far": "stop"}, "if_far is 'stop', but must be 'warn'"),
    ({"options": ["a", "\ud800"]}, "the options' text has '.ud800'.*lone surrogate"),
    ({"instruction": " "}, "the instruction is ' ', but must be a text that is not empty"),
    ({"instruction": ["say a", "say b"]}, "the instruction is .'say a', 'say b'.*but must be a text"),
    ({"demonstrations": [("a",)]}, "demonstration 1 is .*must be a pair"),
])  # fmt: skip
def test_what_makes_no_function_is_refused(made, given, message):
    with pytest.raises(ValueError, match=message):
        made().function(**{"instruction": "say ab", **given})


@pytest.mark.parametrize("inputs, error, message", [
    ([], ValueError, "there are no inputs; give a text, or a list of at least one"),
    (["ab", 3], TypeError, "input 1 is a int .3., but must be a text"),
    (None, TypeError, "the inputs are None, but must be a text, or a list of texts"),
    (b"ab", TypeError, "the inputs are a bytes"),
    ("\ud800", ValueError, "input 0 has .*lone surrogate"),
])  # fmt: skip
def test_inputs_that_are_no_texts_are_refused(made, inputs, error, message):
    classify = made().function("say ab", OPTIONS)
    for call in (classify, classify.scores, classify.detailed):
        with pytest.raises(error, match=message):
            call(inputs)


# Saved functions


@pytest.mark.parametrize("family, fusion, options", [("t5", "cross_attention", OPTIONS), ("llama", "none", None)])
def test_a_saved_function_answers_as_before_from_its_checkpoint_or_a_given_model(
    made, tmp_path, family, fusion, options
):
    made(family, fusion).save_pretrained(tmp_path / "model")
    model = TagiModel.from_pretrained(tmp_path / "model")
    classify = model.function("say ab", options, demonstrations=[("x", "abc")], max_new_tokens=5)
    classify.save(tmp_path / "function")
    files = {"README.md", "adapter_config.json", "adapter_model.safetensors", "function.json", "tagi_adapter.json"}
    memory = {"tagi_memory.safetensors"} if fusion != "none" else set()
    assert {path.name for path in (tmp_path / "function").iterdir()} <= files | memory
    for again in (load_function(tmp_path / "function"), load_function(str(tmp_path / "function"), model=model)):
        assert again.detailed(TEXTS) == classify.detailed(TEXTS)
        assert (again.instruction, again.options, again.how) == (classify.instruction, classify.options, "adapter")
        assert again.instruction == "say ab\n\nExample 1: Input: x Output: abc" and again.max_new_tokens == 5
    classify.save(tmp_path / "function")  # over what is there
    classify.adapter.save_pretrained(tmp_path / "function")
    assert not (tmp_path / "function" / "function.json").exists()  # which was another adapter's


def test_a_saved_function_stays_prompted_or_silent(indexed, tmp_path):
    model = indexed(1e-6)
    for if_far in ("abstain", "prompt"):
        far = model.function("to x add y and z", OPTIONS, if_far=if_far)
        far.save(tmp_path / if_far)
        assert load_function(tmp_path / if_far, model=model).detailed(TEXTS) == far.detailed(TEXTS)


def test_what_is_no_function_is_not_loaded(made, tmp_path):
    model = made("llama", "none")
    classify = model.function("say ab", OPTIONS)
    classify.adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match="adapter has no function.json.*TagiAdapter.from_pretrained"):
        load_function(tmp_path / "adapter", model=model)
    classify.save(tmp_path / "function")
    with pytest.raises(ValueError, match="function.json names no checkpoint.*give the model: load_function"):
        load_function(tmp_path / "function")
    with pytest.raises(ValueError, match="made for the backbone"):
        load_function(tmp_path / "function", model=made("gpt2", "none"))
    file = tmp_path / "function" / "function.json"
    described = json.loads(file.read_text())
    with pytest.raises(ValueError, match="inputs in the format 'chat', but the model reads 'plain'"):
        file.write_text(json.dumps({**described, "input_format": "chat"}))
        load_function(tmp_path / "function", model=model)
    for text in ("{", "[]", json.dumps({**described, "options": ["a"]}), json.dumps({**described, "how": "so"}),
                 json.dumps({name: value for name, value in described.items() if name != "instruction"})):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ValueError, match="function.json is damaged .*save the function again"):
            load_function(tmp_path / "function", model=model)
    with pytest.raises(ValueError, match="holds a TAGI checkpoint"):
        model.save_pretrained(tmp_path / "model")
        classify.save(tmp_path / "model")


@pytest.fixture(scope="module")
def letters():
    """Reads characters one by one, and puts nothing around a text."""
    known = ["<pad>", "</s>", "<s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz .:\nO"]
    made = Tokenizer(models.WordLevel({token: number for number, token in enumerate(known)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("(?m)."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )


def with_peft_alone(kind, options, texts, folder):
    """Returns the answer that the documented lines print in a process without the package, and scores by them."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    block, = (block for block in blocks if f"AutoPeftModelFor{kind}" in block)
    block += f"\nprint(json.dumps([[score(text, option) for option in {options}] for text in {texts}]))"
    printed = run_without_package(block, cwd=folder).splitlines()
    return printed[0], json.loads(printed[-1])


@pytest.mark.parametrize("family", ["llama", pytest.param("t5", marks=pytest.mark.slow)])
def test_a_saved_function_needs_transformers_and_peft_alone(
    make_backbone, make_model, tokenizer, letters, tmp_path, family
):
    own, kind = (letters, "CausalLM") if family == "llama" else (tokenizer, "Seq2SeqLM")
    make_backbone(family).save_pretrained(tmp_path / "backbone")
    own.save_pretrained(tmp_path / "backbone")
    fields = {"r": 4, "lora_alpha": 8, "generator_hidden_size": 16, "generator_index_size": 4, "fusion": "none"}
    model = TagiModel.from_backbone(tmp_path / "backbone", **fields).eval()
    model.hypernetwork.load_state_dict(make_model(family, "none").hypernetwork.state_dict())  # one that is awake
    classify = model.function("say ab", OPTIONS)
    classify.save(tmp_path / "sentiment")
    answer, scores = with_peft_alone(kind, OPTIONS, TEXTS, tmp_path)
    for own, found in zip(classify.scores(TEXTS), scores):
        assert list(own.values()) == pytest.approx(found, abs=1e-4)
    assert answer == classify("a fine film")


@pytest.mark.slow
def test_a_function_of_a_real_model_has_equal_scores_in_peft(smollm2_folder, tmp_path):
    model = TagiModel.from_pretrained(PAGE.parents[2] / "checkpoints" / "smollm2-135m").eval()
    options = ["positive", "negative"]
    texts = ["a fine film", "Dull; I left after ten minutes.\n\nNever again", "  ü 1,5"]
    classify = model.function("Decide whether the review is positive or negative.", options)
    classify.save(tmp_path / "sentiment", base_model=smollm2_folder)
    answer, scores = with_peft_alone("CausalLM", options, texts, tmp_path)
    for own, found in zip(classify.scores(texts), scores):
        assert list(own.values()) == pytest.approx(found, abs=1e-3)
    assert answer == classify("a fine film")


# The network, and transformers' pipelines

GUARDED = """
import asyncio, socket, sys
tried = []

def refuse(*args, **kwargs):
    tried.append(args)
    raise RuntimeError("the network was asked for")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = socket.socket.connect_ex = refuse
from modeling_tagi import TagiModel, load_function
model = TagiModel.from_pretrained("model")
classify = model.function("say ab", ["yes", "no"], demonstrations=[("x", "no")])
assert classify(["ab", "cd"]) == asyncio.run(classify.call_async(["ab", "cd"]))
model.function("say ab", max_new_tokens=3)("ab")
classify.save("function")
assert load_function("function").scores("ab") == classify.scores("ab")
assert not tried, tried
"""


def test_nothing_goes_to_the_network(made, tmp_path):
    made("llama", "none").save_pretrained(tmp_path / "model")
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(PAGE.parents[2]),
                   "HF_HOME": str(tmp_path / "hf")}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", GUARDED], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("family, fusion", [("t5", "cross_attention"), ("llama", "none")])
def test_a_checkpoints_pipeline_is_a_function(made, tmp_path, family, fusion):
    model = made(family, fusion)
    model.save_pretrained(tmp_path / "model")
    pipe = pipeline("tagi-function", model=str(tmp_path / "model"), trust_remote_code=True, instruction="say ab",
                    options=OPTIONS)  # fmt: skip
    expected = model.function("say ab", OPTIONS).detailed(TEXTS)
    found = pipe(TEXTS)
    assert [one["text"] for one in found] == [one.text for one in expected] and found[0]["how"] == "adapter"
    assert list(found[0]["scores"].values()) == pytest.approx(list(expected[0].scores.values()), abs=1e-5)
    assert pipe("ab")["text"] == expected[0].text
    assert pipe("ab", instruction="say ab", max_new_tokens=4) == {
        "text": model.function("say ab", max_new_tokens=4)("ab"), "scores": None, "how": "adapter"
    }  # fmt: skip
    bare = pipeline("tagi-function", model=str(tmp_path / "model"), trust_remote_code=True)
    with pytest.raises(ValueError, match="the pipeline got no instruction; give it instruction="):
        bare("ab")
