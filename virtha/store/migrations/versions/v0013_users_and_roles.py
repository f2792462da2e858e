"""Roles that people made and their grants; what of operations and events is seen by who may see one cluster only."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "access_role",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_role")),
        sa.UniqueConstraint("name", name=op.f("uq_access_role_name")),
    )
    op.create_table(
        "access_grant",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["user_account.id"],
            name=op.f("fk_access_grant_user_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["cluster_id"],
            ["cluster.id"],
            name=op.f("fk_access_grant_cluster_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_grant")),
    )
    op.create_index(op.f("ix_access_grant_user_id"), "access_grant", ["user_id"])
    op.create_index(op.f("ix_access_grant_role"), "access_grant", ["role"])
    op.create_index(op.f("ix_event_cluster_id_revision"), "event", ["cluster_id", "revision"])
    op.add_column("operation", sa.Column("cluster_id", sa.Text(), nullable=True))
    op.execute(
        "UPDATE operation SET cluster_id = coalesce("
        "(SELECT cluster_id FROM vm WHERE vm.id = operation.subject), "
        "(SELECT cluster_id FROM host WHERE host.id = operation.subject), "
        "(SELECT cluster_id FROM template WHERE template.id = operation.subject), "
        "(SELECT cluster_id FROM storage_domain WHERE storage_domain.id = operation.subject))"
    )
