"""The fields of a run's settings, each with its default, its type and what it means.

Nothing here needs torch, so that an unknown field, or one of the wrong type, is refused at once.
"""

import dataclasses
import difflib
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Union

from ..common.typed import typed
from ..common.yaml_files import read_yaml, shown_name
from ..data.reading import READS

# Former dotted names, and what to write instead; `None` if the field is gone.
RENAMED = {
    "prompted": "instruction_tuning",
    "data.buffer": "data.streaming (a number of records)",
    "task_adapters.path": "task_adapters.given",
    "task_adapters.collection": "task_adapters.given",
    "finetuning.wordings_per_task": None,
    "finetuning.instruction_dropout": None,
    "finetuning.teacher_top_k": "finetuning.teacher_cache (a number of tokens)",
}


@dataclass
class DataSettings:
    """Says which data a run reads, and how.

    Args:
        source: `builtin` (makes its own tasks), `text_functions` (makes them from text), `p3`, `sni` (folders in
            these layouts), `tables` (JSON lines or parquet), or `mixture` (several of these).
        path: The folder (`text_functions`: or file, of plain text); `tables`: a folder with train.jsonl (or .parquet)
            and a file for each other split. Environment variables are filled in.
        text: A file or folder of plain text for the stages that read text. `null`: the built-in suite's own, or none.
        t0_eval: A folder of T0 evaluation sets for rank classification.
        options: Further arguments of the reader, by name.
        streaming: Reads the train split of `tables` or `p3` as a stream, for what is too large for memory, and keeps
            so many records of each instruction to draw batches from, such as 64. What is done with the train split as
            a whole (a vocabulary, task adapters) is done with these. Evaluation splits are held in memory all the
            same. `null` reads it whole.
    """

    source: str = "builtin"
    path: Optional[str] = None
    text: Optional[str] = None
    t0_eval: Optional[str] = None
    options: dict = field(default_factory=dict)
    streaming: Optional[int] = None


@dataclass
class BackboneSettings:
    """Describes the backbone that a run starts from: a pretrained one, or one from scratch.

    Args:
        name: A repository on the Hub, a folder, or `package:` and the name of an installed package; `null` to start
            from scratch.
        gguf_file: The GGUF file there with the weights and the tokenizer, if that is what they are in.
        revision: The repository's revision.
        config: From scratch: fields of the backbone's config, `model_type` among them. A named model has its own.
        shape: With a name: the same fields of the named model, by which `tagi plan` knows its shape where the Hub
            cannot be reached.
        vocab_size: From scratch: pieces of the vocabulary that is trained on the train split and the text.
        embedding_std: From scratch: standard deviation of the embeddings; `null` leaves the family's own.
    """

    name: Optional[str] = None
    gguf_file: Optional[str] = None
    revision: Optional[str] = None
    config: dict = field(default_factory=dict)
    shape: dict = field(default_factory=dict)
    vocab_size: int = 8000
    embedding_std: Optional[float] = None


@dataclass
class StageSettings:
    """Configures the optimisation of one stage.

    Args:
        steps: Optimizer steps; 0 leaves the stage out.
        learning_rate: At its highest; from 0 to 10.
        warmup: Share of the steps, from 0 to 1.
        schedule: A transformers scheduler's name.
        optimizer: A transformers optimizer's name, such as `adamw_torch_fused` or `adafactor`.
        weight_decay: As AdamW's; from 0 to 1.
        max_grad_norm: Gradients are cut to this norm; 0 leaves them as they are.
        accumulation: Batches a step.
        save_every: Steps between checkpoints to resume from.
    """

    steps: int = 0
    learning_rate: float = 1e-4
    warmup: float = 0.02
    schedule: str = "linear"
    optimizer: str = "adamw_torch_fused"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    accumulation: int = 1
    save_every: int = 500


@dataclass
class TextSettings(StageSettings):
    """Configures a stage that trains on text.

    Args:
        batch_size: Passages a batch.
        max_length: Tokens of a, b and c together; the paper's 1024.
    """

    learning_rate: float = 1e-3
    optimizer: str = "adafactor"
    batch_size: int = 8
    max_length: int = 1024


@dataclass
class TaskSettings(StageSettings):
    """Configures a stage that trains on tasks.

    Args:
        tasks_per_batch: Different tasks in a batch.
        examples_per_task: Examples of each.
    """

    tasks_per_batch: int = 4
    examples_per_task: int = 4


@dataclass
class AdapterSettings(StageSettings):
    """Configures the task adapters: how to tune them, or where to find existing ones.

    Args:
        given: Task adapters to use instead of tuning them: a bank, by its folder or its repository on the Hub; or PEFT
            LoRAs of others, as task (or group) to folder or repository, such as
            `{task363_sst2: user/name@revision}`, or a YAML or JSON file of that. `reads` says how LoRAs were tuned.
        by: One adapter a `group` (the paper) or a `task`.
        reads: What the model reads when they are tuned, and as a teacher: the `prompt` (instruction and input; the
            paper), or the `input`, so that all that is to be known of the task is in its adapter.
        at_once: Adapters tuned side by side over one backbone.
        examples_per_task: Examples of each adapter in a batch.
        max_grad_norm: 0 leaves gradients as they are; a norm is one of all adapters tuned at once, and couples them.
    """

    given: Union[dict, str, None] = None
    by: str = "group"
    reads: str = "prompt"
    at_once: int = 32
    examples_per_task: int = 8
    max_grad_norm: float = 0.0

    def given_loras(self) -> Optional[dict[str, str]]:
        """Returns folders or repositories of given LoRAs by task or group; `None` if a bank is given, or nothing.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if `given` does not map names to texts.
        """
        found = self.given
        if isinstance(found, str) and Path(found).suffix in (".yaml", ".yml", ".json"):
            file = Path(os.path.expandvars(found))
            if not file.is_file():
                raise FileNotFoundError(f"task_adapters.given names the file {file}, which is not there")
            found = read_yaml(file)
        elif not isinstance(found, dict):
            return None
        if not found or not all(isinstance(x, str) and x for pair in found.items() for x in pair):
            raise ValueError(
                f"task_adapters.given is {self.given!r:.200}, but must hold a folder or repository for each of at "
                "least one task"
            )
        return found


@dataclass
class ObjectiveSettings:
    """Holds the weights of `L_pred + λ1 L_kl + λ2 L_ins`; the defaults are the paper's (section 3.2.4, Table 8).

    Args:
        prediction_weight: The weight of L_pred.
        distillation_weight: λ1. With 0, no teacher is run.
        temperature: The temperature of L_kl; the authors' scripts have 3.
        alignment: L_ins by its name in `losses.ALIGNMENTS`: on the `factors` (eq. 6), on the updates (`delta`), or
            `none`.
        alignment_weight: λ2: `sigmoid` of L_ins, `sigmoid_detached` (not part of the gradient), or a number.
        distillation_steps, alignment_steps: λ1 and λ2 fall in a line to 0 over these optimizer steps; `None` leaves
            them as they are. The teacher is not run after them.
        losses: Weights of further terms, by their names in `losses.LOSSES`, such as `{update_norm: 0.01}`.
    """

    prediction_weight: float = 1.0
    distillation_weight: float = 5.0
    temperature: float = 3.0
    alignment: str = "factors"
    alignment_weight: Union[str, float] = "sigmoid"
    distillation_steps: Optional[int] = None
    alignment_steps: Optional[int] = None
    losses: dict = field(default_factory=dict)

    @property
    def needs_teacher(self) -> bool:
        """Tells whether the objective learns from task adapters."""
        return self.distillation_weight != 0 or self.alignment != "none"


@dataclass
class FinetuningSettings(ObjectiveSettings, TaskSettings):
    """Configures the finetuning of the hypernetwork on tasks.

    Args:
        reads: What the model reads of the instruction: its `adapter`; or, for baselines trained on as long, the
            `prompt` (instruction and input in one text) or the `input` alone. Then no adapter is generated or used.
            `adapter_and_prompt` gives both, as a LoRA tuned on prompts has it (generator `constant`).
        train: What changes: `generator`, `generator_and_norms` or `all`.
        freeze: Modules of the model that stay as they are all the same, such as `[hypernetwork]`, without which no
            adapter is generated (a fresh one changes nothing) and only the fusion is left.
        rows_by_length: Whether rows of like length go through the backbone together: a batch is cut where padding
            would cost more than a further pass. The step is the same. For data of mixed lengths.
        teacher_cache: What is kept on disk of the teacher, which then reads each record once, before the training:
            `states`, of which L_kl is exact (4 × d_model bytes a target token), or the number of likeliest tokens,
            such as 64, of which it is a lower bound (8 bytes for each). `null`: the teacher reads every batch.

    The weights of the losses are those of `ObjectiveSettings`.
    """

    reads: str = "adapter"
    train: str = "generator"
    freeze: list = field(default_factory=list)
    rows_by_length: bool = False
    teacher_cache: Union[int, str, None] = None

    @property
    def makes_adapters(self) -> bool:
        """Returns whether a generator is finetuned, and not a baseline that reads the instruction or the input."""
        return READS[self.reads].adapter and self.steps > 0


@dataclass
class OracleSettings:
    """Configures how the oracle's LoRAs are tuned.

    Args:
        steps: Optimizer steps for each LoRA.
        learning_rate: The rate of the first step; it then falls linearly to 0.
        examples_per_task: Examples of each task in a batch.
    """

    steps: int = 100
    learning_rate: float = 1e-3
    examples_per_task: int = 8


@dataclass
class EvaluationSettings:
    """Says what a run is evaluated on, how, and beside which references.

    Args:
        splits: Which ones; `null` is all but train. The first is the one that summaries show.
        every: Steps of finetuning between scores on the first of the splits, for the report's plot; 0 is never.
            Nothing is chosen by them.
        batch_size: Rows at once.
        max_records: Most records of a split, spread over its tasks; `null` is all.
        rank_options: Whether records with options are scored by rank classification.
        references: What else is scored, to tell what a number means: `start_prompted` (the model that TAGI starts
            from, with the instruction in its input), `no_instruction` (the same, without), `wrong_instruction`
            (another task's), `random_words` (as many words as the instruction has), `mean_adapter` (the mean of the
            adapters for training instructions), `nearest_adapter` (the task adapter whose instruction is nearest),
            `oracle` (a LoRA tuned on instances of the evaluated task); see evaluation/references.py.
        oracle: How the oracle's LoRA is tuned.
    """

    splits: Optional[list] = None
    every: int = 0
    batch_size: int = 64
    max_records: Optional[int] = None
    rank_options: bool = True
    references: list = field(default_factory=lambda: ["start_prompted", "no_instruction", "wrong_instruction"])
    oracle: OracleSettings = field(default_factory=OracleSettings)


@dataclass
class RunSettings:
    """Holds everything that defines a run but its name.

    Args:
        output_dir: Where it goes; default `outputs/<config name>`.
        label: What tables call the model that is trained.
        seed: Seeds everything random; from 0 to 2^32 - 1.
        train_tasks: Most tasks to train on, spread over the groups; `null` is all.
        bf16: Whether training computes in bfloat16.
        gradient_checkpointing: Less memory for more time; task adapters are tuned without it.
        max_input_length, max_target_length: Tokens kept of an input (or prompt) and of a target, whose last token ends
            it; at least 1 and 2.
        push_to_hub: A repository (`user/name`) for the checkpoint, made if there is none. Log in before, or set
            HF_TOKEN.
        push_private: Whether a repository that is made is private.
        push_every: Steps of finetuning between pushes on the way; 0 is at the end alone.
        publish_instructions: Whether the checkpoint holds up to 1,000 of the training instructions, to name those that
            are nearest to one that is far from all; if not, it holds means over groups of them.
        start_from: A TAGI checkpoint, by its folder or repository, whose generator is trained further. Its `tagi`
            fields are this run's and, where `backbone` says nothing, so is its backbone. `null`: a fresh generator.
        tagi: Fields of `TagiConfig`.
        text: From-scratch backbones: language modelling on text.
        instruction_tuning: Training with the instruction in the input: the baseline, and what TAGI starts from.
        task_adapters: Training with instances (section 3.2.2).
        pretraining: The hypernetwork on text (eq. 3).
        finetuning: The hypernetwork on tasks (eqs 4-6).
    """

    output_dir: Optional[str] = None
    label: str = "tagi"
    seed: int = 0
    train_tasks: Optional[int] = None
    bf16: bool = False
    gradient_checkpointing: bool = False
    max_input_length: int = 512
    max_target_length: int = 64
    push_to_hub: Optional[str] = None
    push_private: bool = False
    push_every: int = 0
    publish_instructions: bool = False
    start_from: Optional[str] = None
    data: DataSettings = field(default_factory=DataSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    tagi: dict = field(default_factory=dict)
    text: TextSettings = field(default_factory=TextSettings)
    instruction_tuning: TaskSettings = field(default_factory=TaskSettings)
    task_adapters: AdapterSettings = field(default_factory=AdapterSettings)
    pretraining: TextSettings = field(default_factory=TextSettings)
    finetuning: FinetuningSettings = field(default_factory=FinetuningSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)


def default_fields(cls=RunSettings) -> dict:
    """Returns the nested fields of a run, with their defaults."""
    found = {}
    for one in dataclasses.fields(cls):
        kind = typing.get_type_hints(cls)[one.name]
        if dataclasses.is_dataclass(kind):
            found[one.name] = default_fields(kind)
        else:
            found[one.name] = one.default_factory() if one.default is dataclasses.MISSING else one.default
    return found


def built_settings(cls, values: dict, prefix: str = ""):
    """Builds a dataclass of settings from nested fields; only the names and types of these are checked.

    Raises:
        ValueError: for an unknown field, or a value of the wrong type; the message names field, value and what is
            allowed.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.')} is {values!r}, but must hold fields: {', '.join(fields)}")
    built = {}
    for name, value in values.items():
        _require_name_of_today(prefix + str(name))
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            inside = [f"{section}.{name}" for section, kind in hints.items()
                      if dataclasses.is_dataclass(kind) and name in kind.__dataclass_fields__]  # fmt: skip
            meant = [prefix + one for one in close or inside]
            hint = f"did you mean {' or '.join(meant)}?" if meant else f"the fields are {', '.join(fields)}"
            raise ValueError(f"unknown field {shown_name(f'{prefix}{name}')}; {hint}")
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            built[name] = built_settings(kind, value if value is not None else {}, f"{prefix}{name}.")
        else:
            built[name] = typed(value, kind, prefix + name)
    return cls(**built)


def _require_name_of_today(name: str):
    """Refuses a former dotted name, and says what it is called now."""
    if name not in RENAMED:
        return
    if RENAMED[name] is None:
        raise ValueError(f"there is no {name} any more; leave it out")
    raise ValueError(f"{name} is called {RENAMED[name]} now; rename it")
