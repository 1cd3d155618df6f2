"""What a machine has and whether everything works on it."""
