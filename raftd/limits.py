"""Every limit of raftd: its name, its unit, and why it has this value.

Nothing here is configuration. What an operator may change stands in `config.py`, with its bounds.
"""

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

#: With timers due and no traffic the leader appends an empty batch, but never within this many
#: milliseconds of the entry before: a thousand timers a second then cost a hundred entries.
TIMER_ENTRY_GAP_MS = 10

#: An idle log is sealed after this long (milliseconds), so that damage to its last batch is told
#: apart from a torn write.
SEAL_IDLE_MS = 50

#: How long a request waits for the answer of a leader that leads no more, in ticks.
LAST_WORD_TICKS = 100

#: How long an operator's request waits for the leader's answer, in ticks: an election and a half of the slowest kind fit in.
ADMIN_TICKS = 1_000

#: How long an operator's request waits for a leader to be elected, in ticks: as long as the slowest usual election takes.
LEADER_TICKS = 500

#: A connection that has not said hello by then (seconds) is closed.
HELLO_TIMEOUT_S = 5.0

#: A client that takes none of what waits for it for this long (seconds) is dropped, and with it its reservations.
NO_PROGRESS_S = 10.0

#: How much of one turn of the reactor clients' requests may take (milliseconds). What is left of them waits its turn
#: behind ticks and the other nodes: a crowd must not cost a heartbeat.
CLIENT_TURN_MS = 10

#: And how much of that one connection may take at a time (milliseconds), so that one more is served soon among a
#: thousand that flood.
CLIENT_SHARE_MS = 1

#: Every call of the topic and message contract is answered within this time (seconds): its callers wait for one second.
TOPIC_ANSWER_S = 0.85

#: Every other call over HTTP is answered within this time (seconds), and so long after its own timeout if it waits for jobs. An
#: election fits in.
HTTP_ANSWER_S = 5.0

#: The longest that a call may wait for jobs (seconds): less than a minute, after which proxies and clients give up.
RESERVE_WAIT_S = 55

#: How often an answer that has not left at once is looked at (seconds).
LEAVING_CHECK_S = 0.1

#: A request that is refused before it has arrived whole is read on for so long (seconds), or the client would not get to read why.
HTTP_LINGER_S = 1.0

#: A request over HTTP must have arrived by then (seconds), and a connection between two requests may be idle for so long.
HTTP_ARRIVAL_S = 10.0
HTTP_IDLE_S = 60

#: How often connections that are not read are looked at for a client that has gone (seconds).
HANGUP_CHECK_S = 1.0

#: While no leader is known, the log says so this often (seconds).
NO_LEADER_REMINDER_S = 10.0

#: How long a node that was removed stays (seconds), so that the others hear its last words: that this is committed.
LAST_WORDS_S = 0.5

#: How long an orderly stop waits for another node to take the lead (seconds), before the write in flight. Together they must leave
#: room in the two seconds.
HAND_OVER_S = 0.5

#: How long an orderly stop waits for the write in flight (seconds). SIGTERM must end a node in 2 s.
STOP_TIMEOUT_S = 1.0

#: How long sent bytes may stay unacknowledged on a peer connection (milliseconds) before the kernel
#: gives it up. After a partition a fresh connection is there sooner than TCP's own retransmission.
PEER_TCP_TIMEOUT_MS = 5_000

# -- sizes --------------------------------------------------------------------------------------

#: A line of the line listener with its CRLF, in bytes (beanstalkd's LINE_BUF_SIZE).
LINE_BYTES = 224

#: A tube's name, in bytes (beanstalkd's MAX_TUBE_NAME_LEN less its NUL).
TUBE_NAME_BYTES = 200

#: The default of `max_job_size` and the most it can be set to, in bytes. A job must fit one frame.
MAX_JOB_BYTES = 65_535
MAX_JOB_BYTES_CEILING = 16 << 20

#: What a frame may carry before the hello, in bytes: a stranger cannot make us buffer more.
HELLO_FRAME_BYTES = 8 << 10

#: The largest frame, in bytes: the largest job with everything that can stand around it.
FRAME_BYTES = MAX_JOB_BYTES_CEILING + (1 << 20)

#: Entries of one AppendEntries, in bytes: this many, or one entry if that is larger. A longer
#: message would hold up the heartbeat behind it.
APPEND_BYTES = 1 << 20

#: Commands of one gateway batch, in bytes: this many, or one command. How many there may be: `jobs/budget.py`.
BATCH_BYTES = 512 << 10

#: Proposals of a leader that are not yet committed, in bytes. Beyond it batches are refused and come again.
UNCOMMITTED_BYTES = 64 << 20

#: Commands a gateway holds for its clients and has not applied, in bytes. Beyond it a put is answered
#: with an error that says it did not happen.
GATEWAY_BYTES = 64 << 20

#: Only whole segments are ever removed: with a smaller bound on the log between two snapshots they are smaller too.
SEGMENTS_PER_SNAPSHOT = 4

#: Applied entries that stay in memory, in bytes, up to twice as much: followers that keep pace need no disk.
LOG_MEMORY_BYTES = 16 << 20

#: A log segment is closed when it has grown past this many bytes.
SEGMENT_BYTES = 64 << 20

#: The next snapshot is due when so many times the size of the last one has been applied since, or this many bytes if that is
#: more; but no later than the configuration says. So writing them costs a fixed share of what is written anyway.
SNAPSHOT_FACTOR = 2
SNAPSHOT_LEAST_BYTES = 16 << 20

#: The default of that bound, and the least that it can be, in bytes. What it bounds is the disk, and how long a start takes.
SNAPSHOT_LOG_BYTES = 256 << 20
SNAPSHOT_LOG_MIN_BYTES = 1 << 20

#: The default of what must be free for the log besides the next snapshot, in bytes, or a disk counts as low; two segments at least.
MIN_FREE_DISK_BYTES = 256 << 20

#: A disk that was low is so no more with a quarter above the mark: nothing flaps.
FREE_DISK_FACTOR = 1.25

#: How often a node that writes nothing looks how much room there is, in ticks: half a second.
FREE_SPACE_TICKS = 50

#: So many snapshots long the log stays on which a transfer to a follower would go on, then the transfer begins anew.
SNAPSHOT_WAITS = 4

#: A snapshot whose file has not grown for so long (seconds) is given up: longer than the fsync of a large one takes on a slow disk.
SNAPSHOT_STALL_S = 120.0

#: After a snapshot that failed or was given up the next attempt comes after so many ticks: ten seconds.
SNAPSHOT_RETRY_TICKS = 1_000

#: On a low disk there is a snapshot this often, in ticks, if anything was applied: ten seconds. It makes room once jobs were deleted.
LOW_SNAPSHOT_TICKS = 1_000

#: How long a snapshot that somebody takes a copy of stays without being asked for, in ticks: a minute. So many do at most, and one is
#: written this often at most, in ticks, for those who have asked meanwhile: ten seconds.
BACKUP_HOLD_TICKS = 6_000
BACKUPS_HELD = 2
BACKUP_TICKS = 1_000

#: What one InstallSnapshot carries, in bytes, and how many go to one follower before it must have answered: a heartbeat
#: behind them waits for no more than a megabyte.
SNAPSHOT_CHUNK_BYTES = 256 << 10
SNAPSHOT_CHUNKS_IN_FLIGHT = 4

#: A piece of a snapshot, in bytes: this many, or one job. It is loaded in one turn of the reactor.
SNAPSHOT_PIECE_BYTES = 128 << 10

#: How many bytes of the log lie between two places at which reading for a follower may begin.
LOG_MARK_BYTES = 64 << 10

#: The unit in which a disk loses or tears a write, in bytes. Disks with 4 KiB sectors lose eight.
SECTOR_BYTES = 512

# -- descriptors --------------------------------------------------------------------------------

#: The limit on open files is raised to what the system allows, but not beyond this: a client costs memory too.
MOST_DESCRIPTORS = 1 << 16

#: So many of them are never clients': the log, other nodes, strangers at the peer listener, listeners. Without
#: a descriptor for its next segment a node would have to end.
RESERVED_DESCRIPTORS = 192

#: Clients that are let in even if that leaves too few: a node for nobody would be no use.
LEAST_CLIENTS = 16

#: Connections to the peer listener that have not been recognised. When one more comes, the oldest goes.
PEER_STRANGERS = 64

#: Lines of the log about strangers, per second, and how much of what they say stands in one, in characters.
STRANGER_LINES = 10
STRANGER_TEXT = 200

# -- counts -------------------------------------------------------------------------------------

#: The largest body of a request over HTTP, in bytes, if two jobs are not larger; and of all that are arriving, together.
HTTP_BODY_BYTES = 1 << 20
HTTP_ARRIVING_BYTES = 64 << 20

#: What a body over HTTP may have besides the job itself, which JSON may make twice as long (bytes).
HTTP_BODY_SLACK = 64 << 10

#: AppendEntries in flight to one follower, in messages and in bytes, before the leader waits for an
#: acknowledgement.
WINDOW_MESSAGES = 256
WINDOW_BYTES = 16 << 20

#: Batches of one gateway in flight. Measured: one loses a third of the throughput, more than four
#: only makes the batches smaller.
GATEWAY_IN_FLIGHT = 4


#: A node that is so many entries behind what it knows to be committed is not ready.
READY_LAG_ENTRIES = 10_000

#: Metrics are made anew at most this often (seconds).
METRICS_FRESH_S = 0.2

#: Tubes that have metrics of their own, those with most jobs: each is some lines in every scrape.
METRIC_TUBES = 100

#: The newest things of a job that its history over HTTP tells.
HISTORY_EVENTS = 1_000

#: A body up to this size is read again if a whole number in it may be written with a point (bytes): it takes Python.
WHOLE_NUMBER_BYTES = 16 << 10

#: What operators ask of one node and is not answered yet.
ADMIN_ASKED = 64

#: Idempotency keys are remembered for so long (milliseconds of log time: an hour), the newest so many of them: some 30 MB of memory
#: on every node. A producer that repeats itself does so within seconds or minutes.
KEY_WINDOW_MS = 3_600_000
KEYS_KEPT = 100_000

#: Keys forgotten at most when one more is remembered.
KEYS_FORGOTTEN = 16

#: The longest idempotency key, in characters.
KEY_CHARACTERS = 255

#: Tubes that one call over HTTP may reserve from: each is a command.
RESERVE_TUBES = 100

#: Jobs put by one command.
JOBS_PER_PUT = 1_000

#: Clients that listen to events of one node; how much they are told in one turn, together; and how often they hear that the node is
#: still there, and must have read something (seconds).
EVENT_STREAMS = 256
EVENTS_PER_TURN = 4_000
EVENT_BEAT_S = 10.0

#: What happened to jobs, as each node remembers it for `/events` and for a job's history: so many things (some 20 MB).
RECENT_EVENTS = 65_536

#: Tubes that one session may watch. A reserve looks at each of them, on every node.
WATCHED_TUBES = 1_024

#: Jobs that one kick moves at most, and no more than its entry has budget for. The answer says how many; ask again for more.
KICKED_JOBS = 4_096

#: Committed entries applied at a time, in number and in bytes, or one entry if that is larger. A turn does so four times at most, and
#: not again after so many bytes, so a node that replays a long log, or has many commands to answer, keeps its heartbeats.
APPLY_ENTRIES = 512
APPLY_BYTES = 64 << 10

#: Commands of one line or client connection that are not answered yet, in number and in bytes, before
#: reading pauses. A reserve counts the largest job; one command alone never pauses it.
CONNECTION_IN_FLIGHT = 128
CONNECTION_BYTES = 1 << 20

#: Unsent replies of one connection, in bytes, at which it is dropped (one job more than this may wait).
#: Reading already pauses when the transport's own buffer (64 KiB) is full.
REPLY_BYTES = 4 << 20
