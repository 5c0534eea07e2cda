"""Hostile input: what anybody may send, what files may hold, and what must come of it."""
