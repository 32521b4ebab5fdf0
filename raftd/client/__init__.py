"""What talks to a raftd node over its client listener. It knows the wire, and nothing of a node's inside."""

from __future__ import annotations

HostPort = tuple[str, int]
