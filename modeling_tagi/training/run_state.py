"""The state that the stages of a run pass on to each other."""

from pathlib import Path
from typing import Callable, Optional, Sequence

from transformers import PretrainedConfig, set_seed

from ..banks.adapter_bank import AdapterBank
from ..common.seeds import derived_seed
from ..common.writing import reading
from ..data.records import Record
from ..modeling_tagi import TagiModel
from ..tokens import Tokens
from .run import Run
from .saved_models import require_finite
from .starting_point import start_generator
from .tokenizer import keep_tokenizer


class RunState:
    """Holds the results of a run's stages so far: each stage reads from it, and adds its own.

    Args:
        run: The run's folder and settings.
        tokenizer: The tokenizer of the run's models.
        train, text: The training records and the passages of text.

    Attributes:
        backbone, revision: The backbone as trained so far: a name or folder, and a revision. For one from scratch, the
            folder of the vocabulary until there is a model.
        bank: The task adapters; `None` before they are tuned, or where there are none.
        scores: Returns the scores of a model, every `evaluation.every` steps of finetuning; `None` takes none.
        push: Called with the model and the step every `push_every` steps of finetuning; `None` pushes nothing.
    """

    def __init__(self, run: Run, tokenizer, train: Sequence[Record], text: Sequence[str]):
        self.run, self.settings, self.tokenizer, self.train, self.text = run, run.settings, tokenizer, train, text
        self.backbone, self.revision = run.settings.backbone.name, run.settings.backbone.revision
        if self.backbone is None:
            self.backbone, self.revision = str(keep_tokenizer(run, tokenizer)), None
        self.bank: Optional[AdapterBank] = None
        self.scores: Optional[Callable[[TagiModel], dict]] = None
        self.push: Optional[Callable[[TagiModel, int], None]] = None
        self._model: Optional[TagiModel] = None

    @property
    def model(self) -> TagiModel:
        """Returns the model as trained so far; the first access makes a fresh generator on the trained backbone."""
        if self._model is None:
            self._model = start_model(self.run, self.backbone, self.revision)
        return self._model

    @model.setter
    def model(self, model: TagiModel):
        self._model = model

    @property
    def made_backbone(self) -> bool:
        """Returns whether the backbone was made or taught by this run, so that it is nowhere else."""
        return self.backbone != self.settings.backbone.name

    @property
    def tokens(self) -> Tokens:
        """Returns the `Tokens` that turn the run's texts into the model's inputs."""
        return read_tokens(self.run, self.tokenizer, self.model.config)


def start_model(run: Run, backbone: str, revision: Optional[str]) -> TagiModel:
    """Returns the model that generators are trained in, on the backbone as trained so far."""
    set_seed(derived_seed(run.settings.seed, "generator", "weights"))

    folder = Path(backbone)
    if folder.parent.parent != run.folder / "stages":
        return start_generator(run.settings, backbone, revision)
    with reading(folder, run.again(folder.parent.name)):  # a result of this run
        return require_finite(start_generator(run.settings, backbone, revision))


def read_tokens(run: Run, tokenizer, config: PretrainedConfig) -> Tokens:
    """Returns the `Tokens` for the run's texts and a model, whose config (or whose backbone's) is `config`."""
    settings = run.settings
    return Tokens.of(
        tokenizer, config, settings.max_input_length, settings.max_target_length, settings.tagi.get("input_format")
    )
