"""Routes: what they remember, what became of each event, silences, rules of inhibition. Subscriptions stay as they are."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("delivery", sa.Column("about", sa.Text()))
    op.create_table(
        "route_group",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_route_group")),
    )
    op.create_table(
        "event_fate",
        sa.Column("event_revision", sa.BigInteger(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("by", sa.Text()),
        sa.Column("group_id", sa.Text()),
        sa.Column("delivery_id", sa.Text()),
        sa.PrimaryKeyConstraint("event_revision", "subscription_id", name=op.f("pk_event_fate")),
    )
    op.create_index(op.f("ix_event_fate_group_id_code"), "event_fate", ["group_id", "code"])
    op.create_index(op.f("ix_event_fate_delivery_id"), "event_fate", ["delivery_id"])
    op.create_index(op.f("ix_event_fate_state_at"), "event_fate", ["state", "at"])
    op.create_table(
        "silence",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("ends", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_silence")),
    )
    op.create_index(op.f("ix_silence_ends"), "silence", ["ends"])
    op.create_table(
        "inhibition",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inhibition")),
        sa.UniqueConstraint("name", name=op.f("uq_inhibition_name")),
    )
