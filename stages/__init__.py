"""The stages of the pipeline, one script each."""
