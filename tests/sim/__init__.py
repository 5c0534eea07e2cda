"""The simulation: thousands of seeds, the same trace for the same seed, and planted bugs that it must find."""
