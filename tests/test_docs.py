"""What README.md and docs/ say holds: snippets run as pasted, links lead somewhere, the README stays short."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from modeling_tagi.commands.main import main
from modeling_tagi.commands.table import COMMANDS
from modeling_tagi.data.records import Record
from modeling_tagi.studies.settings import StudySettings
from modeling_tagi.training.recipes import recipe_file
from modeling_tagi.training.settings import RunSettings, build_settings, load_settings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *(ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")),
         *sorted((ROOT / "docs").rglob("*.md"))]  # fmt: skip
BLOCK = re.compile(r"^(?:<!-- not run: (?P<why>.+?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
MODEL = "outputs/quickstart/model"  # what the pages load, which a run of minutes makes
CAUSAL = "outputs/quickstart-llama/model"
BACKBONE = "google/t5-base-lm-adapt"  # and what they put a generator on


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """The code of a page's blocks in that language, without those that are marked as not run."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [block["code"] for block in found if block["language"] == language and not block["why"]]


def with_blocks(language):
    return [page for page in PAGES if blocks(page, language)]


def commands(page):
    """The lines of a page that call `tagi` or train.py, as words, without comments and what stands before them."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    for words in (shlex.split(line, comments=True) for line in lines):
        while words and "=" in words[0]:
            words = words[1:]
        if words[:1] == ["tagi"]:
            yield words[1:]
        elif "train.py" in words:
            yield ["train", *words[words.index("train.py") + 1:]]


@pytest.fixture
def pasted(hub, make_model, make_backbone, tokenizer, tmp_path, monkeypatch):
    """A folder with a small checkpoint where the pages have theirs, and a Hub with the backbone that they name.

    Returns what puts this Hub's names into a snippet.
    """
    for family, folder in (("t5", MODEL), ("llama", CAUSAL)):
        model = make_model(family)
        model.tokenizer = tokenizer
        model.save_pretrained(tmp_path / folder)
    backbone = tmp_path / "stock"
    make_backbone("t5").save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    stock = BACKBONE.replace("google/", "user/")
    monkeypatch.chdir(tmp_path)
    assert main(["push", MODEL, "user/is-there"]) == 0  # the Hub takes what is pushed
    hub.repositories[stock] = type(hub.repositories["user/is-there"])()
    hub.repositories[stock].commit("main", {file.name: file.read_bytes() for file in backbone.iterdir()}, "stock")
    return lambda code: code.replace(BACKBONE, stock).replace('"me/', '"user/')


@pytest.mark.parametrize("page", with_blocks("python"), ids=name)
def test_python_snippets_run_as_pasted_one_after_the_other(page, pasted):
    names = {}
    for code in blocks(page, "python"):
        exec(compile(pasted(code), name(page), "exec"), names)


def test_the_readmes_commands_on_a_checkpoint_do_what_they_say(pasted, capsys):
    ran = []
    for words in commands(README):
        if words[0] in ("generate", "run"):
            capsys.readouterr()
            assert main(words) == 0
            ran.append((words[0], capsys.readouterr().out))
    (generated, folder), (_, by_adapter), (_, by_instruction) = ran
    assert generated == "generate" and folder == "last-word\n" and Path("last-word/adapter_config.json").is_file()
    assert by_adapter == by_instruction and by_adapter.strip()


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=name)
def test_commands_are_ones_that_the_command_line_takes(page, monkeypatch):
    for words in commands(page):
        called = []
        monkeypatch.setattr(COMMANDS[words[0]], "call", lambda options: called.append(options) or 0)
        assert main(words) == 0, words
        if hasattr(called[0], "fields"):  # those of a run, on top of its configuration
            load_settings(recipe_file(called[0].config), called[0].fields)


@pytest.mark.parametrize("page", with_blocks("json"), ids=name)
def test_lines_of_data_are_records(page):
    for line in "".join(blocks(page, "json")).splitlines():
        Record(**json.loads(line))


@pytest.mark.parametrize("page", with_blocks("yaml"), ids=name)
def test_yaml_has_fields_that_there_are(page):
    for code in blocks(page, "yaml"):
        values = yaml.safe_load(code)
        if "config" in values:
            assert set(values) <= set(StudySettings.__dataclass_fields__)
        elif set(values) & set(RunSettings.__dataclass_fields__):
            build_settings({"backbone": {"name": "a/b"}, **values})
        else:  # a collection of task adapters
            assert all(isinstance(one, str) for pair in values.items() for one in pair)


def anchors(page):
    """What a page's headings are called in a link."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_found_from_the_readme():
    found, to_do = set(), [README]
    while to_do:
        page = to_do.pop()
        if page in found or page.suffix != ".md":
            continue
        found.add(page)
        text = page.read_text(encoding="utf-8")
        to_do += [(page.parent / link).resolve() for link in re.findall(r"\]\(([^)\s#]+)", text) if ":" not in link]
    assert found >= set(PAGES)


def test_the_readme_keeps_its_limits():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    assert max(map(len, lines)) <= 110


def test_the_readmes_scores_are_those_of_committed_results():
    said = re.findall(r"[+−-]?[\d.]+ \[[^\]\d]*[\d.]+, [^\]]+\]", README.read_text(encoding="utf-8"))
    files = (ROOT / "docs" / "results").glob("*.md")
    results = plain_numbers("".join(file.read_text(encoding="utf-8") for file in files))
    assert len(said) > 5 and all(plain_numbers(score) in results for score in said)


def plain_numbers(text):
    return text.replace("−", "-").replace("+", "")


def test_ci_runs_the_tests_as_the_readme_says():
    (said,) = [line for code in blocks(README, "bash") for line in code.splitlines() if "pytest" in line]
    ran = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert ran.replace("pip install -q", "pip install") == said


@pytest.mark.slow
def test_the_smoke_run_of_the_readme_leaves_a_checkpoint(tmp_path):
    assert "`tagi train smoke`" in README.read_text(encoding="utf-8")
    command = [sys.executable, "-m", "modeling_tagi.commands.main", "train", "smoke"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "outputs" / "smoke" / "model" / "config.json").is_file()
