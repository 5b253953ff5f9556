"""The pages that a run leaves: their charts, their tables, their words."""
