from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from modeling_tagi import TagiModel
from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.data.records import Record
from modeling_tagi.data.tokenizer import train_tokenizer
from modeling_tagi.evaluation.evaluate import evaluate_model, score_methods, spread
from modeling_tagi.evaluation.metrics import normalise_answer
from modeling_tagi.evaluation.predict import Answering
from modeling_tagi.evaluation.references import REFERENCES
from modeling_tagi.evaluation.scores import evaluate_split
from modeling_tagi.evaluation.statistics import DIFFERENCES, SCORES, mean_interval
from modeling_tagi.evaluation.tables import table
from modeling_tagi.tokens import Tokens
from modeling_tagi.training.setting_fields import EvaluationSettings
from modeling_tagi.training.settings import build_settings


class Scripted:
    """Answers with what it is given, in order, and remembers what it was asked."""

    def __init__(self, answers=(), scores=()):
        self.answers, self.scores, self.asked = answers, scores, []

    def generate(self, records, progress=""):
        self.asked.append(("generate", [r.input for r in records]))
        return list(self.answers)

    def rank(self, records, progress=""):
        self.asked.append(("rank", [r.input for r in records]))
        return [(r.task, s, r.options.index(r.targets[0])) for r, s in zip(records, self.scores)]


FREE = [Record("a", "i", "1", ("yes",), "g"), Record("a", "i", "2", ("no",), "g"),
        Record("b", "j", "3", ("maybe so",), "h")]  # fmt: skip
CHOICE = [Record("c", "k", "4", ("x",), options=("x", "y", "z", "w"))]


def test_free_answers_are_scored_as_means_over_tasks():
    # task a: one of two right; task b: one of two words, ROUGE-L 2 * 1 * 0.5 / 1.5 = 2/3
    results = evaluate_split({"tagi": Scripted(["Yes.", "yes", "maybe"])}, FREE, rank=True)
    scores = results["methods"]["tagi"]
    assert scores["exact_match"] == 25.0
    assert scores["rouge_l"] == pytest.approx((50 + 200 / 3) / 2, abs=0.01)
    assert scores["n"] == 3 and scores["per_task"]["a"]["exact_match"] == 50
    assert scores["per_category"] == {"g": {"exact_match": 50.0, "rouge_l": 50.0, "n": 2},
                                      "h": {"exact_match": 0.0, "rouge_l": 66.67, "n": 1}}  # fmt: skip
    assert results["chance"] is None and "rank_accuracy" not in scores and results["differences"] == {}


def test_records_with_options_are_ranked_and_the_others_answered():
    # by the sum the right option wins, by token another one does
    method = Scripted(["yes", "no", "maybe so"], [[(-1.0, 1), (-2.0, 4), (-9.0, 1), (-9.0, 1)]])
    results = evaluate_split({"tagi": method}, FREE + CHOICE, rank=True)
    assert method.asked == [("generate", ["1", "2", "3"]), ("rank", ["4"])]
    scores = results["methods"]["tagi"]
    assert (scores["exact_match"], scores["rank_accuracy"], scores["rank_accuracy_mean"]) == (100, 100, 0)
    assert (scores["n"], scores["n_ranked"]) == (3, 1)
    assert scores["per_dataset_ranked"]["c"]["sum"]["median"] == 100
    assert (results["chance"], results["majority"]) == (25, 100)


def test_without_ranking_options_are_answered_freely():
    method = Scripted(["x"])
    results = evaluate_split({"tagi": method}, CHOICE, rank=False)
    assert method.asked == [("generate", ["4"])] and results["methods"]["tagi"]["exact_match"] == 100


def test_a_split_of_options_alone_has_no_exact_match():
    results = evaluate_split({"tagi": Scripted(scores=[[(-1.0, 1)] + [(-2.0, 1)] * 3])}, CHOICE, rank=True)
    scores = results["methods"]["tagi"]
    assert scores["exact_match"] is None and scores["n"] == 0 and "exact_match_interval" not in scores


def many(**sizes):
    return [Record(task, "i", f"{task} {n}", ("y",)) for task, size in sizes.items() for n in range(size)]


def test_intervals_and_differences_are_over_tasks():
    # tagi has all of a, b, c and none of d; prompted all of a alone: the difference is 0, 100, 100, 0
    records = many(a=1, b=2, c=1, d=1)
    methods = {"prompted": Scripted(["y", "n", "n", "n", "n"]), "tagi": Scripted(["y", "y", "y", "y", "n"])}
    results = evaluate_split(methods, records, rank=False, pairs=[("tagi", "prompted")])
    found = results["methods"]["tagi"]
    expected = mean_interval([100, 100, 100, 0], bounds=SCORES)
    assert found["exact_match"] == 75
    assert found["exact_match_interval"] == [round(expected.low, 2), round(expected.high, 2)]
    assert expected.low < 75 < expected.high
    expected = mean_interval([0, 100, 100, 0], bounds=DIFFERENCES)
    assert list(results["differences"]) == ["tagi - prompted"]
    assert results["differences"]["tagi - prompted"]["exact_match"] == {
        "mean": 50.0, "low": round(expected.low, 2), "high": round(expected.high, 2)
    }  # fmt: skip
    assert results["clusters"] == 4
    assert set(results["differences"]["tagi - prompted"]) == {"exact_match", "rouge_l"}


def test_intervals_and_differences_are_over_the_groups_that_tasks_come_from():
    # a and b are of one family and fare alike, as c and d do: two groups say less than four tasks
    family = {"a": "one", "b": "one", "c": "two", "d": "two"}
    records = [Record(task, "i", f"{task} {n}", ("y",), family[task]) for task in family for n in range(4)]
    said = {"prompted": "yynn yynn nnnn nnnn", "tagi": "yyyn yyyy ynnn nnnn"}
    methods = {name: Scripted(text.replace(" ", "")) for name, text in said.items()}
    results = evaluate_split(methods, records, rank=False, pairs=[("tagi", "prompted")])
    scores, groups = [75, 100, 25, 0], [*family.values()]
    assert results["clusters"] == 2
    for found, expected in (
        (results["methods"]["tagi"]["exact_match_interval"], mean_interval(scores, groups, bounds=SCORES)),
        ([results["differences"]["tagi - prompted"]["exact_match"][x] for x in ("low", "high")],
         mean_interval([25, 50, 25, 0], groups, bounds=DIFFERENCES)),
    ):  # fmt: skip
        assert found == [round(expected.low, 2), round(expected.high, 2)]
    assert results["methods"]["tagi"]["exact_match_interval"][0] < mean_interval(scores, bounds=SCORES).low


def test_tasks_of_one_group_alone_are_noted():
    records = [Record(task, "i", f"{task} {n}", ("y",), "one") for task in "ab" for n in range(2)]
    settings = EvaluationSettings(references=["start_prompted"])
    results = score_methods(None, Scripted(["y", "n", "y", "y"]), {"s": records}, settings, None)
    assert "s: all tasks are of the group 'one', so intervals are over its tasks" in results["notes"][0]


def test_a_limit_is_spread_over_the_tasks():
    records = many(a=10, b=2, c=10)
    chosen = spread(records, 9)
    assert Counter(r.task for r in chosen) == {"a": 4, "b": 2, "c": 3}
    assert chosen == [r for r in records if r in chosen]
    assert Counter(r.task for r in spread(records, 2)) == {"a": 1, "b": 1}


def test_no_limit_keeps_every_record():
    records = many(a=3, b=2)
    assert spread(records, None) == spread(records, 5) == spread(records, 99) == records


def test_a_table_has_a_row_for_each_method_and_a_column_for_each_score():
    free = {"exact_match": 12.34, "exact_match_interval": [10.0, 15.55], "rouge_l": 0.0, "n": 3}
    ranked = {"exact_match": None, "rouge_l": None, "n": 0, "rank_accuracy": 50.0, "rank_accuracy_mean": 25.0}
    difference = {"exact_match": {"mean": 2.5, "low": -1.0, "high": 6.25}}
    results = {"splits": {
        "unseen": {"methods": {"mine": free, "tagi": free, "prompted": free}, "chance": None, "majority": None,
                   "differences": {"tagi - no_instruction": difference}},
        "choices": {"methods": {"prompted": ranked, "tagi": ranked}, "chance": 25.0, "majority": 33.3},
    }}  # fmt: skip
    assert table(results).splitlines() == [
        "| split | method | exact match | rouge l | rank accuracy | rank accuracy mean |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| unseen | prompted | 12.3 [10.0, 15.6] | 0.0 | – | – |",
        "| unseen | tagi | 12.3 [10.0, 15.6] | 0.0 | – | – |",
        "| unseen | mine | 12.3 [10.0, 15.6] | 0.0 | – | – |",
        "| choices | prompted | – | – | 50.0 | 25.0 |",
        "| choices | tagi | – | – | 50.0 | 25.0 |",
        "| choices | *chance* | – | – | 25.0 | 25.0 |",
        "| choices | *majority* | – | – | 33.3 | 33.3 |",
        "",
        "| split | difference | exact match | rouge l | rank accuracy | rank accuracy mean |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| unseen | tagi − no instruction | +2.5 [-1.0, +6.2] | – | – | – |",
    ]
    assert table(results, ["choices"]).splitlines()[-1].startswith("| choices | *majority*")


# A whole model

WORDS = "red green blue one two three four apple pear plum cat dog".split()
TASKS = {"first": "say the first word", "last": "say the last word", "second": "give word number two"}


def records_of(*tasks, group="", **fields):
    return [Record(task, TASKS[task], " ".join(WORDS[n: n + 4]), (WORDS[n],), group, **fields)
            for task in tasks for n in range(4)]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a tiny backbone, a generator on it that changes something, tokens, and a bank of adapters."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = train_tokenizer([*WORDS, *TASKS.values(), "Input:"], 60)
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, initializer_factor=4.0,
        pad_token_id=0, eos_token_id=1, vocab_size=len(tokenizer),
    )).save_pretrained(folder)  # fmt: skip
    model = TagiModel.from_backbone(folder, r=2, lora_alpha=8, generator_hidden_size=8, generator_index_size=4)
    for stack in model.hypernetwork.stacks:
        for weight in stack.output_weights:
            torch.nn.init.normal_(weight, std=1.0)
    model.tokenizer = tokenizer
    bank = AdapterBank(folder / "task_adapters")
    adapters = [model.generate_adapter(TASKS[task]) for task in ("first", "last")]
    for name, adapter in zip(("first", "last"), adapters):
        plain = type(adapter)(adapter.lora_a, adapter.lora_b, adapter.lora_alpha, peft_config=adapter.peft_config)
        bank.add([name], plain, [{"by": "task", "reads": "input"}])
    return folder, model, Tokens(tokenizer, True, 48, 6), bank


def settings_with(references, reads="adapter", steps=1, label="tagi", **evaluation):
    evaluation = {"references": references, "oracle": {"steps": 2}, **evaluation}
    finetuning = {"steps": steps, "reads": reads, "distillation_weight": 0, "alignment": "none", "train": "all"}
    bank = {"steps": int("nearest_adapter" in references)}
    return build_settings({"finetuning": finetuning, "evaluation": evaluation, "task_adapters": bank, "label": label})


EVERY = list(REFERENCES)
SHOWN = {*EVERY, "tagi"}


def test_a_model_is_scored_beside_all_its_references(made):
    folder, model, tokens, bank = made
    splits, train = {"unseen": records_of("second"), "dev": records_of("last")}, records_of("first", "last")
    results = evaluate_model(settings_with(EVERY), model, tokens, (folder, None), splits, train, bank)
    for split in splits:
        assert set(results["splits"][split]["methods"]) == SHOWN
        assert "tagi - oracle" in results["splits"][split]["differences"]
    assert results["tasks"] == {"second": {"group": "second", "split": "unseen"},
                                "last": {"group": "last", "split": "dev"}}  # fmt: skip
    assert [note.split(":")[0] for note in results["notes"]] == ["unseen", "dev"]  # of one task each
    again = evaluate_model(settings_with(EVERY), model, tokens, (folder, None), splits, train, bank)
    assert again == results


def test_each_method_answers_in_its_own_way(made):
    folder, model, tokens, bank = made
    asked, train = records_of("second", "last"), records_of("first", "last")
    swapped = {"second": TASKS["last"], "last": TASKS["second"]}
    ways = {
        "tagi": Answering(model, tokens, "adapter"),
        "start_prompted": Answering(model.backbone, tokens, "prompt"),
        "no_instruction": Answering(model.backbone, tokens, "input"),
        "wrong_instruction": Answering(model, tokens, "adapter", 64, swapped),
    }
    given = {name: way.generate(asked) for name, way in ways.items()}
    assert all(given[a] != given[b] for a in ways for b in ways if a < b)
    for name, answers in given.items():  # right answers are those of this method, so that it alone is always right
        told = [replace(record, targets=(answer or "?",)) for record, answer in zip(asked, answers)]
        results = evaluate_model(settings_with(EVERY), model, tokens, (folder, None), {"unseen": told}, train, bank)
        scores = {other: found["rouge_l"] for other, found in results["splits"]["unseen"]["methods"].items()}
        said = sum(bool(normalise_answer(answer)) for answer in answers)
        assert said >= 4 and scores.pop(name) == pytest.approx(100 * said / len(asked))
        assert set(scores) == SHOWN - {name}
        scores.pop("oracle")  # tuned so shortly that it still is the backbone without instruction
        assert all(value < 100 * said / len(asked) for value in scores.values())


def test_a_model_is_called_by_its_label_and_its_start_by_another_name(made):
    folder, model, tokens, _ = made
    splits = {"unseen": records_of("second", "last")}
    settings = settings_with(["start_prompted", "wrong_instruction"], reads="prompt", label="mine")
    results = evaluate_model(settings, model, tokens, (folder, None), splits, [])
    methods = results["splits"]["unseen"]["methods"]
    assert list(methods) == ["start_prompted", "wrong_instruction", "mine"]
    assert methods["mine"] == methods["start_prompted"]  # the same backbone, bare
    assert list(results["splits"]["unseen"]["differences"]) == ["mine - start_prompted", "mine - wrong_instruction"]


def test_without_training_there_are_references_alone(made):
    folder, model, tokens, _ = made
    settings = settings_with(["start_prompted", "no_instruction", "wrong_instruction", "random_words"], steps=0)
    results = evaluate_model(settings, model, tokens, (folder, None), {"unseen": records_of("second", "last")}, [])
    assert list(results["splits"]["unseen"]["methods"]) == ["no_instruction", "start_prompted"]


def test_what_cannot_be_made_is_left_out_with_a_note(made):
    folder, model, tokens, _ = made
    settings = settings_with(["wrong_instruction", "random_words", "oracle"])
    results = evaluate_model(settings, model, tokens, (folder, None), {"one": records_of("first")[:1]}, [])
    assert list(results["splits"]["one"]["methods"]) == ["tagi"]
    notes = "\n".join(results["notes"])
    assert "one: no wrong_instruction" in notes and "one: no random_words" in notes
    assert "one: no oracle, since task 'first' has 1 distinct input" in notes


def test_the_nearest_adapter_without_a_bank_is_refused(made):
    folder, model, tokens, _ = made
    settings, splits = settings_with(["nearest_adapter"]), {"unseen": records_of("last")}
    with pytest.raises(ValueError, match="has 'nearest_adapter', but there are no task adapters; give"):
        evaluate_model(settings, model, tokens, (folder, None), splits, [])
