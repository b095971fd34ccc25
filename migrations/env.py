"""Alembic's environment: runs on the connection that ``syncd.state.migrate`` hands in."""

from __future__ import annotations

from alembic import context

from syncd.state.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
