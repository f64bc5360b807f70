"""The paper's methods and ablations, as settings of one model and one trainer (section 4, Tables 2 and 4).

To add one is a line in `METHODS`. Tables, plots, reports and costs ask there.
"""

from dataclasses import dataclass
from typing import Any, Mapping, Optional

TAGI = "tagi"  # the method that studies are about
PROMPTED = "prompted"  # the method whose costs and scores others are seen against
_FUSION = "cross_attention"  # where a method sets no other
_ABLATION = "without_"  # names of ablations begin with it


@dataclass(frozen=True)
class Method:
    """Holds how a method is trained, and where it is shown.

    Args:
        fields: The fields of a run's settings that it sets; all others stay as the run has them for TAGI.
        title: What reports call it; by default its name with blanks.
        counted: Whether tables of costs have it.
        among_references: Whether tables have it between the references; the other methods come last.
        compared: Whether a study shows how far the others are from it.
        by_category: Its place among those of which a study plots the first three by category; `None` is not at all.
        beside_own: Whether a run's plot by category has it beside what the run trained.
    """

    fields: Mapping[str, Any]
    title: Optional[str] = None
    counted: bool = False
    among_references: bool = False
    compared: bool = False
    by_category: Optional[int] = None
    beside_own: bool = False

    @property
    def fusion(self) -> Optional[str]:
        """Returns how instructions are fused; `None` for a backbone that is prompted."""
        return None if self.fields.get("finetuning.reads") == "prompt" else self.fields.get("tagi.fusion", _FUSION)


_NO_TEACHER = {
    "task_adapters.steps": 0,
    "task_adapters.given": None,
    "finetuning.distillation_weight": 0.0,
    "finetuning.alignment": "none",
}
# One LoRA for all tasks is trained, over a frozen model.
_ONE_LORA = {
    **_NO_TEACHER,
    "pretraining.steps": 0,
    "tagi.fusion": "none",
    "tagi.generator": "constant",
    "tagi.pooling": "mean",
    "tagi.standardise": False,
}
# The model itself is trained, as in Tk-Instruct and T0.
_NO_GENERATOR = {
    **_NO_TEACHER,
    "pretraining.steps": 0,
    "finetuning.train": "all",
}

# in the order of tables
METHODS: dict[str, Method] = {
    # Tk-Instruct, T0: as many steps of finetuning
    PROMPTED: Method({**_NO_GENERATOR, "finetuning.reads": "prompt"}, counted=True, among_references=True,
                     compared=True, by_category=2, beside_own=True),
    # what the inputs alone give away
    "input_only": Method({**_NO_GENERATOR, "finetuning.reads": "input"}, among_references=True),
    "prompted_lora": Method({**_ONE_LORA, "finetuning.reads": "adapter_and_prompt"}, "prompted LoRA",
                            among_references=True, compared=True),
    "input_only_lora": Method(_ONE_LORA, "input-only LoRA", among_references=True),
    "hypter": Method({**_NO_TEACHER, "tagi.fusion": "none", "pretraining.steps": 0}, "Hypter", counted=True),
    "hypertuning": Method({**_NO_TEACHER, "tagi.fusion": "none"}, "HyperTuning", counted=True, by_category=5),
    "hint": Method({**_NO_TEACHER, "tagi.fusion": "concat"}, "HINT", counted=True, by_category=4),
    TAGI: Method({}, "TAGI", counted=True, among_references=True, compared=True, by_category=1),
    # ablations
    "without_pretraining": Method({"pretraining.steps": 0}),
    "without_fusion": Method({"tagi.fusion": "none"}),
    "without_prediction": Method({  # what is left must last to the end
        "finetuning.prediction_weight": 0.0,
        "finetuning.distillation_steps": None,
        "finetuning.alignment_steps": None,
    }),
    "without_distillation": Method({"finetuning.distillation_weight": 0.0}),
    "without_alignment": Method({"finetuning.alignment": "none"}),
    "without_hypernetwork": Method({"finetuning.freeze": ["hypernetwork"], "finetuning.alignment": "none"}),
}  # fmt: skip


def is_ablation(name: str) -> bool:
    """Returns whether a method is TAGI with a part left out, as its name says."""
    return name.startswith(_ABLATION)
