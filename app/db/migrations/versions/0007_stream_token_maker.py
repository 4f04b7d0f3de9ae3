"""Stream tokens: which token made each, so that it ends with that one.

Expands only: a release that does not know the column leaves it empty, and such a stream token
runs out by its own time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add a column to `tokens`."""
    op.add_column("tokens", sa.Column("made_by", sa.Text))
