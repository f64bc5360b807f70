"""The registry of references: what it refuses, and how tables order and name them."""

import pytest

from modeling_tagi.evaluation.references import REFERENCES, in_order, require_names, require_references, title_of
from modeling_tagi.training.settings import build_settings


def test_every_reference_says_what_it_is():
    for name, reference in REFERENCES.items():
        assert reference.name == name and reference.title and reference.__doc__.split()[0] == "Gives"


def test_tables_have_references_above_and_below_what_was_trained(monkeypatch):
    class Toy(REFERENCES["oracle"]):
        name, title = "toy", "a toy"

    monkeypatch.setitem(REFERENCES, Toy.name, Toy)
    names = ["mine", "toy", "oracle", "tagi", "prompted", "start_prompted", "no_instruction", "random_words"]
    assert in_order(names) == [
        "no_instruction", "start_prompted", "prompted", "tagi", "random_words", "oracle", "toy", "mine"
    ]  # fmt: skip
    assert [title_of(name) for name in ("toy", "input_only", "start_prompted")] == [
        "a toy", "input only", "start prompted"
    ]  # fmt: skip


@pytest.mark.parametrize("name, message", [
    ("orcale", "references has 'orcale', but knows 'no_instruction', 'start_prompted', .*'oracle'"),
    ("prompted", "references has 'prompted', which is called 'start_prompted' now"),
    ("prompted_start", "references has 'prompted_start', which is called 'start_prompted' now"),
    (["oracle"], r"references has \['oracle'\], but knows"),
    (None, "references has None, but knows"),
])  # fmt: skip
def test_what_is_no_references_name_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        require_names(["oracle", name])


def test_a_run_needs_what_its_references_need():
    def settings(references, **fields):
        bare = {"finetuning": {"distillation_weight": 0, "alignment": "none"}}
        return build_settings({**bare, "evaluation": {"references": references}}, fields)

    with pytest.raises(ValueError, match="'nearest_adapter', but there are no task adapters: give task_"):
        require_references(settings(["nearest_adapter"]))
    for field, value in (("steps", 1), ("given", "x"), ("given", {"a": "y"})):
        require_references(settings(["nearest_adapter"], **{f"task_adapters.{field}": value}))
    with pytest.raises(ValueError, match="oracle.steps is 0, but the oracle has to be tuned: give at least 1"):
        require_references(settings(["oracle"], **{"evaluation.oracle.steps": 0}))
    require_references(settings(["start_prompted"], **{"evaluation.oracle.steps": 0}))
