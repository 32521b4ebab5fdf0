"""A cluster in memory: production code on a virtual clock, with a network and disks that can fail."""
