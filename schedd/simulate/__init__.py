"""The simulator: a trace of tasks, run through the daemon's own engine and policies under a virtual clock."""
