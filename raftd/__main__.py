"""`python -m raftd`: the command line."""

from raftd.cli.main import main

main(prog_name="raftd")
