"""What a server does with the model: it reads inputs, and runs batches of rows."""

from typing import Sequence

from jinja2 import TemplateError

from ..families import positions_of
from ..fit import require_unicode
from ..modeling_tagi import TagiModel
from ..tokens import Tokens, read_instructions
from .decoding import write_answers
from .limits import Limits, Refusal
from .rows import Row


class Engine:
    """Reads inputs for a [`TagiModel`], and writes the answers of rows with it.

    What an adapter is for is read as `encode_inputs` reads it. What the backbone alone is asked is read as it stands;
    messages by the chat template, if the tokenizer has one.
    """

    def __init__(self, model: TagiModel, limits: Limits):
        self.model, self.limits = model, limits
        self.tokens = Tokens.of(model.tokenizer, model.config)
        chats = getattr(model.tokenizer, "chat_template", None) is not None
        self.chat = Tokens.of(model.tokenizer, model.config, input_format="chat") if chats else None
        known = model.generation_config.eos_token_id
        plain = [known] if isinstance(known, int) else list(known or ())
        in_chat = self.chat.ends(plain) if chats else plain
        self.ends = {"adapter": in_chat if model.config.input_format == "chat" else plain,
                     "text": plain, "messages": in_chat}  # fmt: skip

    def require_instruction(self, instruction: str):
        """Refuses an instruction that no adapter can be made of.

        Raises:
            Refusal: with status 400.
        """
        try:
            read_instructions(self.model, instruction)
        except (ValueError, TypeError) as error:
            raise Refusal(400, str(error), "model") from None

    def read_input(self, text: str) -> Row:
        """Returns a row for an input of an adapter."""
        return self._row(self.tokens.input(_unicode(text)), "adapter")

    def read_text(self, text: str) -> Row:
        """Returns a row for a text that the backbone alone continues, or as an encoder-decoder answers."""
        return self._row(list(self.model.tokenizer(_unicode(text))["input_ids"]), "text")

    def read_messages(self, messages: list[dict[str, str]]) -> Row:
        """Returns a row for messages `{"role": …, "content": …}` to the backbone alone."""
        if self.chat is None:
            return self.read_text(one_input(messages, "this backbone"))
        try:
            text = self.model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise Refusal(400, f"the backbone's chat template refuses these messages: {error}", "messages") from None
        return self._row(self.chat.plain(_unicode(text)), "messages")

    def _row(self, ids: list[int], kind: str) -> Row:
        if len(ids) > self.limits.input_tokens:
            raise Refusal(400, f"the input has {len(ids)} tokens, but may have {self.limits.input_tokens}; shorten it")
        if not ids:
            raise Refusal(400, "the input has no tokens; give a text that is not empty")
        return Row(ids, ends=tuple(self.ends[kind]))

    def require_room(self, row: Row):
        """Refuses a row that is longer than the backbone has positions for, which causal ones count in all.

        Raises:
            Refusal: with status 400.
        """
        limit = positions_of(self.model.config.backbone_config)
        if limit is None:
            return
        memory = row.adapter.memory if row.adapter is not None else None
        before = memory.mask.shape[1] if memory is not None and memory.prefix_keys is not None else 0
        if self.model.config.is_encoder_decoder:
            if max(len(row.ids), row.max_new_tokens) <= limit:
                return
            what = f"the input has {len(row.ids)} tokens and the answer may have {row.max_new_tokens}"
            each = " each"
        else:
            if before + len(row.ids) + row.max_new_tokens <= limit:
                return
            of_memory = f"the instruction has {before} tokens, " if before else ""
            what = f"{of_memory}the input has {len(row.ids)}, and the answer may have {row.max_new_tokens}"
            each = " in all"
        raise Refusal(400, f"{what}, but this backbone has positions for {limit}{each}; shorten it, or max_tokens")

    def run(self, rows: Sequence[Row]):
        """Writes the answers of rows that may share a batch, or notes in a row what was wrong with it.

        If the batch fails, each row is tried alone, so that one does not take the others with it.
        """
        rows = [row for row in rows if not row.cancelled]
        if not rows:
            return
        try:
            self._write(rows)
        except Exception as error:
            for row in rows if len(rows) > 1 else ():
                row.restart()
                self.run([row])
            if len(rows) == 1:
                rows[0].error = error

    def _write(self, rows: Sequence[Row]):
        write_answers(self.model, rows, self.tokens.pad, self.decode)

    def decode(self, ids: list[int]) -> str:
        """Returns the text of an answer's tokens."""
        return self.model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _unicode(text: str) -> str:
    """Returns a text as it is, or refuses one that no tokenizer reads."""
    try:
        require_unicode(text, "the input")
    except ValueError as error:
        raise Refusal(400, str(error)) from None
    return text


def one_input(messages: list[dict[str, str]], who: str) -> str:
    """Returns the text of the only message.

    Raises:
        Refusal: with status 400, if there are others.
    """
    roles = [message["role"] for message in messages]
    if roles != ["user"]:
        raise Refusal(
            400,
            f"the messages are of {', '.join(roles) or 'nobody'}, but {who} answers one message, the user's; an "
            "instruction goes into `model`, as 'tagi:<instruction>'",
            "messages",
        )
    return messages[0]["content"]


def kind_of(row: Row) -> tuple[bool, tuple[int, ...]]:
    """Returns what rows of one batch must have in common."""
    return row.adapter is None, row.ends


def shown(error: Exception) -> str:
    """Returns an error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
