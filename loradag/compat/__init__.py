"""What is private to a dependency, a module for each dependency."""
