from toy_training import (  # noqa: F401
    backbones,
    make_bank,
    make_model,
    make_tokens,
    records,
    tokenizer,
    training_arguments,
)
