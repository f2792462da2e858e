"""The engine's records, copies granted beside them, and which facts hosts may forget."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "engine_cluster",
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cluster_id"],
            ["cluster.id"],
            name=op.f("fk_engine_cluster_cluster_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("cluster_id", name=op.f("pk_engine_cluster")),
    )
    for table, key in (("engine_host", "host_id"), ("engine_vm", "vm_id")):
        op.create_table(
            table,
            sa.Column(key, sa.Text(), nullable=False),
            sa.Column("cluster_id", sa.Text(), nullable=False),
            sa.Column("body", sa.Text(), nullable=False),
            sa.ForeignKeyConstraint(
                ["cluster_id"],
                ["cluster.id"],
                name=op.f(f"fk_{table}_cluster_id"),
                ondelete="CASCADE",
            ),
            sa.PrimaryKeyConstraint(key, name=op.f(f"pk_{table}")),
        )
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.create_index(
                batch_op.f(f"ix_{table}_cluster_id"), ["cluster_id"], unique=False
            )
    op.create_table(
        "engine_grant",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("incarnation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vm_id"], ["vm.id"], name=op.f("fk_engine_grant_vm_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint(
            "vm_id", "host_id", "boot", "incarnation", name=op.f("pk_engine_grant")
        ),
    )
    # Whatever was recorded before there was an engine has been acknowledged.
    with op.batch_alter_table("host_status", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("fact_acknowledged", sa.BigInteger(), nullable=False, server_default="0")
        )
        batch_op.add_column(
            sa.Column("settled_timeline", sa.Text(), nullable=False, server_default="")
        )
    op.execute("UPDATE host_status SET fact_acknowledged = fact_sequence")
    # Before there was an engine, who had told was waited for no longer.
    op.execute("UPDATE host_status SET settled_timeline = timeline")
    with op.batch_alter_table("host_status", schema=None) as batch_op:
        batch_op.alter_column("fact_acknowledged", server_default=None)
        batch_op.alter_column("settled_timeline", server_default=None)
