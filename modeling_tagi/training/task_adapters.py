"""Training with instances (section 3.2.2): one LoRA per task group, many of them tuned together over one backbone."""

from typing import Sequence

from torch import Tensor, nn

from ..adapter import TagiAdapter
from ..adapter_tuning import AdapterParameters, summed_task_losses, zero_b
from ..lora import Application, applied


class AdapterTuner(AdapterParameters):
    """Holds a frozen backbone and the factors of several task adapters, as one model to train.

    Args:
        backbone: A language model with the LoRA hooks of a [`TagiModel`].
        names: The names of the tasks.
        shared_a: Path -> A `[rank, d_in]`, where every adapter starts. B starts at 0.
        lora_alpha: Gives the adapters' scale, `lora_alpha / rank`.
    """

    def __init__(self, backbone: nn.Module, names: Sequence[str], shared_a: dict[str, Tensor], lora_alpha: float):
        a = {path: shared.detach().float().expand(len(names), -1, -1) for path, shared in shared_a.items()}
        super().__init__(a, zero_b(backbone, a))
        self.names, self.lora_alpha = list(names), lora_alpha
        self.config = backbone.config
        self._backbone = [backbone]  # in a list: its weights are no part of this model's

    @property
    def backbone(self) -> nn.Module:
        return self._backbone[0]

    def adapter(self) -> TagiAdapter:
        """Returns the adapters as they are now, with gradients."""
        return TagiAdapter(**self.factors(), lora_alpha=self.lora_alpha)

    def train(self, mode: bool = True):
        self.backbone.train(mode)  # for its dropout
        return super().train(mode)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, adapter_index: Tensor, **unused):
        """Returns the loss, summed over tasks, and the logits of rows that each have their own task's adapter.

        Args:
            input_ids, attention_mask, labels: As for the backbone.
            adapter_index: `[batch]`, the task of each row.
        """
        backbone = self.backbone
        both = backbone.config.is_encoder_decoder
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if both:
            inputs["decoder_input_ids"] = backbone.prepare_decoder_input_ids_from_labels(labels=labels)
        with applied(Application.of(self.adapter(), backbone, adapter_index)):
            logits = backbone(**inputs).logits
        loss = summed_task_losses(logits, labels, adapter_index, len(self.names), shifted=not both)
        return {"loss": loss, "logits": logits}
