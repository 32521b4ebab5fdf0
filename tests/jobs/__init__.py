"""The state machine, fed with entries by hand and compared with a naive model."""
