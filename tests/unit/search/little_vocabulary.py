"""Two nouns with a field of every kind."""

from virtha.search.vocabulary import Field, Kind, Noun


def _noun(name: str, alias: str, *fields: Field, related: tuple[str, ...] = ()) -> Noun:
    return Noun(
        name=name, aliases=(alias,), fields={one.name: one for one in fields}, related=related
    )


NAME = Field(name="name", kind=Kind.TEXT, help="", free=True)
VOCABULARY = {
    "Vms": _noun(
        "Vms",
        "vm",
        NAME,
        Field(name="host", kind=Kind.TEXT, help="", nullable=True, free=True),
        Field(name="memory", kind=Kind.SIZE, help=""),
        Field(name="vcpus", kind=Kind.NUMBER, help="", nullable=True, sortable=False),
        Field(
            name="status",
            kind=Kind.WORD,
            help="",
            words={"running": "running", "up": "running", "down": "down"},
        ),
        Field(
            name="severity",
            kind=Kind.WORD,
            help="",
            words={"info": "info", "normal": "info", "error": "error"},
            ordered=True,
        ),
        Field(name="policy.delay", kind=Kind.DURATION, help=""),
        Field(name="policy.delay_max", kind=Kind.DURATION, help=""),
        Field(name="last_event", kind=Kind.TIME, help="", nullable=True),
        related=("Hosts",),
    ),
    "Hosts": _noun("Hosts", "host", NAME, related=("Vms",)),
    "Users": _noun("Users", "user", NAME),
}
