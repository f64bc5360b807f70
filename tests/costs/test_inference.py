import inspect
import json
import os
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from modeling_tagi import TagiConfig
from modeling_tagi.common.methods import METHODS
from modeling_tagi.costs.flops import PARTS, Lengths, TaskFlops
from modeling_tagi.costs.inference import (
    cost_of_methods,
    counted_methods,
    instruction_for,
    lengths_of,
    main,
    t5_backbone,
    ways_to_cheaper,
)
from modeling_tagi.data.records import Record
from modeling_tagi.tokens import Tokens

INSTRUCTION, INPUT, TARGET, ROWS = 23, 11, 5, 4
LENGTHS = Lengths(INSTRUCTION, INPUT, TARGET)
ROTARY = ("llama", "qwen3", "gpt_neox")
# transformers 5.10 makes the angles of rotary positions by a matrix product, which is in no formula; 5.23 does not
ANGLES_BY_PRODUCT = " @ " in inspect.getsource(LlamaRotaryEmbedding.forward)
REAL = Path(os.environ.get("TAGI_DATA", Path(__file__).parents[2].parent / "shared" / "data"), "sni")


def counted(model, method, random_ids):
    """What torch counts of a whole task: the adapter, if there is one, and the generation of every row."""
    instruction, rows = random_ids(1, INSTRUCTION), random_ids(ROWS, INPUT, seed=1)
    if method == "prompted":
        rows = torch.cat([instruction.expand(ROWS, -1), rows], 1)
    # of the fused attention kernels torch has no count on a CPU
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        adapter = model.generate_adapter(instruction) if method != "prompted" else None
        output = model.generate(rows, attention_mask=torch.ones_like(rows), adapter=adapter, do_sample=False,
                                max_new_tokens=TARGET, min_new_tokens=TARGET)  # fmt: skip
    assert output.shape[1] == TARGET + (1 if model.config.is_encoder_decoder else rows.shape[1])
    return counter.get_total_flops()


def test_methods_have_the_fusion_that_they_are_trained_with():
    for method, fusion in counted_methods().items():
        fields = METHODS[method].fields
        prompted = fields.get("finetuning.reads") == "prompt"
        assert fusion == (None if prompted else fields.get("tagi.fusion", TagiConfig().fusion))


@pytest.mark.parametrize("family", ["t5", "t5_v1_1", "mt5", "bart", "llama", "qwen3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("method", counted_methods())
def test_formula_is_what_torch_counts(family, method, make_model, random_ids):
    model = make_model(family, counted_methods()[method] or "none")
    costs = cost_of_methods(model.config, LENGTHS, ROWS)["methods"][method]
    exactness = 1e-3 if family in ROTARY and ANGLES_BY_PRODUCT else 1e-9
    assert costs["flops"] == pytest.approx(counted(model, method, random_ids), rel=exactness)
    assert sum(costs["parts"].values()) == costs["flops"]


def test_formula_follows_rank_targets_generator_and_depth(make_backbone, make_model, random_ids):
    backbone = make_backbone("t5_v1_1", num_layers=3, num_decoder_layers=1, d_kv=4)
    fields = {"r": 3, "target_modules": ["q", "k", "v", "o", "wi_0", "lm_head"], "generator": "shared"}
    model = make_model("t5_v1_1", "cross_attention", backbone=backbone, **fields)
    formula = TaskFlops(model.config)
    expected = counted(model, "tagi", random_ids)
    assert sum(formula.adapted(LENGTHS, ROWS).values()) == pytest.approx(expected, rel=1e-9)


# Parameters as published with the checkpoints of T5 v1.1, which have an output layer of their own
@pytest.mark.parametrize(
    "name, published", [("t5-base", 247_577_856), ("t5-large", 783_150_080), ("t5-xxl", 11_135_332_352)]
)
def test_shapes_are_the_published_ones(name, published):
    config = t5_backbone(name)
    formula = TaskFlops(TagiConfig(config))
    head = config.vocab_size * config.d_model
    assert formula.parameters == published - (head if config.tie_word_embeddings else 0)


def test_linear_flops_are_derived_by_hand_for_t5_base():
    # an encoder layer: q, k, v, o of 768 x 768 and three 768 x 2048; two FLOPs for a weight and a token; 12 layers
    linear = TaskFlops(TagiConfig(t5_backbone("t5-base"), fusion="none")).linear
    assert linear["read"] == 12 * 2 * (4 * 768 * 768 + 3 * 768 * 2048)
    assert linear["memory"] == 12 * 2 * 2 * 768 * 768
    assert linear["write"] == 12 * 2 * (6 * 768 * 768 + 3 * 768 * 2048)
    assert linear["head"] == 2 * 768 * 32128


@pytest.fixture(scope="module")
def base():
    return TagiConfig(t5_backbone("t5-base"))


def test_methods_are_ordered_as_in_table_2(base):
    costs = cost_of_methods(base, Lengths(290, 145, 8), name="t5-base")
    assert costs["backbone"] == "t5-base" and costs["inputs_per_task"] == 100
    relative = {name: method["relative"] for name, method in costs["methods"].items()}
    assert relative["prompted"] == 1
    assert relative["hypter"] == relative["hypertuning"] < relative["hint"] < relative["tagi"] < 1
    # section B.5: (290 + 100 * 145) / (100 * 435)
    assert costs["paper_formula"] == pytest.approx(14790 / 43500)
    assert relative["hypter"] == pytest.approx(costs["paper_formula"], rel=0.02)


def test_curves_pass_through_the_cost_and_fall(base):
    costs = cost_of_methods(base, Lengths(256, 145, 8))
    json.dumps(costs)
    for name, method in costs["methods"].items():
        by_length, by_inputs = costs["by_instruction_length"], costs["by_inputs"]
        assert by_length[name][by_length["x"].index(256)] == pytest.approx(method["relative"])
        assert by_inputs[name][by_inputs["x"].index(100)] == pytest.approx(method["relative"])
        if name != "prompted":
            assert by_length[name] == sorted(by_length[name], reverse=True)
            assert by_inputs[name] == sorted(by_inputs[name], reverse=True)
    assert costs["by_inputs"]["tagi"][0] > 1 > costs["by_inputs"]["tagi"][-1]  # one input does not pay for reading


def test_ways_to_cheaper_save_what_they_say(base):
    lengths = Lengths(290, 145, 8)
    costs, ways = cost_of_methods(base, lengths)["methods"], ways_to_cheaper(base, lengths)
    total, parts = costs["prompted"]["flops"], costs["tagi"]["parts"]
    assert ways["as it is"] == pytest.approx(costs["tagi"]["relative"])
    # 72 matrices of 768 x 768 get an update of rank 32; v of the instruction has it in 12 layers, once
    updates = 72 * 2 * 32 * 768 * 768
    in_memory = 12 * 2 * 290 * 32 * 2 * 768
    assert (ways["as it is"] - ways["merged"]) * total == pytest.approx(parts["lora"] + in_memory - updates)
    hint_again = ways["merged"] - parts["fusion"] / total
    assert ways["merged, no cross-attention (HINT)"] == pytest.approx(hint_again)
    backbone = base.backbone_config
    for heads, share in ((6, "half"), (3, "a quarter")):
        way = f"{share} of the heads in its cross-attention"
        fewer = cost_of_methods(TagiConfig(backbone, fusion_heads=heads), lengths)["methods"]["tagi"]["relative"]
        assert ways[way] == pytest.approx(fewer)


def test_the_instructions_keys_and_values_are_made_once(base):
    lengths = Lengths(290, 145, 8)
    few, many = (cost_of_methods(base, lengths, inputs)["methods"]["tagi"]["parts"] for inputs in (10, 100))
    # 12 layers, k of 768 x 768, v the same with an update of rank 32
    projection = 12 * 2 * 290 * (2 * 768 * 768 + 32 * 2 * 768)
    # a query of each of the 8 tokens of an output with 290 keys, and the weighted sum of as many values, 768 wide
    attention = 12 * 2 * 2 * 8 * 290 * 768
    assert few["memory"] == pytest.approx(projection + 10 * attention)
    assert many["memory"] == pytest.approx(projection + 100 * attention)


def test_instruction_for_a_goal_is_the_shortest(base):
    lengths = Lengths(50, 70, 8)
    shortest = instruction_for(base, lengths, 0.39)
    before, at = (cost_of_methods(base, Lengths(t, 70, 8))["methods"]["tagi"] for t in (shortest - 1, shortest))
    assert before["relative"] > 0.39 >= at["relative"]
    assert instruction_for(base, lengths, 0.01) is None


def test_lengths_are_means_over_tasks_of_what_models_read(tokenizer):
    # letter by letter, a token for the blank before the text, one for its end
    records = [
        Record("a", "copy", "abc", ("x",)),
        Record("a", "copy", "abcde", ("xyz",)),
        Record("b", "reverse", "ab", ("ba", "never read")),
    ]
    assert lengths_of(records, Tokens(tokenizer, True, 64, 64)) == Lengths((6 + 9) / 2, (6 + 4) / 2, (4 + 4) / 2)
    assert lengths_of(records, Tokens(tokenizer, True, 4, 3)) == Lengths((6 + 9) / 2, 4, 3)
    longer = [Record("a", "copy", "abc", ("x",), demonstrations=[("ab", "cd")])]
    assert lengths_of(longer, Tokens(tokenizer, True, 64, 64)).instruction > 20


def test_errors_say_what_to_mend(base, make_config, tokenizer):
    with pytest.raises(ValueError, match="input is 0, but must be a number of tokens"):
        Lengths(3, 0, 1)
    with pytest.raises(ValueError, match="inputs is 0"):
        cost_of_methods(base, LENGTHS, 0)
    with pytest.raises(ValueError, match="no records"):
        lengths_of([], Tokens(tokenizer, True, 64, 64))
    with pytest.raises(ValueError, match="'t5-giant'.*t5-xxl"):
        t5_backbone("t5-giant")
    mbart = {"model_type": "mbart", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50}
    with pytest.raises(ValueError, match="type 'mbart' cannot be counted"):
        TaskFlops(TagiConfig(mbart, target_modules=["q_proj"], fusion="none"))


def test_command_prints_tables_and_writes_json(tmp_path, capsys):
    file = tmp_path / "costs.json"
    arguments = ["--backbone", "t5-small", "t5-base", "--lengths", "290", "145", "8", "--json", str(file)]
    assert main(arguments) == 0
    made, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert [cost["backbone"] for cost in made["costs"]] == ["t5-small", "t5-base"]
    for cost in made["costs"]:
        relative = " | ".join(f"{cost['methods'][name]['relative']:.3f}" for name in counted_methods())
        assert f"| given | {cost['backbone']} | {relative} | 0.340 |" in printed
        assert list(cost["methods"]["tagi"]["parts"]) == list(PARTS)
    assert main(["--sni", str(tmp_path / "nowhere")]) == 2
    assert "train_tasks.txt is not a file" in capsys.readouterr().err


@pytest.fixture
def sni(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "splits" / "default").mkdir(parents=True)
    for split, task in (("train", "copy the words"), ("test", "reverse the words")):
        name = task.split()[0]
        (tmp_path / "splits" / "default" / f"{split}_tasks.txt").write_text(f"{name}\n")
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps({
            "Categories": [name], "Definition": [task],
            "Positive Examples": [{"input": "one two", "output": "two"}, {"input": "two one", "output": "one"}],
            "Instances": [{"id": str(n), "input": f"{name} three {n}", "output": [f"three {n}"]} for n in range(9)],
        }))  # fmt: skip
    return tmp_path


def test_command_reads_lengths_of_a_folder_in_both_settings(sni, tokenizer, tmp_path, capsys):
    tokenizer.save_pretrained(tmp_path / "letters")
    file = tmp_path / "costs.json"
    letters = ["--tokenizer", str(tmp_path / "letters")]
    assert main(["--backbone", "t5-small", "--sni", str(sni), *letters, "--json", str(file)]) == 0
    made = json.loads(file.read_text())
    short, long = (cost["lengths"] for cost in made["costs"])
    assert [cost["setting"] for cost in made["costs"]] == ["Def", "Def+2Pos"]
    assert short["input"] == long["input"] and short["instruction"] + 40 < long["instruction"]
    assert short["target"] == len("▁three▁0") + 1
    assert {row["task"] for row in made["tasks"]["Def"]} == {"copy", "reverse"}


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here; set TAGI_DATA to the folder that holds sni/")
@pytest.mark.slow
def test_documented_costs_are_those_of_the_data(tmp_path):
    documented = json.loads((Path(__file__).parents[2] / "docs" / "results" / "costs.json").read_text())
    file = tmp_path / "costs.json"
    names = ["t5-base", "t5-xl", "t5-xxl"]
    assert main(["--backbone", *names, "--sni", str(REAL), "--json", str(file)]) == 0
    for now, before in zip(json.loads(file.read_text())["costs"], documented["costs"], strict=True):
        assert now["methods"]["tagi"]["relative"] == pytest.approx(before["methods"]["tagi"]["relative"], abs=0.005)
