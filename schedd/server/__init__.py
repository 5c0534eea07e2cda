"""The daemon: sockets, the turn of the loop, and the translation between messages and events."""
