import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub.utils import filter_repo_objects

from modeling_tagi.evaluation import modules
from modeling_tagi.evaluation.modules.rank_classification.ranks import rank_scores
from modeling_tagi.evaluation.modules.sni_answers.scores import answer_scores

ROOT = Path(__file__).parents[2]
NAMES = ["rank_classification", "sni_answers"]
ANSWERS = {
    "predictions": ["Runs fast!", "", "東京 a", "42"],
    "references": [["run fast"], ["a", "b"], ["a"], ["4", "42."]],
    "tasks": ["t", "t", "u", "u"],
    "categories": ["c", "c", "c", "d"],
}
RANKED = {
    "log_likelihoods": [[-4.0, -6.0], [-4.0, -6.0], [-1.5, -2.0, -0.25], [-1.0, -1.0]],
    "token_counts": [[1, 3], [1, 3], [1, 1, 1], [2, 1]],
    "references": [0, 1, 2, 0],
    "templates": ["a", "a", "b", "c"],
    "datasets": ["d", "d", "d", "e"],
}
# No socket can be made, and what is printed last is the result.
OFFLINE = """
import json, socket, sys

class NoNetwork(socket.socket):
    def __init__(self, *arguments, **options):
        raise OSError("the network was asked for")

socket.socket = NoNetwork
"""


def _run(code, folder, *arguments, **environment):
    folder.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", **environment,
    }  # fmt: skip
    command = [sys.executable, "-c", OFFLINE + code, *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def _as_on_the_hub(folder):
    """Copies of the folders, with the files that the upload takes; returns these files' names."""
    names = {}
    for name in NAMES:
        files = [str(path.relative_to(modules.FOLDER / name)) for path in (modules.FOLDER / name).rglob("*.*")]
        names[name] = sorted(filter_repo_objects(files, allow_patterns="[!_]*"))
        (folder / name).mkdir(parents=True)
        for file in names[name]:
            shutil.copyfile(modules.FOLDER / name / file, folder / name / file)
    return names


@pytest.mark.slow
def test_both_load_from_the_package_without_the_network(tmp_path):
    found = _run(
        """
from modeling_tagi.evaluation.modules import load_metric
assert "evaluate" not in sys.modules
answers, ranked = json.loads(sys.argv[1])
one, two = load_metric("sni_answers"), load_metric("rank_classification", keep_in_memory=True)
print(json.dumps([one.compute(**answers), two.compute(**ranked), one.module_type, one.name, two.name]))
""",
        tmp_path / "elsewhere",
        json.dumps([ANSWERS, RANKED]),
        PYTHONPATH=str(ROOT),
    )
    assert found == [answer_scores(**ANSWERS), rank_scores(**RANKED), "metric", "sni_answers", "rank_classification"]


def test_as_uploaded_they_need_nothing_of_the_package_and_their_cards_are_right(tmp_path):
    files = _as_on_the_hub(tmp_path / "hub")
    assert files == {
        "sni_answers": ["README.md", "index.html", "requirements.txt", "scores.py", "sni_answers.py"],
        "rank_classification": ["README.md", "index.html", "rank_classification.py", "ranks.py", "requirements.txt"],
    }
    found = _run(
        """
import re
from pathlib import Path
sys.modules["modeling_tagi"] = None  # an import of it fails
results = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    code = re.search(r"```python\\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    assert f'"path/to/{folder.name}"' in code
    names = {}
    exec(code.replace(f"path/to/{folder.name}", str(folder)), names)
    results[folder.name] = names["scores"]
print(json.dumps(results))
""",
        tmp_path / "elsewhere",
        tmp_path / "hub",
    )
    rounded = {key: round(found["sni_answers"][key], 1) for key in ("exact_match", "rouge_l")}
    assert rounded == {"exact_match": 50.0, "rouge_l": 83.3}
    assert {key: found["rank_classification"][key] for key in ("sum", "mean")} == {"sum": 50.0, "mean": 100.0}
    for name, scores in found.items():
        card = (modules.FOLDER / name / "README.md").read_text("utf-8")
        for key in scores:
            assert f"`{key}`" in card, f"the card of {name} does not say what {key} is"
        for value in rounded.values() if name == "sni_answers" else (50.0, 100.0):
            assert str(value) in card
        # Nothing is written beside the script, so the package may be read-only.
        assert sorted(path.name for path in (tmp_path / "hub" / name).iterdir()) == files[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_a_metric_of_the_hub(name):
    folder = modules.FOLDER / name
    front = yaml.safe_load((folder / "README.md").read_text("utf-8").split("---\n")[1])
    assert {"evaluate", "metric"} <= set(front["tags"]) and front["license"] == "apache-2.0"
    assert (folder / front["app_file"]).exists() and front["sdk"] == "static"
    required = {re.split("[>=<]", line)[0].replace("-", "_") for line in (folder / "requirements.txt").open()}
    code = "\n".join(path.read_text("utf-8") for path in folder.glob("[!_]*.py"))
    imported = set(re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE)) - set(sys.stdlib_module_names)
    assert imported == required | {"datasets"}  # evaluate brings datasets


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no metric 'rouge'; give one of 'rank_classification', 'sni_answers'"):
        modules.load_metric("rouge")


def test_without_evaluate_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ImportError, match="pip install evaluate"):
        modules.load_metric("sni_answers")


def test_over_records_and_over_templates():
    found = rank_scores(**RANKED)
    # Right by sum: yes, no, yes, a tie of two. Per token: no, yes, yes, and -1/2 before -1.
    assert (found["sum"], found["mean"], found["n"]) == (62.5, 75.0, 4)
    assert found["per_template"]["a"] == {"sum": 50.0, "mean": 50.0, "n": 2}
    assert found["macro"] == pytest.approx({"sum": (50 + 100 + 50) / 3, "mean": (50 + 100 + 100) / 3})
    of_d = found["per_dataset"]["d"]
    assert of_d["sum"] == {"median": 75.0, "q1": 62.5, "q3": 87.5, "iqr": 25.0, "min": 50.0, "max": 100.0}
    assert (of_d["templates"], of_d["n"]) == (2, 3)
    alone = rank_scores(*(RANKED[key] for key in ("log_likelihoods", "token_counts", "references")))
    assert alone == {"sum": 62.5, "mean": 75.0, "n": 4}


@pytest.mark.parametrize("columns, message", [
    ({"references": [0, 1]}, "4 records came with 2 references"),
    ({"token_counts": [[1, 1]] * 4}, "record 2 of 'b' has 3 log-likelihoods and 2 token counts"),
    ({"templates": None}, "datasets came without templates"),
    ({"templates": ["a", "a", "b", "a"]}, "'a' is in the data sets 'd' and 'e'; .*'e/a'"),
    ({"log_likelihoods": [[None, -1.0]] * 4}, "record 0 of 'a' .*NaN"),
    ({"references": [0, 1, 3, 0]}, "record 2 of 'b' has 3 options, so its right one cannot be 3"),
])
def test_what_cannot_be_ranked_is_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        rank_scores(**{**RANKED, **columns})
