"""The worker: takes attempts from the daemon, runs them on its machine, and says how they went."""
