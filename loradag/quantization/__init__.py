"""Quantisation of a checkpoint: schemes, the saved form, its error, its way back to floats."""
