"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts requests, answers, batches and adapters of one server, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self):
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("tagi_requests", "Requests, by path and status", ["path", "status"], registry=registry)
        self.seconds = Histogram("tagi_request_seconds", "Seconds to answer", ["path"], registry=registry)
        self.waiting = Gauge("tagi_waiting_answers", "Answers that wait for a batch", registry=registry)
        self.turned_away = Counter("tagi_turned_away", "Requests refused for a full queue (429)", registry=registry)
        self.batch_rows = Histogram("tagi_batch_rows", "Answers in a batch", buckets=_ROWS, registry=registry)
        self.batch_seconds = Histogram("tagi_batch_seconds", "Seconds of a batch", registry=registry)
        self.tokens = Counter("tagi_tokens", "Tokens that were read and written", ["what"], registry=registry)
        self.adapters = Counter("tagi_adapters", "Adapters, by where they came from", ["source"], registry=registry)
        self.adapter_seconds = Histogram("tagi_adapter_seconds", "Seconds to make an adapter", registry=registry)
        self.memory = Gauge("tagi_adapter_memory_bytes", "Bytes of adapters in memory", registry=registry)

    def text(self) -> bytes:
        """Returns all of it in Prometheus' text format."""
        return generate_latest(self.registry)
