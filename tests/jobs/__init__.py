"""The state machine, fed with entries by hand and compared with the simulator's plain model."""
