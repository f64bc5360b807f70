"""Which parameters of a model a run's generator stages train."""

from torch import nn

from .setting_fields import RunSettings


def set_trainable(model, settings: RunSettings):
    """Lets the model's parameters change, or stay, as `finetuning.train` and `finetuning.freeze` say."""
    model.set_trainable(settings.finetuning.train)
    for name in settings.finetuning.freeze:
        getattr(model, name).requires_grad_(False)


def trained_parameters(model, settings: RunSettings) -> list[nn.Parameter]:
    """Returns the parameters that change."""
    set_trainable(model, settings)
    return [x for x in model.parameters() if x.requires_grad]
