"""The loopback hub: store (content), server (HTTP, faults), reading and writing (endpoints)."""
