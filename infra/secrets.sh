#!/bin/sh
# Prints new passwords and keys, a line each, for infra/.env (compose) or infra/kubernetes/secrets.env:
#   (umask 077; sh infra/secrets.sh > infra/.env)
# Make them once: what lies in the volumes is bound to them. Tokens of hubs (HF_TOKEN, MODELSCOPE_API_TOKEN) are
# added to the same file.
set -eu

hexadecimal() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
fernet() { head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n'; }

auth="nightowl:$(hexadecimal)"
mlflow=$(hexadecimal)
database=$(hexadecimal)
echo "POSTGRES_PASSWORD=$database"
echo "PGPASSWORD=$database"
echo "PREFECT_SERVER_DATABASE_PASSWORD=$database"
echo "PREFECT_SERVER_ENCRYPTION_KEY=$(fernet)"
echo "PREFECT_SERVER_API_AUTH_STRING=$auth"
echo "PREFECT_API_AUTH_STRING=$auth"
echo "MLFLOW_AUTH_ADMIN_PASSWORD=$mlflow"
echo "MLFLOW_TRACKING_PASSWORD=$mlflow"
echo "MLFLOW_FLASK_SERVER_SECRET_KEY=$(hexadecimal)"
echo "NIGHTOWL_TRIGGER_SECRET=$(hexadecimal)"
echo "AWS_ACCESS_KEY_ID=nightowl"
echo "AWS_SECRET_ACCESS_KEY=$(hexadecimal)"
