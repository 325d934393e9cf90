-- MLflow and the records each keep a migration table of the same name, so each has a database of its own, and a role
-- that may do nothing else on this server.
\set tuner `cat "${SECRETS:-/run/secrets}/tuner_database_password"`
\set mlflow `cat "${SECRETS:-/run/secrets}/mlflow_database_password"`
CREATE ROLE tuner LOGIN PASSWORD :'tuner';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE DATABASE tuner OWNER tuner;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE CONNECT ON DATABASE tuner, mlflow FROM PUBLIC;
