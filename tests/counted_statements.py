"""What goes to a store's database meanwhile: whether something takes a statement for each of many, no clock can tell as well."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sqlalchemy import event as sqlalchemy_event

from virtha.store import Store


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """In their order, of its writer and its readers."""
    made: list[str] = []

    def note(_c: object, _k: object, statement: str, *_: object) -> None:
        made.append(statement)

    with ExitStack() as stack:
        for engine in (store._writer.sync_engine, store._reader.sync_engine):
            sqlalchemy_event.listen(engine, "before_cursor_execute", note)
            stack.callback(sqlalchemy_event.remove, engine, "before_cursor_execute", note)
        yield made
