import io
import sys

import pytest

from modeling_tagi import TagiAdapter
from modeling_tagi.cli import main


@pytest.fixture(scope="module")
def checkpoint(make_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    model = make_model("t5")
    model.tokenizer = tokenizer
    model.save_pretrained(folder)
    return folder


def answers(model, tokenizer, instruction, inputs):
    batch = tokenizer(inputs, return_tensors="pt", padding=True)
    output = model.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        adapter=model.generate_adapter(instruction),
        max_new_tokens=7,
        do_sample=False,
    )
    return [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]


def test_generate_writes_the_adapter_that_the_model_makes(checkpoint, make_model, tokenizer, tmp_path, capsys):
    assert main(["generate", str(checkpoint), "say no", "--output_dir", str(tmp_path / "adapter")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'adapter'}\n"
    written = TagiAdapter.from_pretrained(tmp_path / "adapter")
    model = make_model("t5")
    model.tokenizer = tokenizer
    made = model.generate_adapter("say no")
    assert all((written.lora_b[path] == b).all() for path, b in made.lora_b.items())
    assert written.provenance[0]["instruction"] == "say no"


def test_run_answers_arguments_and_lines_of_standard_input(checkpoint, make_model, tokenizer, capsys, monkeypatch):
    model = make_model("t5")
    expected = answers(model, tokenizer, tokenizer(["say no"])["input_ids"], ["one two", "a longer input here"])
    options = ["run", str(checkpoint), "say no", "--max_new_tokens", "7"]
    assert main([*options, "one two", "a longer input here"]) == 0
    assert capsys.readouterr().out.splitlines() == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("one two\n\na longer input here\n"))
    assert main(options) == 0
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate", "nowhere/at/all", "say no", "--output_dir", "x"], "nowhere/at/all"),
        (["run", "nowhere/at/all", "say no", "one"], "nowhere/at/all"),
    ],
)
def test_a_missing_checkpoint_is_one_line_and_exit_code_1(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"tagi {arguments[0]}: ") and message in error
    assert not list(tmp_path.iterdir())


def test_an_empty_instruction_writes_nothing(checkpoint, capsys, tmp_path):
    assert main(["generate", str(checkpoint), " ", "--output_dir", str(tmp_path / "adapter")]) == 1
    assert "the instruction is ' ', but must be a text" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["fly"], ["generate", "model", "say no"]])
def test_wrong_arguments_end_with_usage_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: tagi" in capsys.readouterr().err
