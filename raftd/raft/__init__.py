"""The consensus core: Raft without I/O. Messages and ticks go in, batches of effects come out.

The driver's contract stands in `core.py`; the messages are the paper's, in `messages.py`.
"""
