"""Limits that several modules share, with their units and reasons. A limit of one module is in that module.

Nothing here is configuration: what an operator may set is in `config.py`, with its bounds. The constants are the same in every
process. The fields of `Limits` are what tests and the simulator make small, so that a short run meets them; they are handed in at
construction.
"""

import msgspec

# -- time ---------------------------------------------------------------------------------------

#: One logical tick of the consensus core, in milliseconds. Fine enough that election timeouts drawn
#: from [T, 2T) of a 250 ms T rarely collide, coarse enough that thirteen nodes on one machine idle.
TICK_MS = 10

#: Defaults of the two consensus timings, in milliseconds. An election timeout is drawn from [T, 2T).
ELECTION_TIMEOUT_MS = 250
HEARTBEAT_MS = 50

#: How long the cluster keeps the sessions of a silent node, in milliseconds.
SESSION_TIMEOUT_MS = 5_000

#: Bounds of the configurable timings, in milliseconds. Below the lower ones a busy Python process
#: misses its own heartbeats; above the upper ones no operator would wait.
ELECTION_TIMEOUT_MIN_MS = 50
ELECTION_TIMEOUT_MAX_MS = 60_000
HEARTBEAT_MIN_MS = 10
SESSION_TIMEOUT_MIN_MS = 100
SESSION_TIMEOUT_MAX_MS = 3_600_000

#: A connection that has not said hello by then (seconds) is closed.
HELLO_TIMEOUT_S = 5.0

#: A connection with another node that is to be closed in order is cut after so long (seconds).
CLOSE_TIMEOUT_S = 1.0

#: Every other call over HTTP is answered within this time (seconds), and so long after its own timeout if it waits for jobs. An
#: election fits in.
HTTP_ANSWER_S = 5.0

#: How often connections that are not read are looked at for a client that has gone (seconds).
HANGUP_CHECK_S = 1.0

#: How often the files of certificates are looked at for a change (seconds), and how long before one expires that is warned of (days).
CERTIFICATE_CHECK_S = 5.0
CERTIFICATE_WARNING_DAYS = 21

#: How often a node asks the leader for its wall clock (seconds), and the difference, in milliseconds, above which it warns. An answer
#: that takes longer than `CLOCK_ANSWER_MS` says too little: half of that time is the error.
CLOCK_CHECK_S = 5.0
CLOCK_DIFFERENCE_MS = 1_000
CLOCK_ANSWER_MS = 500

#: How long sent bytes may stay unacknowledged on a peer connection (milliseconds) before the kernel
#: gives it up. After a partition a fresh connection is there sooner than TCP's own retransmission.
PEER_TCP_TIMEOUT_MS = 5_000

#: Connections to a listener with TLS whose handshake is not done; with more, the one that waits longest is closed. Those to listeners for
#: clients count as clients besides; of those to the peer listener there are twice as many at most, until closed ones are gone.
HANDSHAKES = 256
PEER_HANDSHAKES = 32

# -- sizes --------------------------------------------------------------------------------------

#: The default of `max_job_size` and the most it can be set to, in bytes. A job must fit one frame.
MAX_JOB_BYTES = 65_535
MAX_JOB_BYTES_CEILING = 16 << 20

#: What a frame may carry before the hello, in bytes: a stranger cannot make us buffer more.
HELLO_FRAME_BYTES = 8 << 10

#: The largest frame, in bytes: the largest job with everything that can stand around it.
FRAME_BYTES = MAX_JOB_BYTES_CEILING + (1 << 20)

#: The default and the minimum of `snapshot_log_bytes`, in bytes: it bounds the disk, and how long a start takes.
SNAPSHOT_LOG_BYTES = 256 << 20
SNAPSHOT_LOG_MIN_BYTES = 1 << 20

#: The default of what must be free for the log besides the next snapshot, in bytes, or a disk counts as low; two segments at least.
MIN_FREE_DISK_BYTES = 256 << 20

#: How many chunks of a snapshot go to one follower before it must have answered: a heartbeat behind them waits for no more than a
#: megabyte.
SNAPSHOT_CHUNKS_IN_FLIGHT = 4

#: The unit in which a disk loses or tears a write, in bytes. Disks with 4 KiB sectors lose eight.
SECTOR_BYTES = 512

# -- descriptors --------------------------------------------------------------------------------

#: The limit on open files is raised to what the system allows, but not beyond this: a client costs memory too.
MOST_DESCRIPTORS = 1 << 16

#: Connections to the peer listener that have not been recognised. When one more comes, the oldest goes.
PEER_STRANGERS = 64

#: Log lines about unknown connections, per second, and characters of their text in a line.
STRANGER_LINES = 10
STRANGER_TEXT = 200

# -- counts -------------------------------------------------------------------------------------

#: The largest body of a request over HTTP, in bytes, if two jobs are not larger.
HTTP_BODY_BYTES = 1 << 20

#: Idempotency keys remembered at most: some 30 MB of memory on every node.
KEYS_KEPT = 100_000

#: The longest idempotency key, in characters.
KEY_CHARACTERS = 255

#: Jobs put by one command.
JOBS_PER_PUT = 1_000

#: Tubes that one session may watch. A reserve looks at each of them, on every node.
WATCHED_TUBES = 1_024

#: Jobs of one ask of a client's session that is about many, and jobs that one reserves: at most so much work is one command.
JOBS_PER_ASK = 400
JOBS_PER_RESERVE = 100

#: What one client's session may have: answers that the client is not known to have, reserves that wait, subscriptions, jobs that may
#: be pushed to one of these, and tubes that all of them together watch. Every node holds all of it, and looks at it in one entry.
UNCONFIRMED_ANSWERS = 1_024
WAITING_RESERVES = 128
SUBSCRIPTIONS = 16
CREDIT = 1_000
ASKED_TUBES = 256

#: Bodies of jobs that one reserve gives, or that are pushed and not known to have arrived, in bytes; one job more than this.
GIVEN_BYTES = 1 << 20

#: All bodies of one put of many jobs, in bytes, or one job if that is larger: a frame, and a batch, must hold them.
PUT_BYTES = 1 << 20

#: The longest error that is kept with a job, in characters.
ERROR_CHARACTERS = 1_024

#: The random bytes that name a client's session.
SESSION_TOKEN_BYTES = 16

#: Jobs that one kick moves at most, and no more than its entry has budget for. The answer says how many; ask again for more.
KICKED_JOBS = 4_096

#: Tubes with a policy.
POLICIES = 10_000

#: Jobs that are finished and can still be read: so many, and so many bytes of what their workers said, on every node; and of one.
FINISHED_JOBS = 100_000
FINISHED_BYTES = 16 << 20
RESULT_BYTES = 4_096

#: Jobs that one step of a replay looks at, and does something to, at most; and those that one count looks at.
REPLAY_LOOKED = 4_000
REPLAY_JOBS = 200
COUNTED_JOBS = 10_000

#: The longest text that errors are searched for, in characters.
SEARCH_CHARACTERS = 64

#: Schedules of a cluster, and the longest name of one, in characters.
SCHEDULES = 1_000
SCHEDULE_CHARACTERS = 200

#: The longest key that makes a job the only one of its kind in its tube, in characters.
UNIQUE_CHARACTERS = 255

#: Users of a cluster; grants and tokens of each; changes of them that one command makes; the longest name of a user or a token, and the
#: longest pattern of tubes, in characters.
USERS = 10_000
GRANTS_PER_USER = 100
TOKENS_PER_USER = 100
CHANGES_PER_ASK = 100
USER_CHARACTERS = 64
PATTERN_CHARACTERS = 200

#: What the audit log keeps of changes of users and members, and so many of tubes, some 3 MB of memory each on every node.
AUDIT_RECORDS = 10_000

#: What is kept of a password, and of a token, in bytes.
SALT_BYTES = 16
DIGEST_BYTES = 32

#: What a user's quota brings in so many seconds may be put at once.
QUOTA_BURST_S = 5

#: Failed attempts to show who one is, of an address or of a user from there, whose answers come at once; the longest that a later one
#: waits (less than HELLO_TIMEOUT_S), and after how long without one they are forgotten (seconds); and how many of both are remembered.
LOGIN_FAILURES = 3
LOGIN_SLOWEST_S = 4.0
LOGIN_FORGOTTEN_S = 60.0
STRANGERS_REMEMBERED = 10_000

#: Passwords wait to be looked at, one by one: so many of an address, and of so many addresses.
PASSWORDS_OF_ADDRESS = 4
PASSWORDS_WAITING = 256

#: The longest token, in characters.
TOKEN_CHARACTERS = 128

#: Policies that one command sets: all of them or none.
POLICIES_PER_ASK = 1_000

#: Committed entries applied at a time, in bytes, or one entry if that is larger. A turn does so four times at most, and not again
#: after this many bytes, so a node that replays a long log, or has many commands to answer, keeps its heartbeats.
APPLY_BYTES = 64 << 10

#: Unsent replies of one connection, in bytes, at which it is dropped (one job more than this may wait).
#: Reading already pauses when the transport's own buffer (64 KiB) is full.
REPLY_BYTES = 4 << 20

# -- what a test may make small -----------------------------------------------------------------


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one node. Nodes of one cluster may have different ones: none is part of the replicated state."""

    # storage
    #: A log segment is closed when it has grown past this many bytes.
    segment_bytes: int = 64 << 20
    #: Bytes of the log between two places at which reading for a follower may begin.
    log_mark_bytes: int = 64 << 10
    #: Applied entries that stay in memory, in bytes, up to twice as much: followers that keep pace need no disk.
    log_memory_bytes: int = 16 << 20
    #: A piece of a snapshot, in bytes: this many, or one job. It is loaded in one turn of the reactor.
    snapshot_piece_bytes: int = 128 << 10
    #: What one InstallSnapshot carries, in bytes.
    snapshot_chunk_bytes: int = 256 << 10

    # snapshots
    #: Bytes of log that are applied before a snapshot is due.
    snapshot_least_bytes: int = 16 << 20
    #: The next snapshot is due when this many times the size of the last one has been applied, or `snapshot_least_bytes` if that is
    #: more; but no later than the configuration says. So writing them costs a fixed share of what is written anyway.
    snapshot_factor: int = 2
    #: How long a snapshot for backups is kept after the last read, in ticks: a minute.
    backup_hold_ticks: int = 6_000
    #: A snapshot for backups is written this often at most, in ticks, for those who have asked meanwhile: ten seconds.
    backup_ticks: int = 1_000

    # replication
    #: Entries of one AppendEntries, in bytes: this many, or one entry if that is larger. A longer message would hold up the heartbeat
    #: behind it.
    append_bytes: int = 1 << 20
    #: AppendEntries in flight to one follower, in messages and in bytes, before the leader waits for an acknowledgement.
    window_messages: int = 256
    window_bytes: int = 16 << 20
    #: Proposals of a leader that are not yet committed, in bytes. Beyond it batches are refused and come again.
    uncommitted_bytes: int = 64 << 20
    #: Committed entries applied at a time.
    apply_entries: int = 512

    # the gateway
    #: Batches of one gateway in flight. Measured: one loses a third of the throughput, more than four only makes the batches smaller.
    gateway_in_flight: int = 4
    #: Commands a gateway holds for its clients and has not applied, in bytes. Beyond it a put is answered with an error that says it
    #: did not happen.
    gateway_bytes: int = 64 << 20
    #: Commands of one batch, in bytes: this many, or one command. How many there may be: `jobs/budget.py`.
    batch_bytes: int = 512 << 10

    # a turn of the node: together about ten milliseconds, a fifth of the heartbeat interval
    #: Steps (`jobs/budget.py`) that entries, reads and answers have in a turn. One entry, one read or one answer that begins within
    #: its share is finished.
    apply_steps: int = 50_000
    reads_steps: int = 25_000
    answers_steps: int = 25_000

    # clients
    #: A client that takes none of what waits for it for this long (seconds) is dropped, and with it its reservations.
    no_progress_s: float = 10.0


LIMITS = Limits()
