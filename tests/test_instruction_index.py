import json

import pytest
import torch

from modeling_tagi import TagiModel
from modeling_tagi.instructions import InstructionIndex, mean_embeddings

FILES = {"instruction_index.safetensors", "instruction_index.json"}


@pytest.fixture
def index():
    """Three instructions on a line, at 0, 1 and 5."""
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    return InstructionIndex(vectors, ["zero", "one", "five"], threshold=1.5, notes={"instructions": 3})


@pytest.fixture
def warnings(caplog):
    """What was warned of so far."""
    return lambda: [record.getMessage() for record in caplog.records if "far from" in record.getMessage()]


@pytest.fixture
def indexed(make_model, tokenizer):
    """A model that was finetuned on two instructions of a's and b's."""
    model = make_model("t5")
    model.tokenizer = tokenizer
    texts = ["aaab", "abbb"]
    vectors = mean_embeddings(model.get_input_embeddings(), tokenizer(texts)["input_ids"])
    model.instruction_index = InstructionIndex(vectors, texts, float((vectors[0] - vectors[1]).norm()))
    return model


def test_the_nearest_come_first(index):
    [found] = index.nearest(torch.tensor([[2.0, 0.0]]), 2)
    assert found == [(1.0, "one"), (2.0, "zero")]


def test_the_mean_embedding_is_of_an_instructions_own_tokens(make_model):
    embeddings = make_model("t5").get_input_embeddings()
    found = mean_embeddings(embeddings, [(5, 6, 6), (7,)])
    expected = torch.stack([(embeddings.weight[5] + 2 * embeddings.weight[6]) / 3, embeddings.weight[7]])
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad


def test_what_is_far_is_named_once_with_its_neighbours(index, warnings):
    index.warn_of_far(torch.tensor([[1.2, 0.0], [9.0, 0.0]]), ["near", "away"])
    index.warn_of_far(torch.tensor([[9.0, 0.0]]), ["away"])
    [message] = warnings()
    assert "'away' is far from all" in message and "2.7 times" in message and "Nearest: 'five'; 'one'" in message
    index.warn_of_far(torch.tensor([[9.0, 0.0]]), ["another"])
    assert len(warnings()) == 2


def test_a_model_warns_of_a_far_instruction_and_of_no_near_one(indexed, warnings):
    indexed.generate_adapter(["aaab", "aabb"])
    assert warnings() == []
    for _ in range(2):
        indexed.generate_adapter("zyxw")
    [message] = warnings()
    assert "'zyxw' is far" in message and "'aaab'" in message
    indexed.generate_adapter("zyxw")
    assert len(warnings()) == 1
    indexed.instruction_index = None
    indexed.generate_adapter("wxyz")
    assert len(warnings()) == 1


def test_the_index_travels_with_the_checkpoint(indexed, tmp_path, warnings):
    indexed.save_pretrained(tmp_path / "one")
    assert FILES <= {path.name for path in (tmp_path / "one").iterdir()}
    TagiModel.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    again = TagiModel.from_pretrained(tmp_path / "two")
    before, after = indexed.instruction_index, again.instruction_index
    assert after.texts == before.texts and after.threshold == before.threshold
    assert torch.equal(after.vectors, before.vectors)
    again.generate_adapter("zyxw")
    assert len(warnings()) == 1
    written = json.loads((tmp_path / "two" / "instruction_index.json").read_text())
    assert written["texts"] == ["aaab", "abbb"]


def test_the_index_goes_to_the_hub_and_comes_back(indexed, hub, tmp_path, warnings):
    indexed.push_to_hub("user/generator")
    assert FILES <= hub.files("user/generator").keys()
    again = TagiModel.from_pretrained("user/generator")
    again.generate_adapter("zyxw")
    assert again.instruction_index.texts == ["aaab", "abbb"] and len(warnings()) == 1


def test_an_index_that_was_taken_away_does_not_stay_beside_other_weights(indexed, hub, tmp_path):
    indexed.save_pretrained(tmp_path / "one")
    indexed.push_to_hub("user/generator")
    indexed.instruction_index = None  # as after further training
    indexed.save_pretrained(tmp_path / "one")
    indexed.push_to_hub("user/generator")
    assert not FILES & {path.name for path in (tmp_path / "one").iterdir()}
    assert not FILES & hub.files("user/generator").keys()


def test_a_checkpoint_without_an_index_warns_of_nothing(make_model, tokenizer, tmp_path, warnings):
    model = make_model("t5")
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path)
    assert not FILES & {path.name for path in tmp_path.iterdir()}
    again = TagiModel.from_pretrained(tmp_path)
    again.generate_adapter("zyxw")
    assert again.instruction_index is None and warnings() == []


def test_vectors_and_texts_must_be_as_many():
    with pytest.raises(ValueError, match="2 vectors and 1 texts"):
        InstructionIndex(torch.zeros(2, 3), ["one"], 1.0)


def test_an_index_without_texts_warns_and_names_nothing(indexed, tmp_path, warnings):
    kept = indexed.instruction_index
    indexed.instruction_index = InstructionIndex(kept.vectors.mean(0, keepdim=True), None, kept.threshold)
    indexed.save_pretrained(tmp_path)
    assert "texts" not in json.loads((tmp_path / "instruction_index.json").read_text())
    again = TagiModel.from_pretrained(tmp_path)
    assert again.instruction_index.texts is None
    again.generate_adapter(["aaab", "zyxw"])
    [message] = warnings()
    assert "'zyxw' is far" in message and "Nearest" not in message
    for path in tmp_path.iterdir():
        assert b"aaab" not in path.read_bytes(), path


@pytest.mark.parametrize(
    "file, content",
    [
        ("instruction_index.json", "{"), ("instruction_index.json", "[]"), ("instruction_index.json", "{}"),
        ("instruction_index.json", '{"threshold": "far", "texts": ["a", "b"]}'),
        ("instruction_index.json", '{"threshold": 1, "texts": ["a"]}'), ("instruction_index.safetensors", "broken"),
    ],
)  # fmt: skip
def test_a_broken_index_is_named_with_what_mends_it(indexed, tmp_path, file, content):
    indexed.save_pretrained(tmp_path)
    (tmp_path / file).write_text(content)
    model = TagiModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}/instruction_index.json or .* is broken .* delete both") as error:
        model.generate_adapter("zyxw")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("vectors, threshold", [(torch.full((1, 3), torch.nan), 1.0), (torch.zeros(0, 3), 1.0),
                                                (torch.zeros(3), 1.0), (torch.zeros(1, 3), float("nan"))])  # fmt: skip
def test_what_no_distance_can_be_taken_of_is_refused(vectors, threshold):
    with pytest.raises(ValueError, match="the index got vectors of shape"):
        InstructionIndex(vectors, None, threshold)
