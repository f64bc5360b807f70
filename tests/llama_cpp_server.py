"""llama.cpp's own server in this process, for tests that ask it for tokens and probabilities."""

import json
import urllib.request

from modeling_tagi.serving.llama_cpp import start_server


class Server:
    """Answers as llama.cpp does, one request at a time; `adapters` are applied one at a time, by their number."""

    def __init__(self, base, adapters=(), context=256):
        self.server, self.adapters = start_server(base, adapters, context), len(adapters)

    def ask(self, ids, adapter=None, **options):
        """The answer to token ids, greedy, with one of the adapters or none."""
        scales = [{"id": number, "scale": float(number == adapter)} for number in range(self.adapters)]
        asked = {"prompt": list(ids), "temperature": 0, "return_tokens": True, "lora": scales, **options}
        request = urllib.request.Request(
            f"{self.server.listening_address}/completion", json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def tokens(self, ids, count, adapter=None):
        return self.ask(ids, adapter, n_predict=count)["tokens"]

    def log_probabilities(self, ids, vocabulary, adapter=None, shown=68):
        """Those of the token behind `ids`, by token; `shown` is one that llama.cpp prints, since it gives no
        probabilities for half a character."""
        answer = self.ask(ids, adapter, n_predict=1, n_probs=vocabulary, logit_bias=[[shown, 1000.0]])
        found = {one["id"]: one["logprob"] for one in answer["completion_probabilities"][0]["top_logprobs"]}
        return [found[token] for token in range(vocabulary)]
