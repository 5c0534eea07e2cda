"""The daemon behind real sockets."""
