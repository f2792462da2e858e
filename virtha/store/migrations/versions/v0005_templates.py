"""Templates, their disks, and the files that need them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "template",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cluster_id"],
            ["cluster.id"],
            name=op.f("fk_template_cluster_id"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_template")),
        sa.UniqueConstraint("name", name=op.f("uq_template_name")),
    )
    op.create_table(
        "template_disk",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("template_id", sa.Text(), nullable=False),
        sa.Column("storage_domain_id", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["template_id"],
            ["template.id"],
            name=op.f("fk_template_disk_template_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["storage_domain_id"],
            ["storage_domain.id"],
            name=op.f("fk_template_disk_storage_domain_id"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_template_disk")),
        sa.UniqueConstraint(
            "storage_domain_id", "path", name=op.f("uq_template_disk_storage_domain_id_path")
        ),
    )
    with op.batch_alter_table("template_disk", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_template_disk_template_id"), ["template_id"], unique=False
        )
    op.create_table(
        "template_use",
        sa.Column("storage_domain_id", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("template_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["storage_domain_id"],
            ["storage_domain.id"],
            name=op.f("fk_template_use_storage_domain_id"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["template_id"],
            ["template.id"],
            name=op.f("fk_template_use_template_id"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("storage_domain_id", "path", name=op.f("pk_template_use")),
    )
    with op.batch_alter_table("template_use", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_template_use_template_id"), ["template_id"], unique=False
        )
