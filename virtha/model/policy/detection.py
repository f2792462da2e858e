"""When a silence is a suspicion, and when a suspicion is a verdict (safety section 4)."""

from typing import Annotated, ClassVar

from virtha.model.policy.field import Section, count, duration
from virtha.model.policy.rule import Rule, Sum, one, relation

CHECKED = Sum(
    parts=(
        (1, "detection.suspect_after_ms"),
        (1, "detection.check_interval_ms"),
        ("detection.additional_checks", "detection.check_interval_ms"),
    )
)
"""Silence until the last look at the disks is over (F2)."""

SESSION_SILENCE_MS = 5_000
"""The protocol's own (`wire.messages.Welcome.silence_ms`)."""

_RULES = (
    relation(
        one("detection.beat_interval_ms", 2),
        one("detection.suspect_after_ms"),
        why="one lost beat would be a suspicion",
        fix="lower detection.beat_interval or raise detection.suspect_after",
    ),
    relation(
        one("detection.suspect_after_ms"),
        one("detection.dead_after_ms"),
        why="a host would be judged dead without ever having been suspected",
        fix="lower detection.suspect_after or raise detection.dead_after",
    ),
    relation(
        one("detection.dead_after_ms"),
        one("detection.hung_after_ms"),
        strict=False,
        why="a host that shows signs of life would be given up sooner than one that shows none",
        fix="lower detection.dead_after or raise detection.hung_after",
    ),
    relation(
        one("detection.stall_ms"),
        one("detection.suspect_after_ms"),
        why="an observer that was itself asleep would suspect its hosts before it noticed (J1)",
        fix="lower detection.stall or raise detection.suspect_after",
    ),
    relation(
        one("detection.beat_interval_ms"),
        one("detection.evidence_max_age_ms"),
        why="what is known of a healthy host would be too old before its next beat",
        fix="raise detection.evidence_max_age",
    ),
    relation(
        one("detection.check_interval_ms"),
        one("detection.evidence_max_age_ms"),
        why="one disk check would be too old before the next came",
        fix="raise detection.evidence_max_age or lower detection.check_interval",
    ),
    relation(
        one("detection.evidence_max_age_ms"),
        one("detection.dead_after_ms"),
        strict=False,
        why="what was seen before the silence began would count in the verdict",
        fix="lower detection.evidence_max_age or raise detection.dead_after",
    ),
)


class DetectionPolicy(Section, frozen=True, kw_only=True):
    """From the last beat to the verdict. All times count from the last sign of the host, on the
    observer's own clock; nothing here proves anything, it only says when to look and when to act."""

    NAME: ClassVar[str] = "detection"
    RULES: ClassVar[tuple[Rule, ...]] = _RULES

    beat_interval_ms: Annotated[
        int,
        duration(
            200,
            4_000,
            "Time between two beats of a host's guardian.",
            source="design section 9: 1 s balanced, 0.5 s fast; well below 5 s of silence, which end a session",
        ),
    ] = 1_000
    suspect_after_ms: Annotated[
        int,
        duration(
            500,
            120_000,
            "Silence after which a host is suspected: its power is asked for, its VMs' disks are "
            "watched. A connection that is seen to break is a suspicion at once.",
            source="three beats; a bond's failover takes up to 1 s",
        ),
    ] = 3_000
    dead_after_ms: Annotated[
        int,
        duration(
            1_000,
            300_000,
            "Silence after which a host that gives no sign at all is judged dead, though unproven: "
            "now it is fenced.",
            source="six beats; spanning trees settle within 1 to 6 s",
        ),
    ] = 6_000
    hung_after_ms: Annotated[
        int,
        duration(
            1_000,
            600_000,
            "The same where the connection did not break and there is a hint of life: its kernel "
            "still answers its neighbours, or its VMs' disks were lately written.",
            source="design section 9: 20 s balanced to the VM's start, of which 8 s are fencing",
        ),
    ] = 12_000
    check_interval_ms: Annotated[
        int,
        duration(
            200,
            60_000,
            "Time between two looks of the neighbours at the disks of a suspected host's VMs.",
            source="requirement F2",
        ),
    ] = 1_000
    additional_checks: Annotated[
        int,
        count(
            0,
            100,
            "So many further looks must find the disks quiet after the first one did.",
            source="requirement F2; 2, so that the last look ends as a dead host is judged",
        ),
    ] = 2
    reconnect_ms: Annotated[
        int,
        duration(
            8_000,
            300_000,
            "How long a new leader, or one that lost a gateway, waits for hosts to come back before "
            "it begins to count their silence (J1).",
            source="hosts pause up to 1.5 * 5 s between two attempts to connect",
        ),
    ] = 10_000
    stall_ms: Annotated[
        int,
        duration(
            200,
            60_000,
            "An observer whose own loop came this much too late was asleep, and observes anew.",
            source="half a suspicion: beats of a longer sleep may sit unread in socket buffers",
        ),
    ] = 1_500
    evidence_max_age_ms: Annotated[
        int,
        duration(
            500,
            300_000,
            "What was seen longer ago than this counts no more, neither for life nor for death.",
            source="less than dead_after, so that nothing from before the silence counts",
        ),
    ] = 5_000
    libvirt_hang_ms: Annotated[
        int,
        duration(
            1_000,
            60_000,
            "A host whose libvirt has not answered for this long is no target for VMs; it is not "
            "fenced for that.",
            source="issue 3: it loses its place within seconds",
        ),
    ] = 5_000

    @property
    def late_after_ms(self) -> int:
        """A beat that has not come half an interval after it was due is late: the power interface is
        asked and the neighbours look, so that the answers are there when suspicion begins."""
        return self.beat_interval_ms * 3 // 2

    @property
    def session_silence_ms(self) -> int:
        """After so much silence a host's sessions end, which is told to it as it connects. A host whose agent still has a
        session is not judged: so no later than a dead host is."""
        return min(SESSION_SILENCE_MS, self.dead_after_ms)

    @property
    def dead_at_ms(self) -> int:
        """Silence until a host without any sign is acted on: judged, and its disks found quiet."""
        return max(self.dead_after_ms, CHECKED.value(self.read))

    @property
    def hung_at_ms(self) -> int:
        """The same for a host with a hint of life."""
        return max(self.hung_after_ms, CHECKED.value(self.read))
