import json

import pytest
from transformers import pipeline

from modeling_tagi.tokens import PIPELINES


@pytest.mark.parametrize("family, fusion", [("t5", "cross_attention"), ("llama", "concat")])
def test_a_checkpoints_pipeline_answers_by_instruction_or_adapter(make_model, tokenizer, tmp_path, family, fusion):
    model = make_model(family, fusion)
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path / "model")
    pipe = pipeline("text-generation", model=str(tmp_path / "model"), trust_remote_code=True)
    adapter, options = model.generate_adapter("say ab"), {"max_new_tokens": 5, "do_sample": False}
    inputs, expected = ["ab cd", "ef"], []
    for text in inputs:
        batch = model.encode_inputs(text)
        output = model.generate(**batch, adapter=adapter, **options)
        output = output if family == "t5" else output[:, batch["input_ids"].shape[1]:]
        expected.append([{"generated_text": tokenizer.decode(output[0], skip_special_tokens=True).strip()}])
    assert pipe(inputs, instruction="say ab", **options) == expected
    assert pipe(inputs[0], adapter=pipe.model.generate_adapter("say ab"), **options) == expected[0]
    with pytest.raises(ValueError, match="got no instruction; call it with instruction='.*or with adapter="):
        pipe("ab")
    with pytest.raises(ValueError, match="both an instruction and an adapter; give one"):
        pipe("ab", instruction="say ab", adapter=adapter)
    pipe.model.save_pretrained(tmp_path / "again")  # `pipeline` has written classes into the config
    assert json.loads((tmp_path / "again" / "config.json").read_text())["custom_pipelines"] == PIPELINES
