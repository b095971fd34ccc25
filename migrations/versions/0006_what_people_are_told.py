"""What people are told, and which error ended a run.

Revision: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run", sa.Column("error", sa.Text()))
    op.create_table(
        "notice",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("is_on", sa.Boolean(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("facts", JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("told", JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("subject", "what", name="pk_notice"),
    )


def downgrade() -> None:
    op.drop_table("notice")
    op.drop_column("run", "error")
