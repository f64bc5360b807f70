"""The bodies of requests: OpenAI's fields, of which those that cannot be done are refused and not passed over."""

from typing import Any, Literal, Optional, Union

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..fit import require_unicode

# Fields that would change the answer, and the values that ask for nothing.
_NEUTRAL = {
    "best_of": (None, 1), "echo": (None, False), "suffix": (None, ""), "logprobs": (None, False),
    "top_logprobs": (None, 0), "logit_bias": (None, {}), "presence_penalty": (None, 0), "frequency_penalty": (None, 0),
    "tools": (None, []), "tool_choice": (None, "none", "auto"), "functions": (None, []),
    "response_format": (None, {"type": "text"}), "modalities": (None, ["text"]),
}  # fmt: skip


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(_Body):
    include_usage: Optional[bool] = None
    include_obfuscation: Any = None


class _Asked(_Body):
    model: str = Field(
        max_length=100_000,
        description="`tagi:<instruction>`, an adapter's id, a short name, or the backbone's own name",
        examples=["tagi:Name the animal."],
    )
    max_tokens: Optional[int] = Field(None, ge=1, description="of an answer; 64 where nothing is said")
    temperature: Optional[float] = Field(None, ge=0, le=2, description="0 where nothing is said: the likeliest tokens")
    top_p: Optional[float] = Field(None, gt=0, le=1)
    seed: Optional[int] = Field(None, ge=-(2**62), le=2**62)
    n: Optional[int] = Field(None, ge=1, le=16)
    stop: Union[None, str, list[str]] = Field(None, description="up to four texts that end an answer")
    stream: Optional[bool] = None
    stream_options: Optional[StreamOptions] = None
    # said of the client, or asking for nothing
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    logprobs: Any = None
    logit_bias: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None

    @field_validator(*_NEUTRAL, check_fields=False)
    @classmethod
    def _must_ask_for_nothing(cls, value, info):
        neutral = _NEUTRAL[info.field_name]
        if not any(type(value) in (type(one), float) and value == one for one in neutral):
            allowed = " or ".join(repr(one) for one in neutral if one is not None)
            raise ValueError(f"this server does not do that; leave it out, or give {allowed}")
        return value

    @field_validator("stop")
    @classmethod
    def _few_texts(cls, value):
        texts = [value] if isinstance(value, str) else value or []
        for text in texts:
            require_unicode(text, "a text")
        if len(texts) > 4 or not all(0 < len(text) <= 1000 for text in texts):
            raise ValueError("give up to four texts of 1 to 1000 characters")
        return texts


class CompletionBody(_Asked):
    """Asks for what comes after texts; with an adapter: for what it makes of inputs."""

    prompt: Union[str, list[str]] = Field(description="a text, or several; without the instruction")
    best_of: Any = None
    echo: Any = None
    suffix: Any = None

    @field_validator("prompt")
    @classmethod
    def _some_texts(cls, value):
        if not value:
            raise ValueError("give a text that is not empty, or a list of at least one")
        return value

    def texts(self) -> list[str]:
        """Returns the prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class TextPart(_Body):
    type: Literal["text"]
    text: str


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Union[str, list[TextPart]]
    name: Any = None

    def plain(self) -> dict[str, str]:
        """Returns its role and text, as chat templates take them."""
        parts = self.content if isinstance(self.content, list) else [TextPart(type="text", text=self.content)]
        return {"role": self.role, "content": "".join(part.text for part in parts)}


class ChatBody(_Asked):
    """Asks for the answer to messages; with an adapter: to one message of the user's."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: Optional[int] = Field(None, ge=1)
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    parallel_tool_calls: Any = None
    response_format: Any = None
    modalities: Any = None


class AdapterBody(_Body):
    """Asks for the adapter of an instruction."""

    instruction: str = Field(max_length=100_000, examples=["Name the animal."])
    demonstrations: Optional[list[tuple[str, str]]] = Field(None, description="worked examples (input, output)")

    @field_validator("demonstrations", mode="before")
    @classmethod
    def _pairs(cls, value):
        if not isinstance(value, list):
            return value
        return [tuple(pair) if isinstance(pair, list) else pair for pair in value]  # JSON has no tuples


def said_wrong(errors: list[dict]) -> tuple[str, Optional[str]]:
    """Returns one message about the errors that pydantic found in a request, and the field of the first."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        text = "there is no such field; leave it out"
    if first["type"] in ("json_invalid", "model_attributes_type") or not place:
        return f"the body cannot be read ({text}); send a JSON object with Content-Type: application/json", None
    more = len({error["loc"][:2] for error in errors}) - 1
    also = f" ({more} more field{'s are' if more > 1 else ' is'} wrong)" if more else ""
    return f"{'.'.join(place)}: {text[:300]}{also}", place[0]
