"""Measuring raftd and breaking it on purpose, with real processes on loopback.

`rates.py` measures operations per second: `servers.py` starts what is measured, `load.py` and `loaders/` are the clients, `crowd.py` is
what is there before, `rounds.py` and `report.py` are the results. `capacity.py` what many jobs cost, `entries.py` the longest entry.
`protocols.py` compares the client protocol with the line protocol. `chaos.py` kills nodes behind `proxy.py` and checks the history that
`recorded.py` writes down, and, in `unique.py`, what the Python clients do; `workload.py` checks that no acknowledged job is lost.
`local.py` starts the nodes.
"""
