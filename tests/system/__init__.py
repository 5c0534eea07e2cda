"""The whole of it: a real daemon, real workers, real clients."""
