import io
import json
import resource
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path
from statistics import fmean

import pytest
import torch

from modeling_tagi import TagiAdapter
from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.commands.main import main
from modeling_tagi.commands.parsing import take_fields
from modeling_tagi.commands.table import COMMANDS
from modeling_tagi.common.arguments import Parser
from modeling_tagi.data.records import Record
from modeling_tagi.data.tables import write_table
from modeling_tagi.evaluation.metrics import exact_match

RECIPE = str(Path(__file__).parents[1] / "hub_configs" / "quickstart.yaml")


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


def test_export_writes_what_save_gguf_writes(make_model, tmp_path, capsys):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    model = make_model("llama", "none")
    model.backbone.save_pretrained(tmp_path / "base")
    adapter = model.generate_adapter([[5, 6, 7]])
    adapter.save_pretrained(tmp_path / "adapter", base_model=tmp_path / "base")
    adapter.save_gguf(tmp_path / "expected.gguf", name="mine")
    file = str(tmp_path / "new" / "a.gguf")
    options = ["export", str(tmp_path / "adapter"), file, "--base_model", str(tmp_path / "base"), "--name", "mine"]
    assert main(options) == 0 and capsys.readouterr().out == f"{file}\n"
    assert Path(file).read_bytes() == (tmp_path / "expected.gguf").read_bytes()
    assert main([*options, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["file"], said["rank"], said["modules"], said["memory_left_out"]) == (file, 4, 4, False)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate", "nowhere/at/all", "say no", "--output_dir", "x"], "there is no folder nowhere/at/all"),
        (["run", "nowhere/at/all", "say no", "one"], "there is no folder nowhere/at/all"),
        (["compare", "nowhere/at/all", "nowhere/at/all"], "there is no folder nowhere/at/all"),
        (["plan", "nowhere/at/all.yaml"], "there is no configuration nowhere/at/all.yaml"),
        (["study", "nowhere/at/all.yaml"], "there is no configuration nowhere/at/all.yaml"),
    ],
)
def test_a_missing_checkpoint_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tagi {arguments[0]}: ") and message in error
    assert not list(tmp_path.iterdir())


def test_an_empty_instruction_writes_nothing(checkpoint, capsys, tmp_path):
    assert main(["generate", str(checkpoint), " ", "--output_dir", str(tmp_path / "adapter")]) == 2
    assert "the instruction is ' ', but must be a text" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "tagi: the following arguments are required: COMMAND (see tagi --help)"),
        (["fly"], "tagi: argument COMMAND: invalid choice: 'fly'"),
        (["generate", "model", "say no"], "tagi generate: the following arguments are required: --output_dir"),
        (["run", "model", "say no", "--fast"], "tagi run: unrecognized arguments: --fast (see tagi run --help)"),
        (["evaluate", "model"], "tagi evaluate: there is no data; give --data FOLDER, --data builtin, or --t0_eval"),
        (["evaluate", "model", "--source", "sni"], "tagi evaluate: there is no data"),
        (["evaluate", "model", "--source", "builtin", "--data", "x"], "tagi evaluate: --source builtin makes its own"),
        (["evaluate", "model", "--data", "x", "--max_records", "0"], "'0' is no whole number of at least 1"),
        (["evaluate", "model", "--data", "x", "--options", "seed"], "'seed' is no KEY=VALUE with a value in YAML"),
        (["evaluate", "model", "--data", "x", "--options", "a={"], "'a={' is no KEY=VALUE with a value in YAML"),
        (["evaluate", "model", "--data", "x", "--references", "gold"], "has 'gold', but knows 'no_instruction', "),
        (["evaluate", "model", "--data", "x", "--references", "nearest_adapter"], "needs --task_adapters FOLDER"),
        (["evaluate", "model", "--data", "x", "--oracle", "step=2"], "did you mean evaluation.oracle.steps?"),
        (["evaluate", "model", "--data", "x", "--references", "oracle", "--oracle", "steps=0"], "tunes nothing; give"),
        (["evaluate", "model", "--data", "x", "--rank"], "tagi evaluate: unrecognized arguments: --rank"),
        (["evaluate", "model", "--data", "x", "--output_dir", __file__], "is a file; give a folder"),
        (["export", "one", "a.bin"], "tagi export: FILE.gguf is 'a.bin', but must be a name that ends in .gguf"),
        (["compare", "one"], "tagi compare: the following arguments are required: SECOND"),
        (["push", "one"], "tagi push: the following arguments are required: USER/NAME"),
        (["plan", "x.yaml", "--seed"], "tagi plan: '--seed' is no field with a value; fields are given as --field"),
        (["plan", "x.yaml", "y.yaml"], "tagi plan: 'y.yaml' is no field with a value"),
        (["plan", RECIPE, "--nosuch", "3"], "tagi plan: unknown field nosuch; the fields are"),
        (["plan", RECIPE, "--seed", "[a"], "tagi plan: --seed is '[a', which is not YAML"),
        (["plan", "x.yaml", "--utilisation", "1.5"], "'1.5' is no share above 0 and up to 1"),
        (["plan", "x.yaml", "--flops_per_second", "fast"], "'fast' is no number above 0"),
        (["study", "x.yaml", "--workers", "0"], "'0' is no whole number of at least 1"),
        (["generate", "m", "say", "--output_dir", "x", "--demonstration", "a"], "expected 2 arguments"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tagi") and message in line


def test_help_does_not_wait_for_torch_and_is_there_within_half_a_second():
    code = "import sys; from modeling_tagi.commands.main import main\n"
    code += "try: main({})\nfinally: assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code.format(["--help"])]
    seconds = []
    for _ in range(3):
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)  # others' work is not ours
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage: tagi ")
    assert all(f"\n    {name} " in done.stdout for name in COMMANDS)
    assert min(seconds) <= 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_each_commands_help_says_what_it_does_with_an_example_that_is_right(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and out.startswith(f"usage: tagi {command} ")
    module = COMMANDS[command]
    assert module.DESCRIPTION in out and f"example:\n  {module.EXAMPLE}\n" in out
    assert "--json" in out or command == "train"  # which prints as it goes, and leaves results.json
    parser = Parser()
    module.add_arguments(parser)
    for action in parser._actions:
        takes_value = action.option_strings and action.nargs != 0
        assert action.help and (not takes_value or action.metavar or action.choices), action
        if takes_value and not action.required and action.default not in (None, []):
            assert "default" in action.help, action
    words = shlex.split(module.EXAMPLE)
    assert words[:2] == ["tagi", command]
    _, rest = parser.parse_known_args(words[2:])
    assert not rest or getattr(module, "take_rest", None) is take_fields


def test_a_command_is_one_file_and_one_line_of_the_table(capsys, monkeypatch):
    toy = types.ModuleType("toy")
    toy.HELP, toy.DESCRIPTION, toy.EXAMPLE = "says a word again", "Says a word, as often as is asked for.", "tagi toy"
    toy.add_arguments = lambda parser: parser.add_argument("word", metavar="WORD", help="what is said")
    toy.call = lambda options: print(options.word, options.called) or 3
    monkeypatch.setitem(COMMANDS, "toy", toy)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "\n    toy       " in (out := capsys.readouterr().out) and toy.HELP in out
    assert main(["toy", "hello"]) == 3 and capsys.readouterr().out == "hello tagi toy hello\n"
    with pytest.raises(SystemExit):
        main(["toy", "hello", "--fast"])
    assert capsys.readouterr().err == "tagi toy: unrecognized arguments: --fast (see tagi toy --help)\n"
    toy.take_rest = lambda options: setattr(options, "word", " ".join(options.rest))
    toy.call = lambda options: print(options.word) or 0
    assert main(["toy", "hello", "--fast"]) == 0 and capsys.readouterr().out == "--fast\n"


def test_generate_takes_demonstrations_and_says_what_it_made(checkpoint, make_model, tokenizer, tmp_path, capsys):
    arguments = ["generate", str(checkpoint), "say no", "--output_dir", str(tmp_path / "adapter"), "--json"]
    assert main([*arguments, "--demonstration", "a", "no", "--demonstration", "b c", "no"]) == 0
    made = json.loads(capsys.readouterr().out)
    model = make_model("t5")
    model.tokenizer = tokenizer
    expected = model.generate_adapter("say no", [("a", "no"), ("b c", "no")])
    written = TagiAdapter.from_pretrained(tmp_path / "adapter")
    assert all((written.lora_b[path] == b).all() for path, b in expected.lora_b.items())
    assert made["folder"] == str(tmp_path / "adapter") and made["rank"] == expected.rank
    assert made["modules"] == len(expected.lora_a)
    assert made["provenance"]["instruction_sha256"] == expected.provenance[0]["instruction_sha256"]


def test_run_in_batches_answers_as_at_once_and_as_json(checkpoint, capsys):
    options = ["run", str(checkpoint), "say no", "--max_new_tokens", "7", "one two", "a", "a longer input here"]
    assert main(options) == 0
    once = capsys.readouterr().out.splitlines()
    assert main([*options, "--batch_size", "1", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["output"] for line in lines] == once and len(once) == 3
    assert [line["input"] for line in lines] == options[-3:]


def test_run_without_any_input_is_exit_code_2(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    with pytest.raises(SystemExit) as ended:
        main(["run", str(checkpoint), "say no"])
    assert ended.value.code == 2 and "there are no inputs" in capsys.readouterr().err


def test_a_file_of_weights_that_cannot_be_read_is_one_line(checkpoint, tmp_path, capsys):
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nothing")
    assert main(["generate", str(tmp_path / "broken"), "say no", "--output_dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("tagi generate: ")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def pushed(monkeypatch):
    """What push_folder was called with."""
    calls = []

    def push_folder(folder, repo_id, **options):
        calls.append((folder, repo_id, options))
        if folder == "nowhere":
            raise FileNotFoundError("there is no folder\nnowhere")
        return f"https://hub/{repo_id}/commit/1"

    module = types.ModuleType("modeling_tagi.publishing.push")
    module.push_folder = push_folder
    monkeypatch.setitem(sys.modules, "modeling_tagi.publishing.push", module)
    return calls


def test_push_hands_over_what_was_given_and_no_token(pushed, capsys):
    assert main(["push", "mine", "me/mine", "--private", "--tag", "v1", "--message", "first"]) == 0
    assert capsys.readouterr().out == "https://hub/me/mine/commit/1\n"
    given = {"private": True, "revision": None, "tag": "v1", "message": "first"}
    assert pushed == [("mine", "me/mine", given)]
    assert main(["push", "mine", "me/mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"repo_id": "me/mine", "url": "https://hub/me/mine/commit/1"}
    assert main(["push", "nowhere", "me/mine"]) == 2
    assert capsys.readouterr().err == "tagi push: there is no folder nowhere\n"
    with pytest.raises(SystemExit) as ended:  # a shell remembers it
        main(["push", "mine", "me/mine", "--token", "hf_x"])
    assert ended.value.code == 2


def test_plan_takes_the_fields_of_a_run(capsys, monkeypatch):
    monkeypatch.delenv("TAGI_DATA", raising=False)
    recipe = Path(__file__).parents[1] / "hub_configs" / "t5-base-sni-def.yaml"
    arguments = ["plan", str(recipe), "--flops_per_second", "1e12", "--adapters", "7"]
    assert main([*arguments, "--json", "--finetuning.steps", "12", "--seed=3"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {stage["name"]: stage["steps"] for stage in plan["stages"]}["finetuning"] == 12
    assert plan["parameters"]["adapters_in_bank"] == 7 and plan["device"]["utilisation"] == 0.4
    assert main([*arguments, "--utilisation", "0.8"]) == 0
    assert capsys.readouterr().out.startswith("Plan of t5-base-sni-def: google/t5-base-lm-adapt (t5, shape by the ")
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--finetuning.step", "12"])
    assert "did you mean finetuning.steps?" in capsys.readouterr().err


def test_compare_shows_scores_of_two_checkpoints_side_by_side(checkpoint, data, tmp_path, capsys):
    assert main(["compare", str(checkpoint), str(checkpoint), "--data", str(data), *SHORT, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "checkpoint" and found["config"] == {}
    assert set(found["splits"]["unseen"]["methods"]) == {"first", "second"}
    same = {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["splits"]["unseen"]["differences"]["second - first"]["rouge_l"] == same
    with pytest.raises(SystemExit) as ended:
        main(["compare", "a", "b", "--source", "sni"])
    assert ended.value.code == 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a split to train on and two others, one of them with options."""
    folder = tmp_path_factory.mktemp("data")
    splits = {"train": ["say a", "say b"], "unseen": ["say c", "say d"], "choices": ["pick e", "pick f"]}
    for split, instructions in splits.items():
        records = [
            Record(text, text, f"{split} {n} {text[-1]}", (text[-1],),
                   options=(text[-1], "no") if split == "choices" else None)
            for text in instructions for n in range(3)
        ]  # fmt: skip
        write_table(records, folder / f"{split}.jsonl")
    return folder


SHORT = ["--max_target_length", "4", "--batch_size", "4"]


def test_evaluate_scores_a_checkpoint_and_writes_it_all(checkpoint, data, tmp_path, capsys):
    arguments = ["evaluate", str(checkpoint), "--data", str(data), "--output_dir", str(tmp_path / "out"), *SHORT]
    assert main([*arguments, "--references", "start_prompted", "no_instruction", "random_words", "oracle", "--oracle",
                 "steps=2"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    methods = ["no_instruction", "start_prompted", "tagi", "random_words", "oracle"]
    for split, score in (("unseen", "exact_match"), ("choices", "rank_accuracy")):
        assert list(results["splits"][split]["methods"]) == methods
        for scores in results["splits"][split]["methods"].values():
            low, high = scores[f"{score}_interval"]
            assert 0 <= low <= scores[score] <= high <= 100
    assert results["tasks"]["pick e"] == {"group": "pick e", "split": "choices"}
    assert results["leaks"]["leaks"] == 0 and results["seconds"]["evaluation"] > 0
    assert results["run"]["command"].startswith(f"tagi evaluate {checkpoint} --data {data} --output_dir ")
    assert {"seed", "torch", "transformers", "peft", "python", "threads"} <= set(results["run"])
    assert (tmp_path / "out" / "results.md").read_text() == out
    assert out.startswith("| split | method | exact match | rouge l | rank accuracy |")
    assert "references are made with the checkpoint's own backbone" in out


def test_evaluate_answers_as_the_model_does(checkpoint, make_model, tokenizer, tmp_path, capsys):
    model, texts = make_model("t5"), ["one two", "a longer input here", "b"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    output = model.generate(**batch, adapter=model.generate_adapter(torch.tensor([tokenizer("say no")["input_ids"]])),
                            max_new_tokens=4, do_sample=False)  # fmt: skip
    given = [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]
    targets = [given[0] or "?", "something else", given[2] or "?"]
    write_table([Record("t", "say no", x, (y,)) for x, y in zip(texts, targets)], tmp_path / "mine.jsonl")
    assert main(["evaluate", str(checkpoint), "--data", str(tmp_path / "mine.jsonl"), "--json", *SHORT]) == 0
    results = json.loads(capsys.readouterr().out)
    expected = 100 * fmean(exact_match(answer, [target]) for answer, target in zip(given, targets))
    assert results["splits"]["mine"]["methods"]["tagi"]["exact_match"] == round(expected, 2)
    assert results["leaks"] is None  # nothing to check with


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "{nowhere}"], "there is no {nowhere}; give a file or folder of records by --data"),
        (["--data", "{nowhere}", "--source", "sni"], "data.path: there is no {nowhere}"),
        (["--data", "{data}", "--splits", "unseem"], "--splits names 'unseem', but the data has"),
        (["--data", "builtin", "--options", "tasks=3"], "data.options has 'tasks', but builtin takes seed"),
        (["--data", "{data}/unseen.jsonl", "--options", "tasks=3"], "--options has 'tasks', but tables takes columns"),
        (["--data", "{data}", "--baseline", "{nowhere}"], "{nowhere}"),
        (["--data", "{data}", "--task_adapters", "{nowhere}"], "{nowhere} has no index.json with task adapters"),
    ],
)
def test_data_that_cannot_be_used_is_one_line_and_exit_code_2(arguments, message, checkpoint, data, tmp_path, capsys):
    places = {"data": data, "nowhere": tmp_path / "nowhere"}
    arguments = [text.format(**places) for text in arguments]
    assert main(["evaluate", str(checkpoint), *arguments, "--output_dir", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tagi evaluate: ") and message.format(**places) in line
    assert not list(tmp_path.iterdir())


def test_evaluate_refuses_a_checkpoint_that_is_not_there(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "nowhere/at/all", "--data", str(data)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tagi evaluate: ") and "nowhere/at/all" in line


def test_a_study_that_is_not_there_or_makes_no_sense_ends_in_one_line(tmp_path, capsys):
    assert main(["study", str(tmp_path / "nowhere.yaml")]) == 2
    (tmp_path / "mine.yaml").write_text("config: other.yaml\nmethods: [tagi]\nseed: [0]\n")
    assert main(["study", str(tmp_path / "mine.yaml")]) == 2
    assert main(["study", RECIPE]) == 2
    missing, unknown, a_run = capsys.readouterr().err.splitlines()
    assert a_run.endswith(f"is the configuration of one run; start it with: python train.py {RECIPE}")
    assert missing.startswith("tagi study: there is no configuration") and "nowhere.yaml" in missing
    assert unknown.endswith("unknown field 'seed'; did you mean 'seeds'?")
    with pytest.raises(SystemExit) as ended:
        main(["study", "x.yaml", "--workers", "0"])
    assert ended.value.code == 2


def test_evaluate_scores_the_nearest_of_given_task_adapters(checkpoint, make_model, data, tmp_path, capsys):
    model, bank = make_model("t5"), AdapterBank(tmp_path / "bank")
    adapter = model.generate_adapter(torch.tensor([[5, 6, 7]]))
    bank.add(["say a"], TagiAdapter(adapter.lora_a, adapter.lora_b, adapter.lora_alpha), [{"reads": "input"}])
    arguments = ["evaluate", str(checkpoint), "--data", str(data), "--splits", "unseen", "--json", *SHORT]
    assert main([*arguments, "--references", "nearest_adapter", "--task_adapters", str(bank.folder)]) == 0
    assert list(json.loads(capsys.readouterr().out)["splits"]["unseen"]["methods"]) == ["tagi", "nearest_adapter"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--references", "nearest_adapter"])
    assert ended.value.code == 2 and "needs --task_adapters FOLDER" in capsys.readouterr().err
