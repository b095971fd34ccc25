"""When a tick last asked for a run of each pair, so that the ticks of several replicas count once.

Revision: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tick",
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("pair", name="pk_tick"),
    )


def downgrade() -> None:
    op.drop_table("tick")
