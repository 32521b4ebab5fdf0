"""A member of the cluster: Raft, the state machine and storage joined into one event loop, without sockets.

`loop.py` drives everything, once per reactor turn. `gateway.py` and `session.py` carry the commands of this node's clients to
the leader, `reads.py` runs linearizable reads, `admission.py` decides which peers are heard, `admin.py` carries out requests of
operators, `proposals.py` is what a leader proposes by itself, `compaction.py` and `backups.py` compact and copy the state,
`disk_space.py` watches the disk, `job_events.py` remembers what happened to jobs.
"""
