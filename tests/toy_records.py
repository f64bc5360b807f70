"""Records of three tasks, one of them in two wordings, for tests of references."""

from modeling_tagi.data.records import Record


def record(task, instruction, text="a b", target="b", **fields):
    return Record(task, instruction, text, (target,), **fields)


TRAIN = [
    record("first", "say the first word", group="words"), record("first", "which word is first", group="words"),
    record("count", "how many letters are there", group="numbers"),
    record("odd", "what does not belong", group="other"),
]  # fmt: skip
