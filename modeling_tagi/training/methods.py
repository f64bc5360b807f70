"""The paper's methods and ablations, as settings of one model and one trainer (section 4, Tables 2 and 4)."""

_NO_TEACHER = {
    "task_adapters.steps": 0,
    "task_adapters.given": None,
    "finetuning.distillation_weight": 0.0,
    "finetuning.alignment": "none",
}
# The model itself is trained, as in Tk-Instruct and T0.
_NO_GENERATOR = {
    **_NO_TEACHER,
    "pretraining.steps": 0,
    "finetuning.train": "all",
}

# The fields of a run's settings that each method sets; all others stay as the run has them for TAGI.
METHODS: dict[str, dict] = {
    "tagi": {},
    # baselines
    "prompted": {**_NO_GENERATOR, "finetuning.reads": "prompt"},  # Tk-Instruct, T0: as many steps of finetuning
    "input_only": {**_NO_GENERATOR, "finetuning.reads": "input"},  # what the inputs alone give away
    "hypter": {**_NO_TEACHER, "tagi.fusion": "none", "pretraining.steps": 0},
    "hypertuning": {**_NO_TEACHER, "tagi.fusion": "none"},
    "hint": {**_NO_TEACHER, "tagi.fusion": "concat"},
    # ablations
    "without_pretraining": {"pretraining.steps": 0},
    "without_fusion": {"tagi.fusion": "none"},
    "without_prediction": {  # what is left must last to the end
        "finetuning.prediction_weight": 0.0,
        "finetuning.distillation_steps": None,
        "finetuning.alignment_steps": None,
    },
    "without_distillation": {"finetuning.distillation_weight": 0.0},
    "without_alignment": {"finetuning.alignment": "none"},
    "without_hypernetwork": {"finetuning.freeze": ["hypernetwork"], "finetuning.alignment": "none"},
}
