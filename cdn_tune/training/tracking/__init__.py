"""Logging of runs to MLflow, beside their own folders."""
