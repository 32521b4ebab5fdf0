"""What stunnel does, for one connection: plain text here, TLS with a certificate there. `python -m tests.processes.tunnel PORT CA
CERTIFICATE KEY` prints where it listens, and ends with its input."""

from __future__ import annotations

import select
import socket
import sys

from raftd.client.tls import TlsFiles, tunnel


def main() -> None:
    port, *files = sys.argv[1:]
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        near, _ = server.accept()
    far = tunnel(("127.0.0.1", int(port)), 10, TlsFiles(*files))
    while True:
        for ready in select.select([near, far, sys.stdin], [], [])[0]:
            if ready is sys.stdin:
                return
            data = ready.recv(1 << 16)
            (far if ready is near else near).sendall(data)


if __name__ == "__main__":
    main()
