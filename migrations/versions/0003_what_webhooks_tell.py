"""What webhooks tell.

Revision: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("feed", sa.Column("hints", sa.Integer(), server_default="0", nullable=False))
    op.add_column("feed", sa.Column("heard", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("feed", "heard")
    op.drop_column("feed", "hints")
