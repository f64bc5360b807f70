"""A tiny run from nothing: five tasks about words, and the settings of every stage."""

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


def write_tiny_data(folder, unseen):
    """`data/` with three tasks to train on and those in `unseen`, and `text.txt`."""
    (folder / "data").mkdir()
    write_table(records(["first", "last", "second"], 4), folder / "data" / "train.jsonl")
    write_table(records(unseen, 5), folder / "data" / "unseen.jsonl")
    (folder / "text.txt").write_text("\n".join(" ".join(WORDS[n:] + WORDS[:n]) for n in range(12)))


def tiny_settings(folder, **stage):
    """Nested fields of the run's YAML file; `stage`: further fields of each stage."""
    tiny, text = {"tasks_per_batch": 2, "examples_per_task": 2, **stage}, {"batch_size": 2, "max_length": 24, **stage}
    return {
        "max_input_length": 48, "max_target_length": 8,
        "data": {"source": "tables", "path": f"{folder}/data", "text": f"{folder}/text.txt"},
        "backbone": {"vocab_size": 60, "config": {
            "model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
            "dropout_rate": 0.2}},
        "tagi": {"r": 2, "lora_alpha": 4, "generator_hidden_size": 8, "generator_index_size": 4},
        "text": {"steps": 2, **text}, "instruction_tuning": {"steps": 3, **tiny},
        "task_adapters": {"steps": 2, **stage}, "pretraining": {"steps": 2, **text},
        "finetuning": {"steps": 4, "train": "all", **tiny},
    }  # fmt: skip
