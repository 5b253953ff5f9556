"""The sections of `params.yaml`: their types, their rules, and how they are composed."""
