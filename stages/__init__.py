"""The steps of the pipeline, one file each; their libraries, one folder each."""
