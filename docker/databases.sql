-- MLflow and the records each keep a migration table of the same name, so each has a database of its own.
CREATE DATABASE mlflow;
