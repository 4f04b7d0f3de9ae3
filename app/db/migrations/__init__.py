"""The history of the tables, for Alembic; `app.db.migrate` runs it."""
