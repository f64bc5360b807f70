"""The programs of examples/: on a tiny checkpoint they keep their contracts, on the shipped one their answers."""

import importlib.util
import json
import mailbox
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SHIPPED = str(EXAMPLES.parent / "checkpoints" / "smollm2-135m")


def program(name):
    if name == "fastapi_app":
        pytest.importorskip("fastapi", reason='the example needs the extra: pip install -e ".[serve]"')
        pytest.importorskip("uvicorn", reason='the example needs the extra: pip install -e ".[serve]"')
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(make_model, tokenizer, tmp_path):
    model = make_model("t5")
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def subjects(file):
    return [mail["subject"] for mail in mailbox.mbox(file)] if file.exists() else []


def test_mails_are_each_in_one_folder_and_not_sorted_twice(checkpoint, tmp_path):
    examples, folders = program("sort_emails"), ["plum", "oak"]
    given = EXAMPLES / "inbox.mbox", tmp_path / "sorted", checkpoint, "name the tree", folders
    counts = examples.sort_mails(*given)
    found = {folder: subjects(tmp_path / "sorted" / f"{folder}.mbox") for folder in folders}
    assert counts == {folder: len(mails) for folder, mails in found.items()}
    assert sorted(sum(found.values(), [])) == sorted(subjects(EXAMPLES / "inbox.mbox")) != []
    with pytest.raises(FileExistsError, match="would be added"):
        examples.sort_mails(*given)


def test_a_mail_without_plain_text_is_read_by_its_subject():
    mail = mailbox.mboxMessage()
    mail["Subject"] = "My order"
    mail.add_header("Content-Type", "text/html")
    mail.set_payload("<p>late</p>")
    assert program("sort_emails").text_of(mail) == "My order"


def test_a_data_set_keeps_its_rows_and_gets_answers(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = program("map_dataset").answered(
        str(EXAMPLES / "sentences.jsonl"), checkpoint, "write the last word of the list", batch_size=2)  # fmt: skip
    given = [json.loads(line)["text"] for line in (EXAMPLES / "sentences.jsonl").read_text("utf-8").splitlines()]
    assert rows["text"] == given and all(isinstance(answer, str) for answer in rows["answer"])


def test_a_web_service_answers_by_the_function(make_model, tokenizer):
    example = program("fastapi_app")
    client = pytest.importorskip("fastapi.testclient", reason="the test needs httpx, of the extra `test`").TestClient
    model = make_model("t5")
    model.tokenizer = tokenizer
    classify, texts = model.function("name the tree", options=["plum", "oak"]), ["dog plum saw", "tea oak"]
    with client(example.application(classify)) as service:
        assert service.post("/reviews", json={"texts": texts}).json() == {"labels": classify(texts)}
        assert service.post("/reviews", json={"texts": []}).status_code == 422


def command(name, folder):
    """The command that a program's docstring has, on this Python and with its output in a folder."""
    (line,) = re.findall(rf"^    python (examples/{name}\.py .+)$", program(name).__doc__, re.M)
    *words, output = shlex.split(line)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache")}
    subprocess.run([sys.executable, *words, folder / output], cwd=EXAMPLES.parent, env=environment, check=True)
    return folder / output


@pytest.mark.slow  # the shipped model is loaded once for each
def test_the_shipped_checkpoint_sorts_mails_and_finds_years(smollm2, tmp_path):
    output = command("sort_emails", tmp_path)
    assert subjects(output / "happy.mbox") == ["My order", "Saturday", "Lamp"]
    assert subjects(output / "unhappy.mbox") == ["Parcel", "Refund", "Jacket"]
    rows = [json.loads(line) for line in command("map_dataset", tmp_path).read_text("utf-8").splitlines()]
    assert all(row["answer"] in re.findall(r"\d{4}", row["text"]) for row in rows) and len(rows) == 5


def notebook():
    nbformat = pytest.importorskip("nbformat", reason="the notebook needs nbclient, of the extra `test`")
    return nbformat.read(EXAMPLES / "function.ipynb", as_version=4)


def test_the_notebook_is_committed_without_outputs():
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook().cells)


@pytest.mark.slow  # a minute with the shipped model
def test_the_notebook_runs_from_top_to_bottom(smollm2):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is of the extra `test`")
    pytest.importorskip("ipykernel", reason="ipykernel is of the extra `test`")
    cells = notebook()
    nbclient.NotebookClient(cells, timeout=600, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    said = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "")
                   for cell in cells.cells for output in cell.get("outputs", ()))  # fmt: skip
    assert all(answer in said for answer in ("['positive', 'negative']", "1932", "anna.smith@example.org"))
    assert any("image/png" in output.get("data", {}) for cell in cells.cells for output in cell.get("outputs", ()))
