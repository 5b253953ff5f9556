"""The adapter into its base, a tensor at a time."""
