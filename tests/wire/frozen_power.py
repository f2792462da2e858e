"""The messages about attempts at power devices, as ``freeze_wire.py`` freezes them."""

from frozen_leases import LEASE_HOST as HOST

from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.ids import BootId, Term
from virtha.model.power_settings import AskedFrom, MachineIdentity, PowerDriver, PowerSettings
from virtha.wire.messages import Message
from virtha.wire.power_messages import AttemptPower, EndPowerAttempt, PowerAsk, PowerAttempted

ATTEMPT = "0b2f5f0e88884a7a9d55000000000008"


def power_messages(boot: BootId) -> dict[str, Message]:
    return {
        "attempt_power": AttemptPower(
            attempt=ATTEMPT,
            term=Term(3),
            boot=boot,
            beat_ms=77_000,
            valid_ms=1_960,
            deadline_ms=5_000,
            subject=HOST,
            device="bmc",
            ask=PowerAsk.OFF,
            settings=PowerSettings(
                driver=PowerDriver.IPMI,
                address="192.0.2.21",
                user="virtha",
                cipher=17,
                asked_from=AskedFrom.AGENTS,
            ),
            secrets={"password": "secret"},
        ),
        "end_power_attempt": EndPowerAttempt(attempt=ATTEMPT),
        "power_attempted_reading": PowerAttempted(
            attempt=ATTEMPT,
            result=Result.OK,
            state=PowerState.OFF,
            identity=MachineIdentity(uuid="4c4c4544004235108050b7c04f4d4d31", serial="S1"),
        ),
        "power_attempted_order": PowerAttempted(
            attempt=ATTEMPT, result=Result.UNKNOWN, code="power.no_answer", detail="it is silent"
        ),
    }
