"""The files that leave the pipeline, verified in the runtimes that users run."""
