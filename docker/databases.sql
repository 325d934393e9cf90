-- MLflow and the records each keep a migration table of the same name, so each has a database of its own. Both belong
-- to a role that may do nothing else on this server.
\getenv password TUNER_PASSWORD
CREATE ROLE tuner LOGIN PASSWORD :'password';
CREATE DATABASE tuner OWNER tuner;
CREATE DATABASE mlflow OWNER tuner;
REVOKE CONNECT ON DATABASE tuner, mlflow FROM PUBLIC;
