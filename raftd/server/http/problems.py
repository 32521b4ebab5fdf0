"""Problems of calls to `/v1`, in the form of RFC 9457: a stable type, and a detail for people."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

KIND = "application/problem+json"
#: Where all of them are explained.
PATH = "/v1/problems"


class ProblemKind(NamedTuple):
    status: int
    title: str
    advice: str


PROBLEMS: dict[str, ProblemKind] = {
    "bad-request": ProblemKind(400, "The request does not follow the API", "The detail says where, and what was expected."),
    "not-authenticated": ProblemKind(
        401, "It is not known who asks", "Show a token (Authorization: Bearer TOKEN), a name and a password over TLS, or a certificate."
    ),
    "not-authorized": ProblemKind(403, "The user may not do that", "Ask an operator of the cluster for the right (`raftd grant`)."),
    "cross-site": ProblemKind(
        403, "The request comes from a page of another site", "Only pages of the same host and port may ask for changes."
    ),
    "unknown-name": ProblemKind(
        403, "No node is known by this name", "Use an address of a node, or add the name to `http_names` in the configuration."
    ),
    "read-only": ProblemKind(
        403, "The dashboard only looks", "Sign in again without that choice, or take the command line; `dashboard` in the configuration."
    ),
    "no-such-path": ProblemKind(404, "There is nothing at this path", "/v1/openapi.json lists all there is."),
    "no-such-tube": ProblemKind(404, "There is no such tube", "PUT it, or put a job into it."),
    "no-such-job": ProblemKind(404, "There is no such job", "It was deleted, or never was, or you may not look at it."),
    "no-such-method": ProblemKind(405, "This path does not know this method", "The header Allow lists those that it knows."),
    "too-slow": ProblemKind(408, "The request took too long to arrive", "Send it faster."),
    "stale-token": ProblemKind(
        409,
        "The token is not that of the job's reservation",
        "That reservation has ended, and the job is ready or reserved again; or it never existed.",
    ),
    "reserved": ProblemKind(409, "The job is reserved", "Only a call with its token can do that now; DELETE takes it as ?token=."),
    "not-kickable": ProblemKind(409, "The job is neither buried nor delayed", "There is nothing to kick."),
    "tube-full": ProblemKind(429, "The tube is full", "Its policy lets no more jobs in. Nothing was put. Ask again later."),
    "too-many-passwords": ProblemKind(429, "Too many passwords are looked at here", "Ask again in a second, or show a token."),
    "over-quota": ProblemKind(429, "The quota of the user is used up", "Nothing was done. Ask again later."),
    "bad-job": ProblemKind(422, "There can be no such job", "The detail says what does not go together."),
    "no-result": ProblemKind(404, "Nothing is known of what came of this job", "The policy of its tube must say so, and not for longer."),
    "no-schedule": ProblemKind(404, "There is no such schedule", "PUT it."),
    "schedule-changed": ProblemKind(409, "The schedule has another version", "Another has changed it. Look at it, and set it again."),
    "bad-schedule": ProblemKind(422, "There can be no such schedule", "The detail says which field is wrong."),
    "no-policy": ProblemKind(404, "The tube has no policy", "PUT one."),
    "policy-changed": ProblemKind(409, "The policy has another version", "Another has changed it. Look at it, and set it again."),
    "bad-policy": ProblemKind(422, "There can be no such policy", "The detail says which field is wrong."),
    "older-node": ProblemKind(409, "An older raftd may be among the nodes", "Upgrade all nodes: then this can be done."),
    "tube-not-empty": ProblemKind(409, "The tube holds jobs", "Delete them first."),
    "refused": ProblemKind(409, "The cluster refused that", "The detail says why. Nothing was changed."),
    "job-too-large": ProblemKind(413, "A job is larger than this cluster takes", "The limit is max_job_size of the configuration."),
    "too-large": ProblemKind(413, "The request is too large", "Put fewer jobs at a time."),
    "unsupported-media-type": ProblemKind(
        415, "The body is of a type that this path does not take", "The detail names those that it takes."
    ),
    "key-reused": ProblemKind(422, "The idempotency key was used for something else", "Take a new key for each thing that you ask."),
    "bad-place": ProblemKind(422, "No page begins there", "Take `after` from the page before, in the same order."),
    "no-users": ProblemKind(409, "Nobody has to sign in here", "The cluster has no users. `raftd init` makes the first."),
    "no-snapshot": ProblemKind(503, "No snapshot could be written", "The detail says why."),
    "not-declared": ProblemKind(409, "The tube was not declared", "An undeclared tube is removed when it is empty and unused."),
    "internal": ProblemKind(500, "A bug in raftd", "The node's log has the traceback. Please report it."),
    "too-many-streams": ProblemKind(503, "Too many listen to events at this node", "Listen at another node."),
    "not-ready": ProblemKind(503, "The node is starting", "Ask again, or ask another node."),
    "stopping": ProblemKind(503, "The node is stopping", "What was asked may happen or not. Ask another node."),
    "draining": ProblemKind(503, "The node takes no more jobs", "Put on another node."),
    "overloaded": ProblemKind(
        503, "The cluster cannot take more jobs now", "This call put nothing; one before with the same key may have. Ask again later."
    ),
    "not-committed": ProblemKind(503, "The cluster did not answer in time", "Nothing was done, and nothing of it will be. Ask again."),
    "outcome-unknown": ProblemKind(
        503, "It could not be seen committed in time", "It may happen or not. With an idempotency key a put may safely be asked again."
    ),
}


class Problem(msgspec.Struct):
    """As RFC 9457 describes it. `success` is what callers of `/topic` and `/message` look for."""

    type: str
    title: str
    status: int
    detail: str
    success: bool


def make(name: str, detail: str = "") -> Problem:
    kind = PROBLEMS[name]
    return Problem(f"{PATH}#{name}", kind.title, kind.status, detail or kind.advice, False)


def encode(name: str, detail: str = "") -> bytes:
    return msgspec.json.encode(make(name, detail)) + b"\n"
