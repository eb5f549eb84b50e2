"""Models whose sizes are known when they run: one program for all sizes in a range."""
