"""When a provider of sign-ins last vouched for each of its people; not known of those who were before."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("external_identity", sa.Column("vouched", sa.BigInteger(), nullable=True))
