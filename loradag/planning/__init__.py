"""The plan of a run before it starts: its jobs, stages, parameters, memory, time and disk."""
