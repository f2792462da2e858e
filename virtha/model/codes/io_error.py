"""VMs that QEMU paused on an I/O error of a disk (S6): reasons 5680 to 5699, events 2160 to 2169."""

from virtha.model.codes.entry import Code, Severity, event, reason

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR

IO_ERROR_EVENTS: tuple[Code, ...] = (
    event(
        2160,
        "vm.io_error.resuming",
        INFO,
        "The storage of {vm} answers again; it is resumed, attempt {attempt}",
        "vm",
        "attempt",
    ),
    event(
        2161,
        "vm.io_error.resumed",
        INFO,
        "VM {vm} runs again; an I/O error had paused it for {paused_ms} ms",
        "vm",
        "paused_ms",
        "attempt",
    ),
    event(
        2162,
        "vm.io_error.resume_failed",
        WARNING,
        "VM {vm} could not be resumed, attempt {attempt}: {detail}",
        "vm",
        "attempt",
        "detail",
    ),
    event(
        2163,
        "vm.io_error.given_up",
        ERROR,
        "VM {vm} stays paused: {count} resumes within {window} ended in an I/O error again",
        "vm",
        "count",
        "window",
        help="Its storage answers to looks, and fails its guest. Mend the storage, then 'virtha vm resume'.",
    ),
)

IO_ERROR_REASONS: tuple[Code, ...] = (
    reason(
        5680,
        "vm.paused.no_room",
        ERROR,
        "paused because the storage of its disk {disk} is full",
        "disk",
        help="Make room there; a VM that resumes by itself goes on then.",
    ),
    reason(
        5681,
        "io_error.left_paused",
        WARNING,
        "it is not resumed by itself: its on_io_error says leave_paused",
        help="When its storage is mended: 'virtha vm resume'. To have that done by its host: 'virtha vm edit VM "
        "--on-io-error auto_resume'.",
    ),
    reason(
        5682,
        "io_error.waiting.storage",
        WARNING,
        "it is resumed when its storage answers: {detail}",
        "detail",
        help="'virtha storage show' says which hosts can use the storage domain.",
    ),
    reason(
        5683,
        "io_error.waiting.delay",
        WARNING,
        "waits {delay_ms} ms before resume {attempt}",
        "delay_ms",
        "attempt",
    ),
    reason(
        5684, "io_error.waiting.result", INFO, "waits for the result of resume {attempt}", "attempt"
    ),
    reason(
        5685,
        "io_error.given_up",
        ERROR,
        "resumed {count} times within {window}, and each time a disk failed again; it stays paused",
        "count",
        "window",
        help="Mend the storage, then 'virtha vm resume': that counts anew.",
    ),
)
