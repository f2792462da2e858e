"""The installation's state."""

from virtha.store.store import Store, open_store

__all__ = ["Store", "open_store"]
