#!/bin/sh
# Makes of the secrets that compose mounts as files the files that the clients read, so that no password stands in an
# environment or on a command line. libpq wants a file of passwords that nobody else may read.
set -eu
umask 077
secrets=${SECRETS:-/run/secrets}

if [ -r "$secrets/database_password" ]; then
    printf '*:*:*:*:%s\n' "$(cat "$secrets/database_password")" > "$PGPASSFILE"
fi
if [ -r "$secrets/mlflow_password" ]; then
    mkdir -p "$HOME/.mlflow"
    if [ "${1:-}" = mlflow ]; then
        # The server makes this administrator when it first starts, and has no other user.
        printf '[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///%s\nadmin_username = tuner\nadmin_password = %s\n' \
            "${ARTIFACTS:-/artifacts}/users.db" "$(cat "$secrets/mlflow_password")" > "$HOME/.mlflow/server.ini"
        export MLFLOW_AUTH_CONFIG_PATH="$HOME/.mlflow/server.ini"
        # Signs the forms of the server's pages, as long as it runs.
        MLFLOW_FLASK_SERVER_SECRET_KEY=$(head -c 32 /dev/urandom | sha256sum | cut -c -64)
        export MLFLOW_FLASK_SERVER_SECRET_KEY
    else
        printf '[mlflow]\nmlflow_tracking_username = tuner\nmlflow_tracking_password = %s\n' \
            "$(cat "$secrets/mlflow_password")" > "$HOME/.mlflow/credentials"
    fi
fi
exec "$@"
