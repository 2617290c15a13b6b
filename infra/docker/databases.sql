-- MLflow's runs and its users, beside Prefect's database, which POSTGRES_DB makes.
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_users;
