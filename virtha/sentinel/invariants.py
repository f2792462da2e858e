"""What must hold after every step, in production too: a sentinel that breaks it stops.

It is restarted by its supervisor and reads its records anew; no VM is touched by that.
"""

from collections.abc import Sequence

from virtha.model.vm import VmState
from virtha.sentinel.events import Command, Intent, Restart, SaveRecord, VmRecord
from virtha.sentinel.io_error_events import ResumeDomain
from virtha.sentinel.io_pauses import paused_on_io
from virtha.sentinel.state import Guarded, HostState


def check(host: HostState, intents: Sequence[Intent], commands: Sequence[Command]) -> None:
    saved = {
        intent.record.vm.id: intent.record for intent in intents if isinstance(intent, SaveRecord)
    }
    restarted = [command for command in commands if isinstance(command, Restart)]
    assert len({command.vm_id for command in restarted}) == len(restarted), "two restarts of one VM"
    for command in restarted:
        _check_restart(host, host.vms[command.vm_id].record, command, saved.get(command.vm_id))
    for resumed in (command for command in commands if isinstance(command, ResumeDomain)):
        _check_resume(host, host.vms[resumed.vm_id].record, resumed, saved.get(resumed.vm_id))
    for guarded in host.all():
        _check_record(guarded)


def _check_restart(
    host: HostState, record: VmRecord, command: Restart, saved: VmRecord | None
) -> None:
    name = record.vm.name
    assert host.connected, f"{name}: restarted while libvirt is lost"
    assert host.hold is None, f"{name}: restarted while held"
    assert not host.shutting_down, f"{name}: restarted while the host shuts down"
    assert record.boot == host.boot, f"{name}: restarted from another boot"
    assert record.vm.ha and record.wanted_up, f"{name}: restarted unasked"
    assert not record.migrating, f"{name}: restarted while migrating"
    assert not record.released, f"{name}: restarted after its release"
    assert not record.outside and record.superseded_by is None, f"{name}: restarted a foreign copy"
    assert record.exit is not None and record.exit.seen, f"{name}: restarted without a seen exit"
    assert len(record.attempts_ms) <= host.policy.restart.restarts_max, f"{name}: past its limit"
    assert command.incarnation == record.incarnation, f"{name}: wrong incarnation"
    # The count must be on disk before the command: a crashing agent must not forget attempts.
    assert saved is not None and saved.attempt == command.attempt, f"{name}: attempt not durable"
    assert saved.attempts_ms == record.attempts_ms, f"{name}: count not durable"


def _check_resume(
    host: HostState, record: VmRecord, command: ResumeDomain, saved: VmRecord | None
) -> None:
    name = record.vm.name
    assert host.connected and host.hold is None, f"{name}: resumed while held or unseen"
    assert not host.shutting_down, f"{name}: resumed while the host shuts down"
    assert record.boot == host.boot, f"{name}: resumed from another boot"
    assert record.wanted_up, f"{name}: resumed unasked"
    assert not record.migrating, f"{name}: resumed while migrating"
    assert not record.outside and record.superseded_by is None, f"{name}: resumed a foreign copy"
    assert paused_on_io(record), f"{name}: resumed, though somebody else paused it"
    assert len(record.resumes_ms) <= host.policy.io_error.resumes_max, f"{name}: past its limit"
    assert command.incarnation == record.incarnation, f"{name}: wrong incarnation"
    # An agent that dies meanwhile must not forget how often it tried.
    assert saved is not None and saved.resumes_ms == record.resumes_ms, f"{name}: not durable"


def _check_record(guarded: Guarded) -> None:
    record = guarded.record
    name = record.vm.name
    if record.released and not record.outside:
        assert record.state is VmState.DOWN, f"{name}: released, yet {record.state}"
    if record.released:
        assert record.pending is None and record.attempt is None, f"{name}: released, yet pending"
        assert not record.start_open, f"{name}: released, and its start is under way"
    if record.attempt is not None:
        assert record.attempts_ms, f"{name}: an attempt that is not counted"
