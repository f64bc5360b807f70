"""Whatever is given is taken, or refused in one message of a kind that is documented."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from generated import FEW, MANY
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_settings, write_tiny_data

from modeling_tagi import TagiAdapter, TagiModel, load_function
from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.common.yaml_files import flat, parse_fields
from modeling_tagi.data.records import Record
from modeling_tagi.data.tables import OPTIONAL, REQUIRED, read_folder
from modeling_tagi.training.settings import RunSettings, build_settings, load_settings

DOCUMENTED = (ValueError, OSError)
texts = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates and NUL among them
odd = st.sampled_from(["", " ", "1e3", "~"])
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, odd)
trees = st.recursive(scalars, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)), max_leaves=8)  # fmt: skip
FIELDS = sorted(flat(dataclasses.asdict(RunSettings())))


def taken_or_refused(call, *names):
    """Returns what a call gives, or `None` if it refuses in one line that has one of `names`."""
    try:
        return call()
    except DOCUMENTED as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 3000, repr(error)
        assert not names or any(str(name) in message for name in names), message
        assert not isinstance(error, UnicodeError), repr(error)
        return None


# Data


records = st.fixed_dictionaries({}, optional={
    **{name: st.one_of(texts, trees) for name in (*REQUIRED, *OPTIONAL)},
    "targets": st.one_of(texts, st.lists(texts, max_size=3), trees), "input": texts,
    "demonstrations": st.one_of(st.lists(st.lists(texts, min_size=1, max_size=3), max_size=2), trees),
})  # fmt: skip
lines = st.one_of(
    st.one_of(records, trees).map(lambda value: json.dumps(value).encode()),
    st.one_of(records, trees).map(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")),
    st.binary(max_size=40), st.sampled_from([b"", b"[", b"[" * 5000, b'{"a": 1, "a": 2}', b"\xef\xbb\xbf{}", b"NaN"]),
)  # fmt: skip


@MANY
@given(content=st.lists(lines, max_size=4), ends=st.sampled_from([b"\n", b"\r\n", b"\r"]), suffix=st.sampled_from(
    [".jsonl", ".json", ".jsonl.gz", ".parquet"]))  # fmt: skip
def test_any_lines_of_data_are_records_or_refused(tmp_path_factory, content, ends, suffix):
    folder = tmp_path_factory.mktemp("data", numbered=True)
    (folder / f"train{suffix}").write_bytes(ends.join(content))
    found = taken_or_refused(lambda: read_folder(folder), folder)
    shutil.rmtree(folder)
    assert found is None or all(isinstance(record, Record) for record in found["train"])


# Settings


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Settings of a run that could start."""
    folder = tmp_path_factory.mktemp("settings")
    write_tiny_data(folder, unseen=["next"])
    return {**tiny_settings(str(folder)), "output_dir": str(folder / "out")}


def with_fields(values: dict, changes: dict) -> dict:
    made = json.loads(json.dumps(values))
    for path, value in changes.items():
        inner = made
        *above, last = path.split(".")
        for name in above:
            inner = inner.setdefault(name, {}) if isinstance(inner, dict) else {}
        if isinstance(inner, dict):
            inner[last] = value
    return made


@MANY
@given(changes=st.dictionaries(st.sampled_from(FIELDS), st.one_of(scalars, trees), min_size=1, max_size=3))
def test_any_values_of_settings_are_taken_or_refused(tiny, changes):
    found = taken_or_refused(lambda: build_settings(with_fields(tiny, changes)))
    assert found is None or isinstance(found, RunSettings)


@MANY
@given(tree=st.one_of(trees, st.dictionaries(st.sampled_from(FIELDS + ["base", "data", "backbone"]), trees)),
       raw=st.one_of(st.none(), st.binary(max_size=60), texts))  # fmt: skip
def test_any_yaml_is_settings_or_refused(tmp_path_factory, tree, raw):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    if raw is None:
        try:
            content = yaml.safe_dump(tree).encode(errors="surrogatepass")
        except yaml.YAMLError:
            content = repr(tree).encode(errors="surrogatepass")
    else:
        content = raw if isinstance(raw, bytes) else raw.encode(errors="surrogatepass")
    file.write_bytes(content)
    found = taken_or_refused(lambda: load_settings(file))
    assert found is None or isinstance(found, RunSettings)


@MANY
@given(overrides=st.dictionaries(st.one_of(st.sampled_from(FIELDS + ["method"]), texts), texts, max_size=3))
def test_any_override_is_taken_or_refused(tiny, tmp_path_factory, overrides):
    file = tmp_path_factory.getbasetemp() / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny))
    found = taken_or_refused(lambda: load_settings(file, overrides))
    assert found is None or isinstance(found, RunSettings)


# Instructions


@pytest.fixture(scope="module")
def given_folders(make_model, tokenizer, tmp_path_factory):
    """A checkpoint, an adapter, one with a memory, a bank and a function."""
    folder = tmp_path_factory.mktemp("given")
    for name, fusion in (("checkpoint", "none"), ("fused", "cross_attention")):
        model = make_model("t5", fusion)
        model.tokenizer = tokenizer
        model.save_pretrained(folder / name)
        model.generate_adapter("say it").save_pretrained(folder / ("adapter" if fusion == "none" else "memory"))
        if fusion == "none":
            AdapterBank(folder / "bank").add(["one", "two"], model.generate_adapter(["one", "two"]))
            model.function("say it").save(folder / "function")
    return folder


@pytest.fixture(scope="module")
def model(given_folders):
    return TagiModel.from_pretrained(given_folders / "checkpoint").eval()


@FEW
@given(instruction=texts, pair=st.one_of(st.none(), st.tuples(texts, texts)), text=texts)
def test_any_instruction_is_read_or_refused(model, instruction, pair, text):
    demonstrations = None if pair is None else [pair]
    adapter = taken_or_refused(lambda: model.generate_adapter(instruction, demonstrations), "instruction", "demonstr")
    assert adapter is None or all(x.isfinite().all() for x in adapter.lora_a.values())
    batch = taken_or_refused(lambda: model.encode_inputs([text]), "input")
    if adapter is not None and batch is not None:
        with torch.no_grad():
            assert model.generate(**batch, adapter=adapter, max_new_tokens=2).shape[0] == 1


# Files with one byte changed


DOORS = {
    "adapter": TagiAdapter.from_pretrained, "memory": TagiAdapter.from_pretrained,
    "checkpoint": TagiModel.from_pretrained, "bank": lambda folder: AdapterBank.open(folder).load(),
}  # fmt: skip


def changed(folder: Path, to: Path, seed: int) -> Path:
    """Copies a folder, with one byte of one of its files that are read another; returns that file."""
    draw = random.Random(seed)
    shutil.copytree(folder, to)
    files = sorted(file for file in to.rglob("*") if file.suffix in (".json", ".jsonl", ".safetensors"))
    file = draw.choice(files)
    content = bytearray(file.read_bytes())
    place = draw.randrange(min(len(content), draw.choice([16, 400, 10**9])))  # headers more often than numbers
    content[place] = draw.choice([content[place] ^ (1 << draw.randrange(8)), draw.randrange(256), *b'"{}[],:0-9'])
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("name", [*DOORS, "function"])
@FEW
@given(seed=st.integers(0, 2**32))
def test_a_byte_that_changed_is_harmless_or_refused(given_folders, model, tmp_path_factory, name, seed):
    place = tmp_path_factory.getbasetemp() / "changed"
    shutil.rmtree(place, ignore_errors=True)
    changed(given_folders / name, place, seed)
    door = DOORS.get(name) or (lambda folder: load_function(folder, model))
    found = taken_or_refused(lambda: door(place))
    if isinstance(found, TagiModel):
        taken_or_refused(lambda: found.generate_adapter("say it"))
    elif isinstance(found, TagiAdapter):
        ids = torch.tensor([[5, 6, 7]])
        taken_or_refused(lambda: model.generate(ids, adapter=found[0], max_new_tokens=1))


# What was found so


@pytest.mark.parametrize("changes, words", [
    ({"start_from": "\n"}, "start_from is '.n', which cannot be read"), ({"a\nb": 1}, "unknown field 'a.nb'; "),
])  # fmt: skip
def test_line_breaks_in_names_are_shown(tiny, changes, words):
    with pytest.raises(DOCUMENTED, match=words) as error:
        build_settings(with_fields(tiny, changes))
    assert "\n" not in str(error.value)


def test_line_breaks_in_names_of_overrides_are_shown():
    with pytest.raises(ValueError, match="^--'a.nb' is '.t', which is not YAML") as error:
        parse_fields({"a\nb": "\t"})
    assert "\n" not in str(error.value)
