"""The stages of a run, in order. To add one, write a file here, a line in `STAGES` and a section in `RunSettings`."""

from ..run_state import RunState
from ..setting_fields import RunSettings
from .base import TrainingStage
from .finetuning import Finetuning
from .instruction_tuning import InstructionTuning
from .pretraining import Pretraining
from .task_adapters import TaskAdapters
from .text import Text

STAGES: dict[str, TrainingStage] = {
    stage.name: stage for stage in (Text(), InstructionTuning(), TaskAdapters(), Pretraining(), Finetuning())
}


def wanted_stages(settings: RunSettings) -> list[str]:
    """Returns the names of the stages that a run with these settings has, in order."""
    return [name for name, stage in STAGES.items() if stage.wanted(settings)]


def training_stages(settings: RunSettings) -> list[TrainingStage]:
    """Returns the stages in which a run with these settings takes steps, in order."""
    return [stage for stage in STAGES.values() if stage.trains(settings)]


def run_stages(state: RunState):
    """Runs every stage that the run has; a finished one is read, an interrupted one resumes."""
    for stage in STAGES.values():
        stage.run(state)
