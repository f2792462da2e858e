"""What the sender of a request was answered, kept for its repetition."""

from virtha.model.value import Value


class KeptAnswer(Value, frozen=True, kw_only=True):
    status: int
    body: str
    revision: int | None = None
    """Of its ETag."""
    location: str | None = None
