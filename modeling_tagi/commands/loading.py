"""A checkpoint for the commands that use one."""


def load_model(checkpoint: str):
    """In eval mode, on the GPU if there is one."""
    import torch

    from ..modeling_tagi import TagiModel
    from ..training.run import quiet_libraries

    quiet_libraries()
    return TagiModel.from_pretrained(checkpoint).eval().to("cuda" if torch.cuda.is_available() else "cpu")
