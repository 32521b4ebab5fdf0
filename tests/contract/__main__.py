"""Start a node, and let schemathesis look for a disagreement with the specification that it serves, or for a 500."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.processes.harness import ProcessCluster

HERE = Path(__file__).parent


def main() -> int:
    with tempfile.TemporaryDirectory() as directory, ProcessCluster(Path(directory), 1) as cluster:
        cluster.leader()
        host, port = cluster.address(1, "http")
        tool = Path(sys.executable).parent / "schemathesis"
        command = [tool, "--config-file", HERE / "schemathesis.toml", "run", f"http://{host}:{port}/v1/openapi.json", *sys.argv[1:]]
        status = subprocess.run(command, cwd=HERE.parent.parent, check=False).returncode
        said = cluster.log(1)
        if "Traceback" in said or "Unhandled" in said:
            print(said[-10_000:])
            return 1
        return status


if __name__ == "__main__":
    sys.exit(main())
