"""What is new to the package is trained, scored, shown and described as what it knows: a reader, a generator, a
family and a reference."""

import json

import pytest
from tiny import records
from toy_generator import LinearGenerator
from transformers import AutoConfig, AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from modeling_tagi import TagiModel
from modeling_tagi.common.yaml_files import read_recipe
from modeling_tagi.data.readers import READERS, Reader
from modeling_tagi.evaluation.predict import Answering
from modeling_tagi.evaluation.references import REFERENCES, Reference
from modeling_tagi.evaluation.report.shared import loss_plots
from modeling_tagi.hypernetwork import GENERATORS
from modeling_tagi.pipeline import run_experiment
from modeling_tagi.planning.plan import plan_run
from modeling_tagi.planning.printed import shown
from modeling_tagi.planning.trial import Trial
from modeling_tagi.training.settings import build_settings, load_settings


class UnlistedConfig(OPTConfig):
    """Describes OPT by another name, which no table of families will ever list."""

    model_type = "unlisted"


class UnlistedForCausalLM(OPTForCausalLM):
    config_class = UnlistedConfig


AutoConfig.register("unlisted", UnlistedConfig)
AutoModelForCausalLM.register(UnlistedConfig, UnlistedForCausalLM)
UNLISTED = {"model_type": "unlisted", "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128}  # fmt: skip


def read_toy(words: int = 4):
    return {"train": records(["first", "last", "second"], words), "unseen": records(["next"], words + 1)}


class Shouted(Reference):
    """Gives the evaluated model its own instruction in capitals."""

    name, title, asks_trained = "shouted", "shouted at", True

    def answering(self, records, progress):
        own = self.compared.own
        louder = {record.task: record.instruction.upper() for record in records}
        return Answering(own.model, own.tokens, own.reads, own.batch_size, louder)


@pytest.fixture(scope="module")
def toy():
    """The name of a reader that nothing but the registry knows; and so is a reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(READERS, "toy", Reader(read_toy, "toys of the test", least={"words": 3}))
        patch.setitem(REFERENCES, Shouted.name, Shouted)
        yield "toy"


@pytest.fixture(scope="module")
def linear():
    """The name of a generator that nothing but the registry knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GENERATORS, "linear", LinearGenerator)
        yield "linear"


@pytest.fixture(scope="module")
def made(config, toy, linear, tmp_path_factory):
    """A run of both on a backbone of a family that no table lists, with a further loss: its settings, folder and
    results."""
    values = read_recipe(config)
    values["backbone"]["config"] = UNLISTED
    values["data"] = {"source": toy, "text": values["data"]["text"], "options": {"words": 5}}
    values |= {"output_dir": str(tmp_path_factory.mktemp("new") / "run")}
    values["tagi"] |= {"target_modules": ["q_proj", "v_proj"], "fusion": "none", "generator": linear}
    settings = build_settings(values, {
        "evaluation.references": ["start_prompted", "shouted"], "evaluation.every": 0,
        "finetuning.losses": {"update_norm": 0.01},
    })  # fmt: skip
    return settings, tmp_path_factory.getbasetemp() / settings.output_dir, run_experiment(settings)


def test_a_backbone_of_a_family_that_no_table_lists_runs_to_its_end(made):
    _, folder, results = made
    assert set(results["splits"]["unseen"]["methods"]) == {"tagi", "start_prompted", "shouted"}
    missing = json.loads((folder / "costs.json").read_text())["missing"]
    assert "FLOPs of a backbone of type 'unlisted' cannot be counted" in missing
    page, card = ((folder / name).read_text() for name in ("report/index.html", "model/README.md"))
    assert "Not counted: FLOPs of a backbone of type" in page and "Not counted: FLOPs of a backbone of type" in card
    assert TagiModel.from_pretrained(folder / "model").config.backbone_config.model_type == "unlisted"


def test_a_further_loss_is_logged_plotted_and_in_the_card(made):
    _, folder, _ = made
    assert "losses.update_norm 0.01" in (folder / "model" / "README.md").read_text()
    svg = next(plot for plot in loss_plots(folder, ["finetuning"]) if plot.name == "loss-finetuning").svg
    assert all(f"<!-- {title} -->" in svg for title in ("all terms, weighted", "prediction", "update norm"))


def test_a_new_reference_is_scored_planned_and_shown(made, config, toy):
    settings, folder, results = made
    found = results["splits"]["unseen"]
    assert list(found["methods"]) == ["start_prompted", "tagi", "shouted"] and "tagi - shouted" in found["differences"]
    assert all("shouted" in one["outputs"] for one in found["examples"])
    assert "| unseen | shouted at |" in (folder / "results.md").read_text()
    for name in ("report/report.md", "model/README.md"):
        text = (folder / name).read_text()
        assert "| shouted at |" in text and "| unseen | TAGI − shouted at |" in text, name
    seconds = []
    for references in ([], ["shouted"]):
        asked = load_settings(config, {"evaluation.references": json.dumps(references)})
        seconds.append(Trial({}, own=2.0, start=1.0, oracle=0.0).evaluation(asked, read_toy()))
    assert seconds[1] - seconds[0] == 6 * 2.0  # records of the split, answered by the trained model
    with pytest.raises(ValueError, match="references has 'shouted_at', but knows .*'oracle', .*'shouted'"):
        plan_run(load_settings(config, {"evaluation.references": "[shouted_at]"}), flops_per_second=1e9)


def test_a_new_reader_is_checked_read_planned_and_described(made, config, toy):
    settings, folder, results = made
    assert results["run"]["train_tasks"] == 3 and results["leaks"]["leaks"] == 0
    card = (folder / "model" / "README.md").read_text()
    assert "toys of the test" in card and "terms of the data (toys of the test)" in card
    plan = plan_run(load_settings(config, {"data.source": toy, "data.path": "null"}), flops_per_second=1e9)
    assert plan["data"]["records"] == 18 and "18 records, 3 tasks" in shown(plan)
    for options, message in (("{words: 2}", "data.options.words is 2, but must be 3 or more"),
                             ("{words: many}", "data.options.words is 'many', but must be of type int"),
                             ("{word: 3}", "data.options has 'word', but toy takes words; did you mean words")):
        overrides = {"data.source": toy, "data.path": "null", "data.options": options}
        with pytest.raises(ValueError, match=message):
            plan_run(load_settings(config, overrides), flops_per_second=1e9)
    with pytest.raises(ValueError, match="source 'toy' is read whole: set it to null, or use .*'tables' or 'p3'"):
        run_experiment(load_settings(config, {"data.source": toy, "data.path": "null", "data.streaming": "64"}))


def test_a_new_generator_is_trained_planned_and_described(made, config, linear):
    _, folder, _ = made
    assert isinstance(TagiModel.from_pretrained(folder / "model").hypernetwork, LinearGenerator)
    assert "linear, hidden size 8" in (folder / "model" / "README.md").read_text()
    plan = plan_run(load_settings(config, {"tagi.generator": linear}), flops_per_second=1e9)
    (finetuning,) = (stage for stage in plan["stages"] if stage["name"] == "finetuning")
    assert finetuning["flops"] > 0
