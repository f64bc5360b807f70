"""The checkpoint that the repository holds, on the language model that it is for."""

import json
import re
from pathlib import Path

import pytest
from without_package import WRITTEN_BY_AUTO_MODEL, run_without_package

from modeling_tagi import TagiModel
from modeling_tagi.publishing.release import release

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "checkpoints" / "smollm2-135m"
MOST_BYTES = 25_000_000


@pytest.fixture(scope="module")
def model(smollm2):  # skips where the language model is not installed
    return TagiModel.from_pretrained(SHIPPED).eval()


def answers(model, instruction, inputs):
    adapter = model.generate_adapter(instruction)
    batch = model.encode_inputs(inputs)
    output = model.generate(**batch, adapter=adapter, max_new_tokens=16, do_sample=False)
    return [text.strip() for text in model.tokenizer.batch_decode(
        output[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)]  # fmt: skip


def test_it_is_a_generator_alone_and_small():
    files = {path.name: path.stat().st_size for path in SHIPPED.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "results.json"} <= set(files)
    assert sum(files.values()) <= MOST_BYTES and not any(name.endswith(".py") for name in files)
    config = json.loads((SHIPPED / "config.json").read_text())
    assert not config["backbone_in_checkpoint"] and config["backbone_sha256"] and config["standardise"]


def test_its_adapters_do_what_the_instruction_says(model):
    mails = ["anna.hill@mail.com", "kim@school.edu", "info@garden.org", "paul.reed@post.net"]
    texts = [f"Please write to {mail} before Friday." for mail in mails]
    stock = model.encode_inputs(texts)
    bare = model.generate(**stock, max_new_tokens=16, do_sample=False)[:, stock["input_ids"].shape[1]:]
    without = [text.strip() for text in model.tokenizer.batch_decode(bare, skip_special_tokens=True)]
    found = answers(model, "Extract the e-mail address.", texts)
    right, right_without = (sum(map(str.__eq__, said, mails)) for said in (found, without))
    assert right >= 3 and right_without == 0


@pytest.mark.parametrize("page", ["README.md", "checkpoints/smollm2-135m/README.md"])
def test_the_first_snippet_prints_what_its_page_says(smollm2, page, monkeypatch, capsys):
    text = (ROOT / page).read_text(encoding="utf-8")
    code, said = re.search(r"^```python\n(.*?)^```\n\nprints (.*?)\. ", text, re.M | re.S).groups()
    monkeypatch.chdir(ROOT)
    exec(compile(code, page, "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"`(.+?)`", said)


@pytest.mark.slow  # tests/publishing/test_release.py has it on a tiny model
def test_a_released_folder_opens_without_the_package(model, smollm2_folder, tmp_path):
    release(SHIPPED, tmp_path / "out", backbone=str(smollm2_folder))
    instruction = "Write the text in capital letters."
    found = run_without_package(WRITTEN_BY_AUTO_MODEL, tmp_path / "out", instruction, cwd=tmp_path)
    expected = model.generate_adapter(instruction).lora_b.values()
    assert float(found.split()[-1]) == pytest.approx(sum(float(b.abs().sum()) for b in expected), rel=1e-4)
