"""Deterministic simulation: a whole cluster in one process, under a virtual clock. A seed is a configuration."""
