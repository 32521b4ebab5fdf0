"""raftd: a replicated job queue that speaks the beanstalkd protocol."""

__version__ = "0.1.0"
