"""Measuring raftd and breaking it on purpose, with real processes on loopback.

`rates.py` and `load.py` measure puts and cycles per second, `capacity.py` what many jobs cost, `entries.py` the longest entry.
`chaos.py` kills nodes behind `proxy.py` and checks the history that `recorded.py` writes down; `workload.py` checks that no
acknowledged job is lost. `local.py` starts the nodes.
"""
