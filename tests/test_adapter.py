import pickle

import pytest
import torch
from toy_adapters import assert_same, flat, names

from modeling_tagi import TagiAdapter
from modeling_tagi.adapter import InstructionMemory


@pytest.fixture
def three(make_model):
    """Three adapters with memories of 3, 6 and 4 tokens."""
    return make_model("t5").generate_adapter([[5, 6, 7], [8, 9, 10, 11, 12, 13], [14, 15, 16, 17]])


# Several tasks in one object


def test_an_int_chooses_one(three):
    assert len(three) == 3 and [len(one) for one in three] == [1, 1, 1]
    for index, other in ((0, 0), (2, -1), (torch.tensor(1), 1)):
        assert_same(three[index], three[other])
    path = next(iter(three.lora_a))
    assert torch.equal(three[1].lora_a[path], three.lora_a[path][1:2])
    assert three[1].provenance == three.provenance[1:2]


def test_slices_and_lists_choose_several_in_order(three):
    path = next(iter(three.lora_b))
    for index, rows in (
        (slice(1, None), [1, 2]),
        (slice(None, None, -2), [2, 0]),
        ([2, 0, 2], [2, 0, 2]),
        ([-1], [2]),
        (torch.tensor([1, 0]), [1, 0]),
        (torch.tensor([True, False, True]), [0, 2]),
    ):
        chosen = three[index]
        assert torch.equal(chosen.lora_b[path], three.lora_b[path][rows])
        assert chosen.provenance == tuple(three.provenance[row] for row in rows)


def test_a_choice_has_no_more_memory_than_it_needs(three):
    assert [one.memory.mask.shape[1] for one in three] == [3, 6, 4]
    assert three[[0, 2]].memory.states.shape[1] == 4 and three[[0, 2]].memory.keys.shape[-2] == 4


@pytest.mark.parametrize("index", [3, -4, [0, 3], torch.tensor([-4])])
def test_a_task_that_is_not_there_is_an_index_error(three, index):
    with pytest.raises(IndexError, match="of 3; the last is 2"):
        three[index]


@pytest.mark.parametrize("index", ["x", b"0", None, 0.0])
def test_an_index_that_is_no_number_is_a_type_error(three, index):
    with pytest.raises(TypeError, match="chosen by its number, or by a list of numbers, but the index is"):
        three[index]


@pytest.mark.parametrize("index", [[], slice(3, None)])
def test_choosing_none_is_an_index_error(three, index):
    with pytest.raises(IndexError, match="no adapter was chosen of 3"):
        three[index]


def test_a_stack_of_the_parts_is_the_whole(three):
    for stacked in (TagiAdapter.stack(list(three)), TagiAdapter.stack([three[:2], three[2]])):
        assert len(stacked) == 3 and stacked.provenance == three.provenance
        assert stacked.memory.mask.tolist() == three.memory.mask.tolist()
        for one, other in zip(stacked, three):
            assert_same(one, other)


def test_stack_keeps_provenance_beside_its_task(three):
    bare = TagiAdapter(three[0].lora_a, three[0].lora_b, three.lora_alpha, three[0].memory)
    assert TagiAdapter.stack([bare, three[1]]).provenance == ({}, three.provenance[1])
    assert TagiAdapter.stack([bare, bare]).provenance == ()


def test_what_cannot_be_stacked_is_named(make_model, three):
    with pytest.raises(ValueError, match="stack got no adapters"):
        TagiAdapter.stack([])
    with pytest.raises(ValueError, match="adapters 0 and 1 differ in their modules or shapes"):
        TagiAdapter.stack([three, make_model("t5", r=2).generate_adapter([5, 6])])
    with pytest.raises(ValueError, match="adapters 0 and 2 differ in lora_alpha: 8 and 16"):
        TagiAdapter.stack([three, three, make_model("t5", lora_alpha=16).generate_adapter([5, 6])])
    with pytest.raises(ValueError, match="adapters 0 and 1 differ in their instruction memory"):
        TagiAdapter.stack([three, make_model("t5", "none").generate_adapter([5, 6])])
    with pytest.raises(ValueError, match="adapters 0 and 1 differ in their instruction memory"):
        TagiAdapter.stack([three, make_model("t5", "concat").generate_adapter([5, 6])])


def test_to_casts_all_but_the_mask(three):
    half = three.to(torch.bfloat16)
    for name, tensor in flat(half).items():
        assert tensor.dtype == (torch.long if name == "memory mask" else torch.bfloat16), name
    assert three.to("cpu").device == torch.device("cpu")
    assert {tensor.device.type for tensor in flat(three.to("meta", torch.float16)).values()} == {"meta"}


@pytest.mark.parametrize("anonymous", [True, False])  # not on Windows
def test_memories_of_several_lengths_are_joined(three, monkeypatch, anonymous):
    if not anonymous:
        monkeypatch.delattr("mmap.MAP_ANONYMOUS")
    joined = InstructionMemory.join([three[[1, 2]].memory, three[0].memory])
    for row, one in enumerate([three[1], three[2], three[0]]):
        again = joined.map(lambda x: x[row: row + 1])
        for name, tensor in again.trimmed().tensors().items():
            assert torch.equal(tensor, one.memory.tensors()[name]), name
    assert joined.mask.shape == (3, 6) and not joined.keys[2, ..., 3:, :].any()  # padded with zeros
    assert InstructionMemory(mask=torch.zeros(1, 4)).trimmed().mask.shape == (1, 1)


def test_a_stack_is_as_precise_as_its_most_precise_part(three):
    half = three[0].to(torch.bfloat16)
    for parts in ([half, three[1]], [three[1], half]):
        stacked = flat(TagiAdapter.stack(parts))
        assert {x.dtype for name, x in stacked.items() if name != "memory mask"} == {torch.float32}
        assert stacked["memory mask"].dtype == torch.long


@pytest.mark.parametrize("lengths", [[3, 6, 4], [3, 100, 90, 4]], ids=["one pass", "two"])
@pytest.mark.parametrize("family, fusion", [("t5", "cross_attention"), ("llama", "concat")])
def test_the_padding_of_a_memory_is_zero(make_model, random_ids, family, fusion, lengths):
    model = make_model(family, fusion)
    adapter = model.adapter_from_rows([random_ids(1, length, length)[0].tolist() for length in lengths])
    assert adapter.memory.mask.sum(1).tolist() == lengths
    for row, length in enumerate(lengths):
        for name, x in adapter.memory.map(lambda x: x[row: row + 1]).tensors().items():
            padding = x[:, length:] if name in ("mask", "states") else x[..., length:, :]
            assert not padding.any() and x.any(), name


def test_a_pickled_adapter_is_no_larger_than_its_tensors(make_model, random_ids):
    model = make_model("t5", r=64)
    adapter = model.generate_adapter(random_ids(1, 5)[0])
    assert len(pickle.dumps(adapter)) < 1.5 * adapter.nbytes
    assert_same(pickle.loads(pickle.dumps(adapter)), adapter)


def test_several_adapters_do_not_go_into_one_folder(three, tmp_path):
    with pytest.raises(ValueError, match="one adapter to one folder, this object holds 3; save adapter"):
        three.save_pretrained(tmp_path)
    assert not names(tmp_path)


def test_its_repr_is_one_line(make_model):
    model = make_model("t5", fusion="concat")
    assert repr(model.generate_adapter([[4, 5, 6], [7, 8]])) == (
        f"TagiAdapter(2 tasks, rank 4, {len(model.hypernetwork.shared_factors())} modules, "
        "an instruction memory of 3 tokens)"
    )
