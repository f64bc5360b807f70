"""The pipeline of a checkpoint: texts to texts, by an instruction or an adapter."""

from typing import Any, Optional, Sequence

from transformers import Pipeline

# What a checkpoint's config says of it: pipeline("text-generation", model=…, trust_remote_code=True) makes one.
PIPELINES = {"text-generation": {"impl": "text_pipeline.TagiPipeline", "pt": ["AutoModel"]}}


class TagiPipeline(Pipeline):
    """Generates outputs for inputs, formatted as the [`TagiModel`] was trained to read them.

    Call `pipe(inputs, instruction="…")` or `pipe(inputs, adapter=…)`; either may also be given to `pipeline`. Further
    arguments go to `generate`. Each input gives `[{"generated_text": …}]`, the output alone.
    """

    _load_tokenizer = False  # the model has it
    _load_feature_extractor = _load_image_processor = _load_processor = False

    def _sanitize_parameters(
        self,
        instruction: Optional[str] = None,
        demonstrations: Optional[Sequence] = None,
        adapter: Any = None,
        **generate_kwargs,
    ):
        if adapter is not None and instruction is not None:
            raise ValueError("the pipeline got both an instruction and an adapter; give one of them")
        if instruction is not None:
            adapter = self.model.generate_adapter(instruction, demonstrations)
        forward = generate_kwargs if adapter is None else {**generate_kwargs, "adapter": adapter}
        return {}, forward, {}

    def preprocess(self, input_: str) -> dict:
        return self.model.encode_inputs(input_)

    def _forward(self, input_tensors: dict, adapter: Any = None, **generate_kwargs) -> dict:
        if adapter is None:
            raise ValueError(
                "the pipeline got no instruction; call it with instruction='what to do with an input', or with "
                "adapter=pipe.model.generate_adapter(…)"
            )
        output = self.model.generate(**input_tensors, adapter=adapter, **generate_kwargs)
        written = 0 if self.model.config.is_encoder_decoder else input_tensors["input_ids"].shape[1]
        return {"output": output[:, written:]}

    def postprocess(self, model_outputs: dict) -> list[dict[str, str]]:
        texts = self.model.tokenizer.batch_decode(model_outputs["output"], skip_special_tokens=True)
        return [{"generated_text": text.strip()} for text in texts]
