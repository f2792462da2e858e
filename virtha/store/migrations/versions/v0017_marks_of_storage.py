"""Whether hosts see one and the same storage: the mark that each told, and the one that counts."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("storage_domain", sa.Column("mark", sa.Text()))
    op.add_column("storage_report", sa.Column("mark", sa.Text()))
    op.add_column("storage_report", sa.Column("other_than", sa.Text()))
