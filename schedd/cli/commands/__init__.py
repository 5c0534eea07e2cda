"""One module for each sub-command, or for a few that are alike; imported on demand by `cli.main`."""
