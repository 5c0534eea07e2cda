"""Clients of the daemon: `aio.AsyncClient`, the blocking `sync.Client`, and `executor.SchedExecutor`."""
