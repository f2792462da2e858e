"""What Prometheus reads at /metrics. One registry per server, so that two in one test process don't mix."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Names begin with ``virtha_``; labels are of fixed, small sets only (never a path or an id)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "virtha_request_duration_seconds",
            "Time from a request's arrival to its answer, by route.",
            ("method", "route", "status"),
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
        )
        self.streams = Gauge("virtha_event_streams", "Open event streams.", registry=self.registry)
        self.streams_dropped = Counter(
            "virtha_event_streams_dropped_total",
            "Event streams closed because their reader was too slow.",
            registry=self.registry,
        )
        self.hosts = Gauge("virtha_hosts", "Hosts by state.", ("state",), registry=self.registry)
        self.sessions = Gauge(
            "virtha_sessions", "Agent and guardian sessions.", ("role",), registry=self.registry
        )
        self.operations = Gauge(
            "virtha_operations",
            "Unfinished operations by state.",
            ("state",),
            registry=self.registry,
        )
        self.events = Gauge(
            "virtha_events_revision",
            "Revision of the newest committed change; its rate is the rate of changes.",
            registry=self.registry,
        )
        self.facts = Counter(
            "virtha_facts_total", "Facts committed, from all hosts.", registry=self.registry
        )
        self.loop_lag = Gauge(
            "virtha_loop_lag_seconds",
            "How late the server's own loop last woke up.",
            registry=self.registry,
        )
        self.term = Gauge("virtha_term", "This server's term.", registry=self.registry)
        self.store_failures = Counter(
            "virtha_store_failures_total",
            "Background writes that the store refused (locked, disk full); they are tried again.",
            registry=self.registry,
        )

        self.beats = Counter(
            "virtha_beats_total", "Beats received from all guardians.", registry=self.registry
        )
        self.notifications = Counter(
            "virtha_notification_attempts_total",
            "Attempts to deliver a message, by how they ended.",
            ("outcome",),
            registry=self.registry,
        )
        self.deliveries = Gauge(
            "virtha_notifications",
            "Messages that are kept, by state; pending ones wait to be delivered.",
            ("state",),
            registry=self.registry,
        )
        self.oldest_pending = Gauge(
            "virtha_notification_oldest_pending_seconds",
            "How long the message has waited that has waited longest; 0: none waits.",
            registry=self.registry,
        )
        self._facts_seen = 0
        self._beats_seen = 0

    def count_facts(self, total: int) -> None:
        """``total`` since this server's start, as its gateway counts them."""
        self.facts.inc(max(0, total - self._facts_seen))
        self._facts_seen = total

    def count_beats(self, total: int) -> None:
        self.beats.inc(max(0, total - self._beats_seen))
        self._beats_seen = total

    def render(self) -> bytes:
        return generate_latest(self.registry)
