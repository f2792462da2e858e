"""Messengers to real receivers: mail, SNMP, webhooks, Alertmanager (implements ``ports.receivers.Messengers``)."""

import time
from collections.abc import Mapping
from typing import assert_never

from virtha.drivers.mail import MailMessenger
from virtha.drivers.snmp import SnmpMessenger
from virtha.drivers.webhook import AlertmanagerMessenger, WebhookMessenger
from virtha.model.notification import (
    AlertmanagerSettings,
    MailSettings,
    Receiver,
    SnmpSettings,
    WebhookSettings,
)
from virtha.ports.receivers import Messenger

DEADLINE_MS = 15_000
IDLE_MS = 30_000


class NetworkMessengers:
    """One per process: its ``started_s`` is what SNMP v3 tells boots by."""

    def __init__(
        self,
        *,
        deadline_ms: int = DEADLINE_MS,
        idle_ms: int = IDLE_MS,
        started_s: int | None = None,
    ) -> None:
        self.deadline_ms = deadline_ms
        """May be changed; holds for messengers made from then on."""
        self._idle_ms = idle_ms
        self._started_s = int(time.time()) if started_s is None else started_s

    def messenger(self, receiver: Receiver, secrets: Mapping[str, str]) -> Messenger:
        settings = receiver.settings
        if isinstance(settings, MailSettings):
            return MailMessenger(
                settings, secrets, deadline_ms=self.deadline_ms, idle_ms=self._idle_ms
            )
        if isinstance(settings, SnmpSettings):
            return SnmpMessenger(
                settings, secrets, deadline_ms=self.deadline_ms, started_s=self._started_s
            )
        if isinstance(settings, WebhookSettings):
            return WebhookMessenger(
                settings, secrets, deadline_ms=self.deadline_ms, idle_ms=self._idle_ms
            )
        if isinstance(settings, AlertmanagerSettings):
            return AlertmanagerMessenger(
                settings, secrets, deadline_ms=self.deadline_ms, idle_ms=self._idle_ms
            )
        assert_never(settings)
