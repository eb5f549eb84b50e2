"""Running compiled programs somewhere else than in this process."""
