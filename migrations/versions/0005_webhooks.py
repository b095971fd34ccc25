"""Webhooks.

Revision: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "delivery",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("heard_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_delivery"),
    )
    op.create_index("ix_delivery_heard_at", "delivery", ["heard_at"])
    op.create_table(
        "dirty",
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("hints", sa.Integer(), server_default="1", nullable=False),
        sa.Column("heard_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("side IN ('left', 'right')", name=op.f("ck_dirty_side")),
        sa.ForeignKeyConstraint(["pair"], ["pair.id"], name="fk_dirty_pair"),
        sa.PrimaryKeyConstraint("pair", "side", "kind", "id", name="pk_dirty"),
    )


def downgrade() -> None:
    op.drop_table("dirty")
    op.drop_table("delivery")
