"""Alembic's entry: runs the migrations on the connection that `app.db.migrate` opened and locked."""

from __future__ import annotations

from alembic import context

from app.db.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
