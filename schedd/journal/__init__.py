"""The journal: what was promised, on disk. Live tasks to restart from, and the history of all facts."""
