#!/bin/sh
# Writes a random secret for everything in compose.yaml that asks for one, into docker/secrets/. One that is there stays.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
# Only the owner gets into the folder. The files in it are mounted one by one, into containers with other users.
chmod 700 secrets
for name in postgres_password tuner_database_password mlflow_database_password mlflow_password ray_auth_token s3_key; do
    [ -s "secrets/$name" ] || printf %s "$(openssl rand -hex 32)" > "secrets/$name"
done
key=$(cat secrets/s3_key)
printf '[default]\naws_access_key_id = tuner\naws_secret_access_key = %s\n' "$key" > secrets/s3_credentials
cat > secrets/s3_server.json <<END
{"identities": [{"name": "tuner", "credentials": [{"accessKey": "tuner", "secretKey": "$key"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
END
chmod 644 secrets/*
