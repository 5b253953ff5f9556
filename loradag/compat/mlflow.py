"""What MLflow does not offer in public: the schema revision that it expects of a database.

MLflow compares a database's revision with its own head when it opens a store, but by then it has
begun to migrate a database whose tables are incomplete. A public `mlflow db current` or `mlflow db
check` would make this module unnecessary. Holds for MLflow 3.
"""

from importlib.resources import files

from alembic.script import ScriptDirectory


def expected_revision() -> str:
    """The alembic revision of a complete database of the installed MLflow."""
    head = ScriptDirectory(str(files("mlflow.store.db_migrations"))).get_current_head()
    assert head, "MLflow's migrations have one head"
    return head
