import sqlite3

from loradag.compat.mlflow import expected_revision


def test_the_expected_revision_is_that_of_a_database_that_mlflow_has_just_created(tmp_path) -> None:
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        (revision,) = database.execute("select version_num from alembic_version").fetchone()
    assert expected_revision() == revision, "MLflow keeps its migrations elsewhere now"
