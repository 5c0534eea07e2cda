"""CPython's own tests of concurrent.futures, run on SchedExecutor with a real daemon and a real worker."""
