"""The registry of methods: what one line of it reaches."""

from modeling_tagi.common.methods import METHODS, Method
from modeling_tagi.configuration_tagi import TagiConfig
from modeling_tagi.costs.flops import Lengths
from modeling_tagi.costs.inference import cost_of_methods, t5_backbone
from modeling_tagi.evaluation.references import in_order, shown_beside_own, shown_by_category
from modeling_tagi.evaluation.report.formats import title_of
from modeling_tagi.studies.summary import summarise
from modeling_tagi.training.settings import build_settings


def test_a_new_method_is_one_line(monkeypatch):
    mine = Method({"tagi.fusion": "concat"}, "Mine", True, among_references=True, compared=True, by_category=0,
                  beside_own=True)  # fmt: skip
    monkeypatch.setitem(METHODS, "mine", mine)
    assert build_settings({"backbone": {"name": "x"}}, {"method": "mine"}).tagi == {"fusion": "concat"}
    costs = cost_of_methods(TagiConfig(t5_backbone("t5-small")), Lengths(20, 10, 5))["methods"]
    assert costs["mine"] == costs["hint"] and title_of("mine") == "Mine"
    assert in_order(["other", "mine", "oracle", "no_instruction"]) == ["no_instruction", "mine", "oracle", "other"]
    assert shown_by_category() == ["mine", "tagi", "prompted", "start_prompted", "hint", "hypertuning"]
    assert shown_beside_own() == ["start_prompted", "prompted", "mine", "oracle"]
    line = {"split": "unseen", "train_tasks": 3, "seed": 0, "kind": "trained", "task": "a", "group": "a"}
    lines = [{**line, "method": name, "exact_match": score} for name, score in (("mine", 3.0), ("tagi", 5.0))]
    row = summarise(lines, lines)["rows"][1]
    assert row["method"] == "tagi" and row["exact_match"]["minus_mine"]["mean"] == 2.0


def test_tables_of_costs_have_the_methods_that_differ_in_them():
    costs = cost_of_methods(TagiConfig(t5_backbone("t5-small")), Lengths(20, 10, 5))
    assert list(costs["methods"]) == ["prompted", "hypter", "hypertuning", "hint", "tagi"]
    assert list(costs["by_inputs"]) == ["x", *costs["methods"]]
