"""Bytes and messages: frames, what peers and clients say in them, and the line protocol. Pure."""
