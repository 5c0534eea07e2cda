"""Hostile input by the million: what anybody may send, made from the types of what is expected."""
