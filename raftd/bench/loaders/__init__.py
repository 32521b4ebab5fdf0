"""The clients of the load, one module for each protocol, all of the same build: raw sockets, a buffer, nothing else, so that
what differs between two measurements is the server."""
