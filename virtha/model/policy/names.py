"""Names of fields: as the model and the API have them, and as people write them."""


def short_name(field: str) -> str:
    """``delay_ms_max`` -> ``delay_max``; the same for what is no duration."""
    return "_".join(part for part in field.split("_") if part != "ms")


def shown_path(path: str) -> str:
    """`restart.delay_ms` as people write it: `restart.delay`."""
    return ".".join(short_name(part) for part in path.split("."))


def is_duration(path: str) -> bool:
    """The unit is in the name: milliseconds."""
    return "ms" in path.rpartition(".")[2].split("_")
