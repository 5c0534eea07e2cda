"""The pure core: events go in, effects come out, the clock is an argument."""
