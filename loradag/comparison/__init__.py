"""The jobs of a sweep against each other: their records, their ranks, the winner."""
