"""Results of earlier versions are read in the names of today."""

import json

import pytest

from modeling_tagi.evaluation.results import RESULTS_VERSION, read_results


def written(folder, *methods, label="tagi", version=1, **more):
    results = {
        "splits": {"unseen": {
            "methods": {name: {"exact_match": 50.0 + n, "rouge_l": None, "n": 4} for n, name in enumerate(methods)},
            "differences": {f"{methods[0]} - {name}": {"exact_match": {"mean": 1.0}} for name in methods[1:]},
            "examples": [{"outputs": {name: name for name in methods}}],
        }},
        "run": {"label": label}, **more,
    }  # fmt: skip
    if version > 1:
        results["schema_version"] = version
    (folder / "results.json").write_text(json.dumps(results))
    return results


@pytest.mark.parametrize("methods, more, expected", [
    (("tagi", "prompted_start", "oracle"), {}, ["tagi", "start_prompted", "oracle"]),
    (("prompted", "prompted_start"), {"label": "prompted"}, ["prompted", "start_prompted"]),
    (("prompted_start", "no_instruction"), {"label": "prompted_start"}, ["start_prompted", "no_instruction"]),
    (("tagi", "prompted"), {"baseline": "a/b"}, ["tagi", "start_prompted"]),  # an evaluation's name for it
    (("tagi", "prompted"), {"version": RESULTS_VERSION, "baseline": "a/b"}, ["tagi", "prompted"]),
])  # fmt: skip
def test_the_prompted_start_had_other_names(tmp_path, methods, more, expected):
    before = written(tmp_path, *methods, **more)["splits"]["unseen"]
    results = read_results(tmp_path)
    found = results["splits"]["unseen"]
    assert list(found["methods"]) == expected and list(found["methods"].values()) == [*before["methods"].values()]
    assert list(found["differences"]) == [f"{expected[0]} - {name}" for name in expected[1:]]
    assert found["examples"] == [{"outputs": dict(zip(expected, methods))}]
    assert results["run"]["label"] in ("tagi", *expected)


def test_a_folder_without_results_has_none(tmp_path):
    assert read_results(tmp_path) is None
