"""What leaves the pipeline, and the proof that it computes the same where users run it."""
