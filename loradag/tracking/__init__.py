"""The MLflow run of a pipeline run: opened while it trains, completed by the report."""
