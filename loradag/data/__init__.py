"""Rows to tokens: sources, templates, the token contract, prepared rows."""
