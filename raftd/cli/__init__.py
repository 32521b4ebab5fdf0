"""The `raftd` command."""
