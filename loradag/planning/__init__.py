"""What a run will take, told before it starts: which stages, how many parameters, what memory."""
