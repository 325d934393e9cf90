"""Whose a study is: on a shared database names alone would collide."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds the owner to what is known by a study's name. Records from before belong to nobody (""): whoever
    runs such a study first becomes its owner (`tuner.records.ownership`).
    """
    op.add_column("adatp_study", _owner())
    op.drop_index("adatp_study_in_use", table_name="adatp_study")
    op.create_index(
        "adatp_study_in_use",
        "adatp_study",
        ["name", "owner"],
        unique=True,
        sqlite_where=sa.text("archived IS NULL"),
        postgresql_where=sa.text("archived IS NULL"),
    )
    # SQLite changes no keys: these are made anew. No lease is in force while tables are migrated.
    op.drop_table("adatp_lease")
    op.create_table(
        "adatp_lease",
        sa.Column("study", sa.String(length=200), nullable=False),
        _owner(),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("study", "owner"),
    )
    op.rename_table("adatp_video_use", "adatp_video_use_before")
    op.create_table(
        "adatp_video_use",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("video_id", sa.Integer(), sa.ForeignKey("adatp_video.id"), nullable=False),
        sa.Column("tuned", sa.DateTime(timezone=True), nullable=True),
        sa.Column("held_out", sa.DateTime(timezone=True), nullable=True),
        _owner(),
        sa.UniqueConstraint("study", "owner", "video_id"),
    )
    op.execute(
        "INSERT INTO adatp_video_use (study, video_id, tuned, held_out) "
        "SELECT study, video_id, tuned, held_out FROM adatp_video_use_before ORDER BY id"
    )
    op.drop_table("adatp_video_use_before")


def _owner() -> sa.Column[str]:
    return sa.Column("owner", sa.String(length=100), server_default="", nullable=False)
