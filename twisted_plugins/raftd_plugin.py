"""Tells twistd of raftd, without importing it."""

from twisted.application.service import ServiceMaker

raftd = ServiceMaker("raftd", "raftd.tap", "A replicated job queue that speaks the beanstalkd protocol.", "raftd")
