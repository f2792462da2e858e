"""What the tables are made of: how their parts are named, and the columns that many of them have."""

from sqlalchemy import BigInteger, Column, ForeignKey, MetaData, Text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def key(name: str = "id") -> Column[str]:
    return Column(name, Text, primary_key=True)


def revision() -> Column[int]:
    return Column("revision", BigInteger, nullable=False)


def body() -> Column[str]:
    return Column("body", Text, nullable=False)


def refers(name: str, target: str, *, cascade: bool = False, primary: bool = False) -> Column[str]:
    return Column(
        name,
        Text,
        ForeignKey(target, ondelete="CASCADE" if cascade else "RESTRICT"),
        primary_key=primary,
        nullable=False,
    )
