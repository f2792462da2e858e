"""The tables of sign-ins by a provider, beside those of ``schema.py``."""

from sqlalchemy import BigInteger, Column, ForeignKey, Table, Text

from virtha.store.schema import metadata

# One row.
sign_in_provider = Table(
    "sign_in_provider",
    metadata,
    Column("id", Text, primary_key=True),
    Column("body", Text, nullable=False),
    # Its secret, encrypted (control/secret_box.py). Never in the body.
    Column("sealed", Text),
    Column("revision", BigInteger, nullable=False),
)

# Whom a provider of sign-ins vouches for: these users have no password here.
external_identity = Table(
    "external_identity",
    metadata,
    Column("issuer", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column(
        "user_id",
        Text,
        ForeignKey("user_account.id", ondelete="CASCADE"),
        nullable=False,
        unique=True,
    ),
    # When the provider last did so. NULL: before this was kept.
    Column("vouched", BigInteger),
)
