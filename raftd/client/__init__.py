"""What talks to a raftd node over its client door. It knows the wire, and nothing of a node's inside."""
