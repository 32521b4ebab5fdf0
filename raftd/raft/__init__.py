"""The consensus core: Raft without I/O. Messages and ticks go in, batches of effects come out.

`core.py` has the driver's contract, `messages.py` the messages of the paper.
"""
