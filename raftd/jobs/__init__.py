"""The replicated state machine: tubes, jobs, sessions, gateways, timers. Deterministic and pure.

The same entries give the same state and the same answers on every node, byte for byte. `commands.py` is
what goes in, `replies.py` what comes out, `machine.py` the transitions, `model.py` the things they change,
`queries.py` what may be read without changing any.
"""
