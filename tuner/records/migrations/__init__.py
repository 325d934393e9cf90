"""What brings a database to the tables of `tuner.records.schema`: Alembic's folder, run by writers alone."""
