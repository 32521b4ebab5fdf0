"""Real nodes on a real small file system: they say so before it is full, and what happens when it is full all the same."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftd.bench.local import wait_for
from tests.processes.harness import Closed, LineClient, ProcessCluster

MEBI = 1 << 20
BODY = b"x" * 20_000


@pytest.fixture
def small_disks(tmp_path) -> Iterator[list[Path]]:
    """Three of 32 MiB, where the data of three nodes will be."""
    places = []
    try:
        for node in (1, 2, 3):
            place = tmp_path / "data" / str(node)
            place.mkdir(parents=True)
            mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(place)], capture_output=True, text=True)
            if mounted.returncode:
                pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
            places.append(place)
        yield places
    finally:
        for place in places:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(client: LineClient, most: int) -> tuple[list[int], bytes]:
    """Put until it is refused; the jobs acknowledged, and the refusal."""
    ids = []
    for _ in range(most // 20):
        client.send((b"put 0 0 600 %d\r\n%b\r\n" % (len(BODY), BODY)) * 20)
        answers = [client.line() for _ in range(20)]
        ids += [int(answer.split()[1]) for answer in answers if answer.startswith(b"INSERTED ")]
        refused = [answer for answer in answers if not answer.startswith(b"INSERTED ")]
        if refused:
            assert set(refused) == {b"OUT_OF_MEMORY"}
            return ids, refused[0]
    return ids, b""


def free(place: Path) -> int:
    disk = os.statvfs(place)
    return disk.f_bavail * disk.f_frsize


def refused_by_all(clients: list[LineClient], ids: list[int]) -> bool:
    """Put twenty jobs through each client; whether none was inserted. `ids` grows by those that were."""
    inserted = [id for client in clients for id in fill(client, 20)[0]]
    ids += inserted
    return not inserted


def test_puts_are_refused_before_the_disk_is_full(tmp_path, small_disks, capsys):
    with ProcessCluster(tmp_path, 3, snapshot_log_bytes=MEBI, min_free_disk_bytes=6 * MEBI) as cluster:
        cluster.leader()
        client = cluster.client(1)
        ids, refusal = fill(client, 3_000)
        assert refusal == b"OUT_OF_MEMORY"
        least = min(map(free, small_disks))
        assert least > 0
        cluster.check()  # nobody has ended
        assert any("disk space is low" in cluster.log(node) for node in cluster.nodes)
        second = cluster.client(2)
        wait_for(lambda: int(second.stats()["current-jobs-ready"]) == len(ids), what="node 2 having all that was acknowledged")
        # Every node refuses, and every command that frees space works, on every node. A snapshot may free some of the log
        # once more; what it frees is put full again, and less of it each time.
        others = [second, cluster.client(3)]
        wait_for(lambda: refused_by_all(others, ids), what="both other nodes refusing puts")
        half = len(ids) // 2
        for place, id in enumerate(ids[:half]):
            assert others[place % 2].delete(id)
        wait_for(lambda: not refused_by_all([client], ids), what="a put once there is space")
        cluster.check()
        last = cluster.client(3)
        assert all(last.reserve_and_delete(id) for id in ids[half:])
    with capsys.disabled():
        print(f"\n  {len(ids)} jobs of {len(BODY)} bytes on 32 MiB; {least / MEBI:.1f} MiB were free when puts were refused")


def delete_for_ever(client: LineClient) -> None:
    while True:
        client.send(b"delete 999999\r\n" * 50)
        assert {client.line() for _ in range(50)} == {b"NOT_FOUND"}


def test_a_full_disk_ends_the_node_and_loses_nothing(tmp_path, small_disks):
    with ProcessCluster(tmp_path, 1, snapshot_log_bytes=MEBI, min_free_disk_bytes=0) as cluster:
        client = cluster.client(1)
        ids = [client.put(b"job %d" % number) for number in range(100)]
        ballast = small_disks[0] / "ballast"
        with ballast.open("wb", buffering=0) as file:  # somebody else's, all at once
            while True:
                try:
                    file.write(bytes(MEBI))
                except OSError:
                    break
        with pytest.raises(Closed):
            delete_for_ever(client)
        node = cluster.running[1]
        assert node.process.wait(timeout=10) == 70
        assert "No space left on device" in cluster.log(1)
        ballast.unlink()
        cluster.start(1)
        again = cluster.client(1)
        assert all(again.reserve_and_delete(id) for id in ids)
