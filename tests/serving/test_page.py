"""What docs/how-to/serve.md asks a server, as it stands there."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")
INSTRUCTION, TEXT = "write the last word of the list", "dog plum saw"


def pasted(language, served):
    """The page's block in that language which asks the server, with this server's address."""
    (code,) = re.findall(rf"runs it -->\n```{language}\n(.*?)^```$", PAGE, re.M | re.S)
    assert INSTRUCTION in code and TEXT in code
    return code.replace("http://127.0.0.1:8000", served.url)


@pytest.fixture(scope="module")
def served(serving, models, tmp_path_factory):
    with serving(models("t5"), tmp_path_factory.mktemp("adapters")) as served:
        yield served


def test_the_line_of_curl_is_answered(served, models, alone):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    found = subprocess.run(["bash", "-c", pasted("bash", served)], capture_output=True, text=True, check=True)
    answer = json.loads(found.stdout)["choices"][0]["text"]
    assert answer.strip() == alone(models("t5"), INSTRUCTION, TEXT, 16).strip()


def test_the_snippet_of_openais_client_prints_the_answer(served, models, alone, capsys):
    pytest.importorskip("openai", reason="the client is of the extra `test`")
    exec(compile(pasted("python", served), "serve.md", "exec"), {})
    assert capsys.readouterr().out.strip() == alone(models("t5"), INSTRUCTION, TEXT, 64).strip()
