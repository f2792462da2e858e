"""What searches look at in every VM's row has columns; events are found by their time."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("description", sa.Text(), nullable=False, server_default=""),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("vcpus", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("watchdog", sa.Text(), nullable=True),
        sa.Column("watchdog_action", sa.Text(), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
    ):
        op.add_column("vm", column)
    op.execute(
        "UPDATE vm SET description = coalesce(json_extract(body, '$.description'), ''), "
        "memory_bytes = coalesce(json_extract(body, '$.memory_bytes'), 0), "
        "vcpus = coalesce(json_extract(body, '$.vcpus'), 1), "
        "watchdog = json_extract(body, '$.watchdog.model'), "
        "watchdog_action = json_extract(body, '$.watchdog.action')"
    )
    searched = ["name", "id", "cluster_id", "description", "ha", "memory_bytes"]
    searched += ["vcpus", "watchdog", "watchdog_action", "priority"]
    op.create_index("ix_vm_searched", "vm", searched)
    op.add_column("vm_status", sa.Column("last_watchdog", sa.BigInteger(), nullable=True))
    op.add_column(
        "vm_status", sa.Column("watchdog_count", sa.Integer(), nullable=False, server_default="0")
    )
    op.execute(
        "UPDATE vm_status SET last_watchdog = json_extract(body, '$.last_watchdog'), "
        "watchdog_count = coalesce(json_extract(body, '$.watchdog_count'), 0)"
    )
    op.create_index(op.f("ix_vm_status_last_watchdog"), "vm_status", ["last_watchdog"])
    op.create_index(op.f("ix_event_at"), "event", ["at"])
