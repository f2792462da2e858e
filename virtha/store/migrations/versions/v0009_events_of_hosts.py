"""The last event of a kind of each host, without a look at all events of it."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        op.f("ix_event_host_id_code_revision"), "event", ["host_id", "code", "revision"]
    )
