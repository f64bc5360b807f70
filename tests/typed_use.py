"""A user's program, for mypy: what it gets is typed, and what is wrong is told. It is read and never run."""

from typing import Any, assert_type

from transformers import PreTrainedModel

from modeling_tagi import TagiAdapter, TagiConfig, TagiModel, load_function
from modeling_tagi.function import TagiFunction


def adapters_of(folder: str, instructions: list[str]) -> dict[str, TagiAdapter]:
    model = assert_type(TagiModel.from_pretrained(folder), TagiModel)
    assert_type(model.config, TagiConfig)
    adapters = assert_type(model.generate_adapter(instructions, [[("a", "b")]]), TagiAdapter)
    return {instruction: adapter for instruction, adapter in zip(instructions, adapters)}


def use(model: TagiModel, adapter: TagiAdapter) -> list[str]:
    inputs = model.encode_inputs(["one", "two"])
    outputs = model.generate(**inputs, adapter=adapter, max_new_tokens=8)
    answers: list[str] = model.tokenizer.batch_decode(outputs, skip_special_tokens=True)
    assert_type(adapter.rank, int)
    assert_type(adapter[0], TagiAdapter)
    assert_type(TagiAdapter.combine([adapter, adapter], [0.5, 0.5], memory="join"), TagiAdapter)
    assert_type(adapter.tune([("one", "two")], steps=3, learning_rate=1e-3), TagiAdapter)
    plain: PreTrainedModel = adapter.without_memory().merge_into(model)
    plain.save_pretrained("merged")
    adapter.save_pretrained("one", base_model="merged")
    assert_type(TagiAdapter.from_pretrained("one", device="cpu"), TagiAdapter)
    return answers


def functions(model: TagiModel) -> dict[str, float]:
    classify = assert_type(model.function("say which", ["one", "two"], if_far="abstain"), TagiFunction)
    classify.save("which", base_model="a/backbone")
    assert_type(load_function("which", model=model), TagiFunction)
    scores: dict[str, float] = classify.scores("a text")
    return scores


def make(fields: dict[str, Any]) -> TagiModel:
    config = TagiConfig(r=4, fusion="none", **fields)
    assert_type(config.lora_alpha, float)
    model = TagiModel.from_backbone("a/backbone", r=4, fusion="none")
    model.set_trainable("generator")
    model.save_pretrained("mine", include_backbone=False)
    model.push_to_hub("me/mine", private=True)
    return assert_type(model, TagiModel)


def wrong(model: TagiModel, adapter: TagiAdapter) -> None:
    model.generate_adapter()  # type: ignore[call-arg]
    model.encode_inputs(None)  # type: ignore[arg-type]
    model.set_trainable(True)  # type: ignore[arg-type]
    model.function(None)  # type: ignore[arg-type]
    adapter.tune(3)  # type: ignore[arg-type]
    adapter.combine([adapter])  # type: ignore[call-arg]
    adapter.rnak  # type: ignore[attr-defined]
    TagiConfig(r="four")  # type: ignore[arg-type]
    TagiModel.from_backbone()  # type: ignore[call-arg]
