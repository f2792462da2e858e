"""The installation's state: portable schema, forward migrations, one writer, one revision counter."""

from virtha.store.store import Store, Transaction, WriteTransaction, open_store

__all__ = ["Store", "Transaction", "WriteTransaction", "open_store"]
