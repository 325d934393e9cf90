"""How many tokens of a prompt are the question itself: `score_query: mean` scores by these alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the column; for questions recorded before it stays empty."""
    op.add_column("adatp_study_question", sa.Column("question_tokens", sa.Integer(), nullable=True))
