import pytest
import yaml

from modeling_tagi.data.records import Record
from modeling_tagi.data.tables import write_table

WORDS = "red green blue one two three four apple pear plum cat dog".split()
TASKS = {
    "first": ("say the first word", 0), "last": ("say the last word", -1), "second": ("say the second word", 1),
    "next": ("say the word before the last", -2), "third": ("say the third word", 2),
}  # fmt: skip


def records(tasks, length):
    made = []
    for task in tasks:
        instruction, place = TASKS[task]
        for n in range(6):
            words = [WORDS[(n + 5 * k + len(task)) % 12] for k in range(length)]
            made.append(Record(task, instruction, " ".join(words), (words[place],)))
    return made


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """A tiny run from nothing on three tasks, evaluated on two; returns the file of its configuration."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "data").mkdir()
    write_table(records(["first", "last", "second"], 4), folder / "data" / "train.jsonl")
    write_table(records(["next", "third"], 5), folder / "data" / "unseen.jsonl")
    (folder / "text.txt").write_text("\n".join(" ".join(WORDS[n:] + WORDS[:n]) for n in range(12)))
    tiny, each = {"tasks_per_batch": 2, "examples_per_task": 2}, {"save_every": 2, "learning_rate": 1e-2}
    text = {"batch_size": 2, "max_length": 24}
    values = {
        "max_input_length": 48, "max_target_length": 8,
        "data": {"source": "tables", "path": str(folder / "data"), "text": str(folder / "text.txt")},
        "backbone": {"vocab_size": 60, "config": {
            "model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
            "dropout_rate": 0.2}},
        "tagi": {"r": 2, "lora_alpha": 4, "generator_hidden_size": 8, "generator_index_size": 4},
        "text": {"steps": 2, **text, **each}, "prompted": {"steps": 3, **tiny, **each},
        "task_adapters": {"steps": 3, "by": "task", "reads": "input", **each},
        "pretraining": {"steps": 2, **text, **each}, "finetuning": {"steps": 6, "train": "all", **tiny, **each},
        "evaluation": {"every": 3, "oracle": {"steps": 2, "examples_per_task": 2}},
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return folder / "tiny.yaml"
