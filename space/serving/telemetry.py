"""The counters that /metrics shows."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Telemetry:
    """Counters of one app, whose engine is the process with this number."""

    def __init__(self, engine: int) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        ProcessCollector(namespace="engine", pid=lambda: engine, registry=self._registry)
        self.requests = Counter("chat_requests_total", "Requests by path and status", ["path", "status"],
                                registry=self._registry)
        self.errors = Counter("chat_errors_total", "Answers that failed in the engine", registry=self._registry)
        self.abandoned = Counter("chat_abandoned_total", "Answers stopped because the client went away",
                                 registry=self._registry)
        self.tokens = Counter("chat_tokens_total", "Tokens read and written", ["kind"], registry=self._registry)
        self.seconds = Histogram("chat_request_seconds", "From the request to its last byte", ["path"],
                                 buckets=_SECONDS, registry=self._registry)
        self.first_token = Histogram("chat_first_token_seconds", "From the request to the answer's first token",
                                     buckets=_SECONDS, registry=self._registry)
        self.answering = Gauge("chat_answering", "Answers under way", registry=self._registry)
        self.waiting = Gauge("chat_waiting", "Requests that wait for their turn", registry=self._registry)
        self.most = Gauge("chat_queue_most", "Requests that ever waited at once", registry=self._registry)
        self.model = Gauge("chat_model_info", "The model that answers", ["model", "version", "commit", "engine"],
                           registry=self._registry)

    def text(self) -> bytes:
        """All of it."""
        text: bytes = generate_latest(self._registry)
        return text
