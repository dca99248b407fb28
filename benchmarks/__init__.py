"""Measured figures against named peers, and the plan of a run: memory and time before it starts."""
