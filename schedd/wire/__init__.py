"""The protocol: bounded frames of typed MessagePack messages. Pure; no sockets, no clocks."""
