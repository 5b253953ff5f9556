"""The base model: fetched and pinned (`base`), loaded by the stages after it (`loading`)."""
