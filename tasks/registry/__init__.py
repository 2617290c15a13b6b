"""Registry: adapters, their lineage and the champion, in MLflow."""
