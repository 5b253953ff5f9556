"""The configuration: values in `*.yaml`, types and rules in `schema.py`.

Importing this package registers the schema with Hydra, so that every composition, also DVC's own
(`dvc exp run -S`), refuses unknown keys, wrong types and unknown options.
"""

from hydra.core.config_store import ConfigStore

from conf.schema import Config

ConfigStore.instance().store(name="schema", node=Config)
