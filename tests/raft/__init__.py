"""The consensus core, driven by hand: no clock, no disk, no network but what a test says."""
