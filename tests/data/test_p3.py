import gzip
import json
import os
from functools import partial
from pathlib import Path

import pytest

from modeling_tagi.data.p3 import read_p3, read_t0_eval
from modeling_tagi.data.records import Record
from modeling_tagi.data.splits import check_splits, require_no_leaks
from modeling_tagi.data.streams import RecordStream

DATA = Path(os.environ.get("TAGI_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
real = pytest.mark.skipif(not (DATA / "p3").is_dir(),
                          reason=f"{DATA / 'p3'} is not here; set TAGI_DATA to the folder that holds p3/ and t0_eval/")
SEEN = ("task", "instruction")


def row(dataset, template, text, fold="train", **fields):
    return {"task": f"{dataset}_{template}", "dataset": dataset, "template": template, "fold": fold,
            "instruction": f"{dataset} {template}: {{{{text}}}}", "input": f"text: {text}", "target": "Yes",
            "options": ["Yes", "No"], "label": 0, "aligned": True, **fields}


def rows(dataset, templates, fold="train", texts=range(3)):
    return [row(dataset, f"p{n}", f"{dataset} {fold} {text}", fold) for n in range(templates) for text in texts]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in content).encode()))


@pytest.fixture
def p3(tmp_path):
    """Writes a folder of P3's layout from `{data set: rows}` of each part."""

    def build(train, valid=None, test=None):
        valid, test = valid or {"v": rows("v", 1, "valid")}, test or {"u": rows("u", 1, "test")}
        parts = {"train": train, "valid": valid, "test": test}
        for part, datasets in parts.items():
            for name, content in datasets.items():
                write(tmp_path / part / f"{name}.jsonl.gz", content)
        (tmp_path / "splits.json").write_text(json.dumps({part: list(names) for part, names in parts.items()}))
        return tmp_path

    return build


def both_folds(dataset, templates):
    return rows(dataset, templates) + rows(dataset, templates, "dev", range(2))


def tasks(records):
    return {record.task for record in records}


def test_fields_and_folds(p3):
    train = [row("a", "p", "one"), row("a", "p", "two", "dev", target="2", options=None, label=None)]
    splits = read_p3(p3({"a": train}))
    assert splits == {
        "train": [Record("a_p", "a p: {{text}}", "text: one", ("Yes",), "a", options=("Yes", "No"))],
        "seen_templates": [Record("a_p", "a p: {{text}}", "text: two", ("2",), "a")],
        "unseen_templates": [],
        "valid_datasets": [Record("v_p0", "v p0: {{text}}", f"text: v valid {n}", ("Yes",), "v", options=("Yes", "No"))
                           for n in range(3)],
        "unseen_datasets": [Record("u_p0", "u p0: {{text}}", f"text: u test {n}", ("Yes",), "u", options=("Yes", "No"))
                            for n in range(3)],
    }


@pytest.mark.parametrize("templates, held_out, expected", [
    (3, 1, 0), (4, 1, 1), (8, 1, 1), (9, 1, 2), (9, 3, 3), (9, 0, 0), (4, 9, 3),
])
def test_number_of_templates_kept_out(p3, templates, held_out, expected):
    splits = read_p3(p3({"a": both_folds("a", templates)}), held_out_templates=held_out)
    assert len(tasks(splits["unseen_templates"])) == expected
    assert tasks(splits["train"]) == tasks(splits["seen_templates"])
    assert len(tasks(splits["train"])) == templates - expected
    assert not tasks(splits["train"]) & tasks(splits["unseen_templates"])
    # Two dev instances through each template; train instances of a template kept out are nowhere.
    assert len(splits["unseen_templates"]) == 2 * expected
    assert all(" dev " in record.input for record in splits["unseen_templates"])


def test_a_wording_that_is_trained_on_elsewhere_is_never_kept_out(p3):
    train = {name: both_folds(name, 4) for name in "ab"}
    for content in train.values():
        for line in content:
            if line["template"] != "p3":
                line["instruction"] = f"Do {line['template']}: {{{{text}}}}".upper() if line["dataset"] == "a" else (
                    f"do  {line['template']}: {{{{text}}}}")
    folder = p3(train)
    for seed in range(5):
        splits = read_p3(folder, held_out_templates=2, seed=seed)
        assert tasks(splits["unseen_templates"]) == {"a_p3", "b_p3"}
        require_no_leaks(check_splits(splits, same_tasks={"seen_templates": SEEN}))


def test_the_choice_follows_the_seed(p3):
    folder = p3({"a": both_folds("a", 8)})
    chosen = [tuple(tasks(read_p3(folder, seed=seed)["unseen_templates"])) for seed in range(8)]
    assert chosen[0] == tuple(tasks(read_p3(folder)["unseen_templates"]))
    assert len(set(chosen)) > 1


def test_caps_are_per_template_and_training_ones_do_not_change_evaluation(p3):
    folder = p3({"a": both_folds("a", 4)})
    full = read_p3(folder)
    capped = read_p3(folder, max_per_template=1, max_eval_per_task=1)
    assert [len(full[name]) for name in full] == [9, 6, 2, 3, 3]
    assert [len(capped[name]) for name in capped] == [3, 3, 1, 1, 1]
    less = read_p3(folder, max_per_template=1)
    assert {**less, "train": None} == {**full, "train": None}
    assert set(less["train"]) < set(full["train"])


def test_records_that_are_too_long_are_left_out_of_every_split(p3, caplog):
    long = [row("a", "p", "six words of input in all"), row("a", "p", "six words in a dev input", "dev"),
            row("a", "p", "target", target="no no no", options=None)]
    test = [row("u", "p", "six words in a test input", "test"), *rows("u", 1, "test")]
    folder = p3({"a": both_folds("a", 1) + long}, test={"u": test})
    full, short = read_p3(folder), read_p3(folder, max_input_words=4, max_target_words=2)
    assert [len(full[name]) - len(short[name]) for name in full] == [2, 1, 0, 0, 1]
    assert all(len(record.input.split()) <= 4 for records in short.values() for record in records)
    streamed = read_p3(folder, max_input_words=4, max_target_words=2, stream=partial(RecordStream, keep=8))
    assert set(streamed["train"]) == set(short["train"])
    with caplog.at_level("INFO"):
        read_p3(folder, max_input_words=4)
    assert "2 records of a.jsonl.gz that are longer" in caplog.text


def test_leaking_repeated_and_unaligned_records_are_left_out(p3, caplog):
    train = [row("a", "p", "one"), row("a", "p", "one"), row("a", "p", "one", target="No"),
             row("a", "p", "two", aligned=False), row("a", "p", "ONE ", "dev"), row("a", "p", "three", "dev")]
    test = [row("u", "p", "one", "test"), row("u", "p", "four", "test"), row("u", "p", "four", "test")]
    with caplog.at_level("INFO"):
        splits = read_p3(p3({"a": train}, test={"u": test}), max_per_template=0)
    assert splits["train"] == []
    assert [record.input for record in splits["seen_templates"]] == ["text: three"]
    assert [record.input for record in splits["unseen_datasets"]] == ["text: four"]
    assert "1 repeated records of unseen_datasets and 1 whose input is in train" in caplog.text
    assert "1 records of a.jsonl.gz" in caplog.text
    assert [record.targets for record in read_p3(p3({"a": train}))["train"]] == [("Yes",), ("No",)]


@pytest.mark.parametrize("change, message", [
    ({"target": None}, "a.jsonl.gz, line 2.*'target'"),
    ({"aligned": None}, "line 2.*'aligned'"),
    ({"fold": "test"}, "a.jsonl.gz.*'test'"),
    ({"input": 3}, "line 2.*3"),
    ({"target": "Maybe"}, "line 2.*not among the options"),
])
def test_a_bad_record_is_named(p3, change, message):
    with pytest.raises(ValueError, match=message):
        read_p3(p3({"a": [row("a", "p", "one"), {**row("a", "p", "two"), **change}]}))


def test_an_answer_that_is_offered_twice_counts_once(p3):
    twice = {**row("a", "p", "one"), "options": ["Yes", "No", "Yes"]}
    assert read_p3(p3({"a": [twice, row("a", "p", "two")]}))["train"][0].options == ("Yes", "No")


def test_a_folder_of_another_shape_is_refused(p3, tmp_path):
    with pytest.raises(FileNotFoundError, match="splits.json"):
        read_p3(tmp_path)
    folder = p3({"a": both_folds("a", 1)})
    with pytest.raises(ValueError, match="held_out_templates is -1"):
        read_p3(folder, held_out_templates=-1)
    for content, error, message in [
        ('{"train": ["a", "b"], "valid": ["v"], "test": ["u"]}', FileNotFoundError, "b.jsonl.gz"),
        ('{"train": ["a"], "valid": ["a"], "test": ["u"]}', ValueError, r"\['a'\] more than once"),
        ('{"train": ["a"]}', ValueError, "splits.json cannot be used.*valid"),
        ("{", ValueError, "splits.json cannot be used"),
    ]:
        (folder / "splits.json").write_text(content)
        with pytest.raises(error, match=message):
            read_p3(folder)


def test_t0_evaluation_takes_official_records_only(tmp_path):
    lines = [row("rte", "p", text, split="train" if text == "b" else "validation") for text in "abc"]
    write(tmp_path / "rte.jsonl.gz", [{k: v for k, v in line.items() if k != "fold"} for line in lines])
    write(tmp_path / "cb.jsonl.gz", [row("cb", "p", "d", split="validation"),
                                     row("cb", "p", "e", split="validation", aligned=False)])
    splits = read_t0_eval(tmp_path)
    assert {name: [r.input for r in records] for name, records in splits.items()} == {
        "t0_cb": ["text: d"], "t0_rte": ["text: a", "text: c"]}
    assert splits["t0_rte"][0] == Record("rte_p", "rte p: {{text}}", "text: a", ("Yes",), "rte", options=("Yes", "No"))
    assert len(read_t0_eval(tmp_path, max_eval_per_task=1)["t0_rte"]) == 1


def test_t0_evaluation_needs_files_and_options(tmp_path):
    with pytest.raises(FileNotFoundError, match="jsonl.gz"):
        read_t0_eval(tmp_path)
    write(tmp_path / "rte.jsonl.gz", [row("rte", "p", "a", split="validation", options=None)])
    with pytest.raises(ValueError, match="rte.jsonl.gz: 1 validation records have no options"):
        read_t0_eval(tmp_path)


@real
def test_real_data_sets_leak_nothing():
    splits = read_p3(DATA / "p3")
    # 170 training templates, of them 24 kept out; 5 of the 3590 dev records repeat a question trained on.
    assert {name: len(tasks(records)) for name, records in splits.items()} == {
        "train": 146, "seen_templates": 146, "unseen_templates": 24, "valid_datasets": 18, "unseen_datasets": 37}
    assert len(splits["seen_templates"]) + len(splits["unseen_templates"]) == 3590 - 5
    assert len(splits["valid_datasets"]) == 3600
    require_no_leaks(check_splits(splits, same_tasks={"seen_templates": SEEN}))
    # 8 templates of rotten_tomatoes and one of gigaword have wordings that imdb and xsum are trained on with.
    assert {r.group: len(tasks(x for x in splits["unseen_datasets"] if x.group == r.group))
            for r in splits["unseen_datasets"] if r.group in ("rotten_tomatoes", "gigaword")} == {
        "rotten_tomatoes": 2, "gigaword": 8}  # fmt: skip
    for dataset in ("imdb", "xsum", "cosmos_qa"):  # 11, 10 and 13 templates
        assert len(tasks(r for r in splits["unseen_templates"] if r.group == dataset)) == 2


@real
def test_real_t0_evaluation_is_whole_and_unseen():
    splits = read_t0_eval(DATA / "t0_eval")
    # 56 instances through 15 templates, 277 through 10.
    assert {name: len(records) for name, records in splits.items()} == {"t0_cb": 840, "t0_rte": 2770}
    require_no_leaks(check_splits({"train": read_p3(DATA / "p3")["train"], **splits}))


def test_a_stream_of_p3_has_the_same_splits(p3):
    seen = [row("b", "p0", "a dev 1"), row("b", "p1", "v valid 1")]  # evaluated elsewhere
    folder = p3({"a": both_folds("a", 9), "b": both_folds("b", 4) + seen})
    plain = read_p3(folder, held_out_templates=2)
    streamed = read_p3(folder, held_out_templates=2, stream=partial(RecordStream, keep=1))
    assert list(streamed["train"].all()) == plain["train"] != list(streamed["train"])
    assert {name: streamed[name] for name in plain if name != "train"} == {
        name: plain[name] for name in plain if name != "train"
    }
    assert check_splits(streamed, same_tasks={"seen_templates": SEEN}) == \
        check_splits(plain, same_tasks={"seen_templates": SEEN})
    with pytest.raises(ValueError, match="max_per_template draws from all records"):
        read_p3(folder, max_per_template=2, stream=RecordStream)
