"""The contract that every family of backbones keeps, with every kind of fusion."""

import copy

import pytest
import torch
from peft import PeftModel
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from modeling_tagi import TagiConfig, TagiModel
from modeling_tagi.configuration_tagi import FUSIONS
from modeling_tagi.families import FAMILIES, window_of
from modeling_tagi.seq2seq import memory_projections

SEQ2SEQ = ["t5", "t5_v1_1", "mt5", "bart", "pegasus"]
WINDOWED = ["mistral", "gemma2", "gemma3_text", "phi3", "qwen2_windowed"]
CAUSAL = ["llama", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox", *WINDOWED]
every_family = pytest.mark.parametrize("family", SEQ2SEQ + CAUSAL)
every_windowed = pytest.mark.parametrize("family", WINDOWED)
every_fusion = pytest.mark.parametrize("fusion", FUSIONS)
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 1}
WINDOW = 12
FIELDS = {
    "t5": {}, "t5_v1_1": {}, "mt5": {}, "bart": {"init_std": 0.3}, "pegasus": {"init_std": 0.3},
    "qwen2_windowed": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def backbone(make_backbone):
    """`backbone(family)`: one whose layers have a say in what it answers; a new one each time."""

    def make(family):
        fields = FIELDS.get(family, {})
        if family not in SEQ2SEQ:
            fields = {"initializer_range": 0.2, **fields}
        return make_backbone(family.removesuffix("_windowed"), **fields)

    return make


@pytest.fixture(scope="module")
def made(backbone, make_model):
    """`made(family, fusion)`: an awake model. It is used by all tests, which are to leave it as it is."""
    models = {}

    def make(family, fusion):
        if (family, fusion) not in models:
            models[family, fusion] = make_model(family, fusion, backbone=backbone(family))
        return models[family, fusion]

    return make


@pytest.fixture
def batch(random_ids):
    """`batch(model, lengths)`: adapters of instructions of 3 and 7 tokens, and two inputs of these lengths."""

    def make(model, lengths=(5, 2), instructions=(3, 7)):
        adapters = model.generate_adapter([random_ids(1, n, n)[0].tolist() for n in instructions])
        return adapters, [random_ids(1, n, 40 + n)[0].tolist() for n in lengths]

    return make


def padded(rows, left=False):
    longest = max(map(len, rows))
    gaps = [[0] * (longest - len(row)) for row in rows]
    ids = [gap + row if left else row + gap for row, gap in zip(rows, gaps)]
    return torch.tensor(ids), (torch.tensor(ids) != 0).long()


def logits(model, ids, adapter=None, mask=None, seed=5):
    """`[rows, seq or target_len, vocab]`; the targets of an encoder-decoder model are drawn by `seed`."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    if adapter is not None:
        inputs["adapter"] = adapter
    if model.config.is_encoder_decoder:
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randint(3, 100, (1, 4), generator=generator).expand(len(ids), -1)
        inputs["decoder_input_ids"] = targets
    with torch.no_grad():
        return model(**inputs).logits


def test_the_contract_is_kept_by_every_family_of_the_table(made):
    kept = {made(family, "none").config.backbone_config.model_type for family in SEQ2SEQ + CAUSAL}
    assert kept == set(FAMILIES) - {"umt5"}  # T5's modules under another name; tests/test_fusion.py has it
    assert all(window_of(made(family, "none").config.backbone_config) == WINDOW for family in WINDOWED)
    for family in CAUSAL:
        assert family in WINDOWED or window_of(made(family, "none").config.backbone_config) is None


def test_targets_are_pefts_own_where_it_has_some():
    theirs = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    shared = set(theirs) & set(FAMILIES)
    assert {"t5", "bart", "llama", "gemma3_text", "gpt2", "gpt_neox"} <= shared
    assert all(list(FAMILIES[name].targets) == theirs[name] for name in shared)


@pytest.mark.parametrize("family, module, d_in, d_out", [
    ("llama", "model.layers.1.self_attn.v_proj", 32, 16), ("gemma2", "model.layers.0.self_attn.q_proj", 32, 64),
    ("phi3", "model.layers.1.self_attn.qkv_proj", 32, 64), ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value",
                                                            32, 96),
    ("gpt2", "transformer.h.1.attn.c_attn", 32, 96), ("bart", "model.decoder.layers.1.encoder_attn.v_proj", 32, 32),
])  # fmt: skip
def test_grouped_and_fused_projections_have_updates_of_their_own_size(made, batch, family, module, d_in, d_out):
    # two key heads of 8, or 16 in Gemma, beside four query heads; fused: queries, keys and values in one
    adapters, _ = batch(made(family, "none"))
    assert adapters.lora_a[module].shape == (2, 4, d_in) and adapters.lora_b[module].shape == (2, d_out, 4)


@every_family
@every_fusion
def test_a_fresh_generator_leaves_the_backbones_outputs_equal(backbone, make_model, random_ids, family, fusion):
    model = make_model(family, fusion, backbone=backbone(family), awake=False)
    instruction, ids = random_ids(1, 4, 1), random_ids(2, 3, 2)
    adapter = model.generate_adapter(instruction)
    found = logits(model, ids, adapter)
    if fusion == "none":
        assert torch.equal(found, logits(model.backbone, ids))
        return
    if not model.config.is_encoder_decoder:  # as if prompted, the instruction before the input
        expected = logits(model.backbone, torch.cat([instruction.expand(2, -1), ids], 1))[:, 4:]
    else:
        encoder, targets = model.backbone.get_encoder(), torch.randint(
            3, 100, (1, 4), generator=torch.Generator().manual_seed(5)
        ).expand(2, -1)
        with torch.no_grad():
            states = torch.cat([encoder(instruction)[0].expand(2, -1, -1), encoder(ids)[0]], 1)
            expected = model.backbone(encoder_outputs=BaseModelOutput(states), decoder_input_ids=targets).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@every_family
@every_fusion
def test_a_step_of_training_reaches_every_part_of_the_generator_and_lowers_the_loss(
    made, random_ids, family, fusion
):
    model = copy.deepcopy(made(family, fusion)).train()
    model.set_trainable("generator")
    ids, labels = random_ids(2, 5, 3), random_ids(2, 5, 4)
    inputs = {"instruction_input_ids": random_ids(2, 6, 5), "input_ids": ids, "labels": labels}
    if not model.config.is_encoder_decoder:
        inputs.update(input_ids=torch.cat([ids, labels], 1), labels=torch.cat([ids * 0 - 100, labels], 1))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loss = model(**inputs).loss
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith(("hypernetwork.", "fusion.")) for name in trained) and len(trained) > 5
    unreached = [name for name, p in trained.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert not unreached
    torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
    optimizer.step()
    assert model(**inputs).loss < loss


@every_family
@every_fusion
def test_greedy_decoding_is_a_loop_through_forward(made, batch, family, fusion):
    model = made(family, fusion)
    adapters, (ids, _) = batch(model)
    ids = torch.tensor([ids, ids[::-1]])
    both = model.config.is_encoder_decoder
    tokens = torch.full((2, 1), model.config.decoder_start_token_id) if both else ids
    with torch.no_grad():
        for _ in range(4):
            inputs = {"input_ids": ids, "decoder_input_ids": tokens} if both else {"input_ids": tokens}
            scores = model(**inputs, adapter=adapters).logits[:, -1]
            scores[:, 1] = -torch.inf  # no end of sequence
            tokens = torch.cat([tokens, scores.argmax(-1, keepdim=True)], 1)
    assert torch.equal(model.generate(ids, adapter=adapters, **GREEDY), tokens)


@every_family
@every_fusion
def test_mixed_adapters_in_a_padded_batch_are_each_alone(made, batch, family, fusion):
    model = made(family, fusion)
    adapters, rows = batch(model)
    ids, mask = padded(rows)
    together = logits(model, ids, adapters, mask)
    left, left_mask = padded(rows, left=not model.config.is_encoder_decoder)
    written = model.generate(left, attention_mask=left_mask, adapter=adapters, **GREEDY)[:, -4:]
    for row, tokens in enumerate(rows):
        alone = logits(model, torch.tensor([tokens]), adapters[row])
        torch.testing.assert_close(together[row: row + 1, : alone.shape[1]], alone, rtol=0, atol=2e-5)
        other = logits(model, torch.tensor([tokens]), adapters[1 - row])
        assert (other - alone).abs().max() > 1e-2  # the adapter matters
        alone = model.generate(torch.tensor([tokens]), adapter=adapters[row], **GREEDY)[:, -4:]
        assert torch.equal(written[row: row + 1], alone)


@every_family
@every_fusion
def test_a_saved_model_answers_as_before(made, batch, tmp_path, family, fusion):
    model = copy.deepcopy(made(family, fusion))
    adapters, rows = batch(model)
    ids, mask = padded(rows)
    expected = logits(model, ids, adapters, mask)
    model.backbone.save_pretrained(tmp_path / "backbone")
    model.config.backbone_name_or_path = str(tmp_path / "backbone")
    for name, include in (("whole", True), ("generator", False)):
        model.save_pretrained(tmp_path / name, include_backbone=include)
        again = TagiModel.from_pretrained(tmp_path / name).eval()
        made_again, _ = batch(again)
        assert torch.equal(logits(again, ids, made_again, mask), expected)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "generator")]
    assert sizes[0] > sizes[1]


@every_family
def test_an_exported_adapter_gives_equal_outputs_in_peft(made, batch, tmp_path, family):
    model = made(family, "none")
    adapters, rows = batch(model)
    ids = torch.tensor(rows[:1])
    adapters[1].save_pretrained(tmp_path)
    peft = PeftModel.from_pretrained(copy.deepcopy(model.backbone), tmp_path).eval()
    found, expected = logits(peft, ids), logits(model, ids, adapters[1])
    assert (expected - logits(model.backbone, ids)).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    merged = logits(peft.merge_and_unload(), ids)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["bart", "pegasus", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("fusion", ["cross_attention", "none"])
def test_checkpointed_gradients_equal_those_without(made, random_ids, family, fusion):
    gradients = []
    for checkpointed in (False, True):
        model = copy.deepcopy(made(family, fusion)).train()
        model.set_trainable("all")
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        ids = random_ids(2, 16, 3)
        model(ids, labels=ids, instruction_input_ids=random_ids(2, 6, 5)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", ["bart", "pegasus"])
def test_the_decoders_keys_and_values_of_the_instruction_are_made_once_a_task(made, batch, monkeypatch, family):
    model = made(family, "cross_attention")
    adapters, rows = batch(model)
    ids, mask = padded(rows)
    assert len(memory_projections(model.backbone)) == 4
    once = logits(model, ids, adapters, mask)
    monkeypatch.setattr("modeling_tagi.seq2seq.memory_projections", lambda backbone: [])
    torch.testing.assert_close(once, logits(model, ids, adapters, mask), rtol=0, atol=1e-5)


# Windows and limits


@every_windowed
@pytest.mark.parametrize("fusion", ["concat", "cross_attention"])
@pytest.mark.parametrize("instructions, lengths", [((9, 3), (8, 2)), ((17, 4), (1, 6))], ids=["both", "one"])
def test_beyond_the_window_a_padded_batch_is_each_row_alone(made, batch, family, fusion, instructions, lengths):
    model = made(family, fusion)
    adapters, rows = batch(model, lengths, instructions)
    ids, mask = padded(rows)
    together = logits(model, ids, adapters, mask)
    left, left_mask = padded(rows, left=True)
    for beams in (1, 2):
        settings = {**GREEDY, "num_beams": beams}
        written = model.generate(left, attention_mask=left_mask, adapter=adapters, **settings)[:, -4:]
        for row, tokens in enumerate(rows):
            alone = model.generate(torch.tensor([tokens]), adapter=adapters[row], **settings)[:, -4:]
            assert torch.equal(written[row: row + 1], alone)
    for row, tokens in enumerate(rows):
        alone = logits(model, torch.tensor([tokens]), adapters[row])
        torch.testing.assert_close(together[row: row + 1, : len(tokens)], alone, rtol=0, atol=2e-5)


@every_windowed
def test_beyond_the_window_a_fresh_model_answers_as_if_prompted(backbone, make_model, random_ids, family):
    model = make_model(family, "concat", backbone=backbone(family), awake=False)
    instruction, ids = random_ids(1, 14, 1), random_ids(1, 6, 2)
    found = logits(model, ids, model.generate_adapter(instruction))
    prompt = torch.cat([instruction, ids], 1)
    torch.testing.assert_close(found, logits(model.backbone, prompt)[:, 14:], rtol=0, atol=1e-5)
    model.backbone.config.sliding_window = 1000  # and the window matters
    assert (logits(model.backbone, prompt)[:, 14:] - found).abs().max() > 1e-3


@every_windowed
def test_a_static_cache_is_for_what_is_within_the_window(made, batch, family):
    model = made(family, "concat")
    adapters, _ = batch(model, instructions=(3, 2))
    ids, mask = padded([[5, 6, 7], [8]], left=True)
    inputs = {"attention_mask": mask, "adapter": adapters, **GREEDY}
    static = model.generate(ids, cache_implementation="static", **inputs)
    assert torch.equal(static, model.generate(ids, **inputs))
    model.generation_config.cache_implementation = "hybrid"  # as old files of Gemma 2 have it
    try:
        assert torch.equal(static, model.generate(ids, **inputs))
    finally:
        model.generation_config.cache_implementation = None
    with pytest.raises(ValueError, match="may be 27 tokens.*see 12 at a time.*'dynamic'"):
        model.generate(ids, cache_implementation="static", **{**inputs, "max_new_tokens": 21})


def test_flash_attention_beyond_the_window_is_refused(made, batch, monkeypatch):
    model = made("mistral", "concat")
    adapters, rows = batch(model, (8, 2), (9, 3))
    ids, mask = padded(rows)
    monkeypatch.setattr(model.backbone.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match="17 tokens.*see 12 at a time.*attn_implementation='sdpa'"):
        model(ids, attention_mask=mask, adapter=adapters)


@pytest.mark.parametrize("family, length, message", [
    ("bart", 65, "the input has 65 tokens.*'?bart.*positions for 64"),
    ("pegasus", 65, "the input has 65 tokens.*pegasus.*positions for 64"),
    ("gpt2", 122, "instruction and input together have 129 tokens.*gpt2.*positions for 128"),
])  # fmt: skip
def test_more_tokens_than_positions_are_refused(made, batch, random_ids, family, length, message):
    model = made(family, "concat")
    adapter = batch(model)[0][1]
    assert logits(model, random_ids(1, length - 1), adapter).isfinite().all()
    with pytest.raises(ValueError, match=message):
        logits(model, random_ids(1, length), adapter)
    with pytest.raises(ValueError, match=message):
        model.generate(random_ids(1, length), adapter=adapter, **GREEDY)


def test_phi3_with_long_rotations_is_refused_where_they_change(make_backbone, make_model, random_ids):
    factors = [1.0] * 4
    backbone = make_backbone(
        "phi3", sliding_window=None, original_max_position_embeddings=16, max_position_embeddings=128,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": factors,
                         "long_factor": [4.0] * 4, "original_max_position_embeddings": 16},
    )  # fmt: skip
    model = make_model("phi3", "concat", backbone=backbone)
    adapter = model.generate_adapter(random_ids(1, 7))
    assert model(random_ids(1, 9), adapter=adapter).logits.isfinite().all()
    with pytest.raises(ValueError, match="together are 17 tokens.*phi3.*can read 16"):
        model(random_ids(1, 10), adapter=adapter)
    assert model.generate(random_ids(1, 8), adapter=adapter, max_new_tokens=2).shape == (1, 10)
    with pytest.raises(ValueError, match="together are 17 tokens"):
        model.generate(random_ids(1, 8), adapter=adapter, max_new_tokens=3)


# The adapter of another model


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_memory_for_other_heads_is_refused(made, make_model, batch, family):
    model = made(family, "cross_attention")
    fewer = make_model(family, "cross_attention", backbone=model.backbone, fusion_heads=2)
    adapters, _ = batch(fewer)
    with pytest.raises(ValueError, match=r"\(keys\) is for cross-attention.* 2 × 2 × 8, this model has 2 × 4 × 8"):
        model(torch.tensor([[5, 6]]), adapter=adapters[0])


def test_a_prefix_for_other_key_heads_is_refused(made, batch, random_ids):
    model = made("llama", "concat")
    adapter = batch(model)[0][0]
    memory = adapter.memory.map(lambda x: x[:, :, :1] if x.ndim == 5 else x)
    with pytest.raises(ValueError, match=r"\(prefix_keys\) is for self-attention.* 2 × 1 × 8, this model has 2 × 2"):
        model(random_ids(1, 2), adapter=type(adapter)(adapter.lora_a, adapter.lora_b, 8, memory))


# A model of text and images


def test_the_text_model_is_taken_out_of_a_model_of_text_and_images_as_the_error_says(make_config, tmp_path):
    text = make_config("gemma3_text").to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    both = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))
    both.save_pretrained(tmp_path / "both")
    message = "'gemma3', a model of text and images.*'gemma3_text': both = AutoModelForImageTextToText"
    with pytest.raises(ValueError, match=message):
        TagiModel.from_backbone(tmp_path / "both")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "both")
    text = AutoModelForCausalLM.from_config(loaded.config.text_config)
    text.model, text.lm_head = loaded.model.language_model, loaded.lm_head
    text.save_pretrained(tmp_path / "text")
    model = TagiModel.from_backbone(tmp_path / "text", r=2)
    assert TagiConfig.from_dict(model.config.to_dict()).backbone_config.model_type == "gemma3_text"
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, both.eval()(input_ids=ids).logits, rtol=0, atol=1e-5)
