import dataclasses

import torch
from safetensors.torch import save_file

from modeling_tagi.data.records import Record
from modeling_tagi.data.streams import RecordStream
from modeling_tagi.training.run import FREE_FIELDS
from modeling_tagi.training.settings import RunSettings
from modeling_tagi.training.stage_keys import (
    digest_of_folder,
    digest_of_records,
    digest_of_text,
    settings_of,
)
from modeling_tagi.training.stages import STAGES

RECORD = Record("t", "do this", "a", ("b",), "g", (("c", "d"),), ("b", "e"))


def test_every_part_of_a_record_counts():
    others = {"task": "u", "instruction": "do that", "input": "x", "targets": ("b", "e"), "group": "h",
              "demonstrations": (("c", "x"),), "options": ("b", "x"), "weight": 2.0}  # fmt: skip
    assert others.keys() == {f.name for f in dataclasses.fields(Record)}
    digests = [digest_of_records([dataclasses.replace(RECORD, **{name: x})]) for name, x in others.items()]
    assert len({*digests, digest_of_records([RECORD]), digest_of_records([RECORD, RECORD])}) == len(others) + 2


def test_a_stream_knows_what_it_does_not_keep():
    many = [dataclasses.replace(RECORD, input=f"a {n}") for n in range(20)]
    changed = [*many[:10], dataclasses.replace(RECORD, input="another"), *many[11:]]
    streams = [RecordStream([lambda records=records: iter(records)], keep=1) for records in (many, many, changed)]
    assert digest_of_records(streams[0]) == digest_of_records(streams[1]) == digest_of_records(many)
    assert digest_of_records(streams[0]) != digest_of_records(streams[2])


def test_where_a_passage_ends_counts():
    assert digest_of_text(["ab", "c"]) != digest_of_text(["a", "bc"])


def test_a_change_to_one_tensor_of_a_large_file_is_seen(tmp_path):
    tensors = {name: torch.zeros(400_000) for name in "abc"}
    save_file(tensors, tmp_path / "model.safetensors")
    before = digest_of_folder(tmp_path)
    for name in tensors:
        save_file({**tensors, name: torch.full((400_000,), 1e-8)}, tmp_path / "model.safetensors")
        assert digest_of_folder(tmp_path) != before, name
    save_file(tensors, tmp_path / "model.safetensors")
    assert digest_of_folder(tmp_path) == before


def test_every_setting_of_training_is_some_stages():
    values = {f.name: 0 for f in dataclasses.fields(RunSettings)}
    used = {name for stage in STAGES.values() for name in settings_of(stage, {**values, "data.streaming": 1})}
    elsewhere = {
        "output_dir", "label", "evaluation", "push_to_hub", "push_private", "push_every", "publish_instructions",
    }  # fmt: skip
    assert elsewhere == set(FREE_FIELDS)
    # what these give is hashed: the records, the text, the generator
    assert values.keys() - used - elsewhere == {"data", "train_tasks", "start_from"}
