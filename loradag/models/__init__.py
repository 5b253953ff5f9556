"""The base model: brought in and pinned (`sources`), loaded by the stages after it (`loading`)."""
