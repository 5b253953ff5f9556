"""What a run will take, known before it starts: its jobs, stages, parameters and memory."""
