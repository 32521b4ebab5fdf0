"""Durability: the append-only log and the vote file, behind one small file-system interface.

`filesystem.py` is the interface and the real one; `records.py` is bytes only; `vote.py` and `log.py` are
the two files; `store.py` is the data directory as a whole, with its lock, its recovery and group commit.
"""
