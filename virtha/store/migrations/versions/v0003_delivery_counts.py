"""Notifications: how many messages there are is kept, not counted; what waits and what is old is found by index."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "delivery_count",
        sa.Column("receiver_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("receiver_id", "state", name=op.f("pk_delivery_count")),
    )
    op.execute(
        "INSERT INTO delivery_count (receiver_id, state, count) "
        "SELECT receiver_id, state, count(*) FROM delivery GROUP BY receiver_id, state"
    )
    with op.batch_alter_table("delivery", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_delivery_receiver_id_state_created"),
            ["receiver_id", "state", "created"],
            unique=False,
        )
        batch_op.create_index(batch_op.f("ix_delivery_done_at"), ["done_at"], unique=False)
