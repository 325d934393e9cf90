"""Run by Alembic with the connection, and in the transaction, that `tuner.records.database` opened."""

from alembic import context

from tuner.records.database import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
