"""The oVirt façade: API version 4 as stock oVirt clients speak it, over the same use cases as ``/v1`` (ADR 22)."""
