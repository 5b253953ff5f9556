"""The steps of the pipeline, one script each."""
