"""Whole processes: `twistd raftd` as a user starts it, killed as a machine dies."""
