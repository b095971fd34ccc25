"""What explains a value, who moved it, and what a person holds still.

Revision: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_JSONB = postgresql.JSONB(astext_type=sa.Text())


def upgrade() -> None:
    op.add_column("operation", sa.Column("because", _JSONB, server_default=sa.text("'{}'"), nullable=False))
    op.add_column("change_log", sa.Column("stored", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("change_log", sa.Column("because", _JSONB, nullable=True))
    op.add_column("change_log", sa.Column("call", sa.Text(), nullable=True))
    op.add_column("change_log", sa.Column("person", sa.Text(), nullable=True))
    op.create_index("ix_change_log_run", "change_log", ["run"], unique=False)
    op.create_index(
        "ix_change_log_person", "change_log", ["pair", "person"], unique=False,
        postgresql_where=sa.text("person IS NOT NULL"),
    )  # fmt: skip
    op.add_column("conflict", sa.Column("left_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("conflict", sa.Column("right_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("conflict", sa.Column("left_by", sa.Text(), nullable=True))
    op.add_column("conflict", sa.Column("right_by", sa.Text(), nullable=True))
    op.add_column("conflict", sa.Column("chosen", _JSONB, nullable=True))
    op.drop_constraint(op.f("ck_match_review_answer"), "match_review", type_="check")
    op.create_check_constraint(
        op.f("ck_match_review_answer"), "match_review", "answer IN ('same', 'never', 'create', 'apart')"
    )
    op.add_column("pair", sa.Column("mapping", _JSONB, nullable=True))
    op.create_table(
        "hold",
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("record_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("held_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("side IN ('left', 'right')", name=op.f("ck_hold_side")),
        sa.ForeignKeyConstraint(["pair"], ["pair.id"], name=op.f("fk_hold_pair")),
        sa.PrimaryKeyConstraint("pair", "kind", "side", "record_id", name=op.f("pk_hold")),
    )

    _digest_keys("link", "left_keys")
    _digest_keys("link", "right_keys")
    _digest_keys("sighting", "keys")
    op.execute(
        "UPDATE operation SET steps = '{}', before = '{}', source = '{}', conflicts = '[]' "
        "WHERE state IN ('done', 'failed', 'dropped') "
        "OR state = 'planned' AND plan IN (SELECT id FROM plan WHERE state IN ('applied', 'discarded', 'refused'))"
    )


def _digest_keys(table: str, column: str) -> None:
    """Natural keys become what ``core.match.keys_of`` makes of them now: their sort, and a digest."""
    op.execute(
        f"UPDATE {table} SET {column} = ARRAY(SELECT CASE WHEN key ~ '^(email|domain|org|name):' "  # noqa: S608 - ours
        "THEN split_part(key, ':', 1) || ':' || left(encode(sha256(convert_to("
        "pair || E'\\n' || substr(key, strpos(key, ':') + 1), 'UTF8')), 'hex'), 32) ELSE key END "
        f"FROM unnest({column}) AS key) WHERE cardinality({column}) > 0"
    )


def downgrade() -> None:
    op.drop_table("hold")
    op.drop_column("pair", "mapping")
    op.execute("UPDATE match_review SET answer = 'never' WHERE answer = 'apart'")
    op.drop_constraint(op.f("ck_match_review_answer"), "match_review", type_="check")
    op.create_check_constraint(op.f("ck_match_review_answer"), "match_review", "answer IN ('same', 'never', 'create')")
    for name in ("chosen", "right_by", "left_by", "right_at", "left_at"):
        op.drop_column("conflict", name)
    op.drop_index("ix_change_log_person", table_name="change_log")
    op.drop_index("ix_change_log_run", table_name="change_log")
    op.drop_column("change_log", "person")
    op.drop_column("change_log", "call")
    op.drop_column("change_log", "because")
    op.drop_column("change_log", "stored")
    op.drop_column("operation", "because")
