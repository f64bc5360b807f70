"""The parameters of a model that a run's generator stages train."""

from torch import nn

from .setting_fields import RunSettings


def set_trainable(model, settings: RunSettings):
    """Sets which of the model's parameters training changes, by `finetuning.train` and `finetuning.freeze`."""
    model.set_trainable(settings.finetuning.train)
    for name in settings.finetuning.freeze:
        getattr(model, name).requires_grad_(False)


def trained_parameters(model, settings: RunSettings) -> list[nn.Parameter]:
    """Returns the parameters that training changes, and freezes all others."""
    set_trainable(model, settings)
    return [x for x in model.parameters() if x.requires_grad]
