"""Other people's training loops. Each file needs an extra of its own and is imported by name."""
