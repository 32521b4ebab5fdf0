"""The dashboard over TLS, where browsers have to show a certificate."""

from __future__ import annotations

from typing import Any

import pytest

from raftd.bench.local import wait_for
from raftd.cli.authority import new_client, save
from raftd.client.connection import Connection
from raftd.jobs import replies as r
from raftd.jobs import rights as g
from raftd.jobs.rights import ALL_TUBES, Grant, Right
from raftd.passwords import digest_of_password
from raftd.wire import client as w
from tests.browser.test_dashboard import confirm, press, said, wait_for_tile
from tests.processes.secure import SecureCluster

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PASSWORD = "open sesame"


def shown(cluster: SecureCluster, certificate: str, port: int) -> dict[str, Any]:
    """As the options of a browser that has this certificate."""
    files = {"certPath": cluster.files / f"{certificate}.pem", "keyPath": cluster.files / f"{certificate}.key"}
    return {"client_certificates": [{"origin": f"https://127.0.0.1:{port}", **files}], "ignore_https_errors": True}


def test_one_is_known_by_a_certificate_or_by_a_name_and_a_password(tmp_path, opened):
    with SecureCluster(tmp_path, 1) as cluster:
        cluster.leader()
        _, port = cluster.address(1, "http")
        with Connection(cluster.address(1, "client"), 10, tls=cluster.secured) as first:
            salt = b"s" * 16
            password = g.Password(salt, digest_of_password(PASSWORD, salt))
            grants = [g.AddGrant("tester", Grant(right, ALL_TUBES)) for right in Right]
            users = [g.AddUser("tester"), *grants, g.AddUser("ann"), g.SetPassword("ann", password)]
            users += [g.AddGrant("ann", Grant(right, "mail")) for right in (Right.READ, Right.PUT)]
            # the first operator must be able to show something that the cluster has given him
            users += [g.AddToken("tester", "t", b"t" * 32)]
            wait_for(lambda: first.ask(w.ChangeAccessRequest(1, users)).reply == r.AccessChanged(), what="the users being there")
        page = opened(f"https://127.0.0.1:{port}", "#/tube/mail", misses=True, **shown(cluster, "client", port))
        press(page, "Put a job …")
        page.get_by_label("Body").fill("by certificate")
        confirm(page, "Put it")
        wait_for_tile(page, "Ready", "1")
        assert page.locator(".who").inner_text().count("tester") == 1
        assert page.get_by_role("button", name="Sign out").count() == 0  # there is nothing to sign out of

        save(cluster.files, "stranger", new_client(cluster.authority, "test", "stranger", 30))  # no user has this name
        page = opened(f"https://127.0.0.1:{port}", "#/tube/mail", misses=True, **shown(cluster, "stranger", port))
        page.get_by_label("or name").fill("ann")
        page.get_by_label("and password").fill(PASSWORD)
        press(page, "Sign in")
        press(page, "Put a job …")
        page.get_by_label("Body").fill("by password")
        confirm(page, "Put it")
        said(page, "is put.")
        wait_for_tile(page, "Ready", "2")
        (cookie,) = page.context.cookies()
        assert cookie["name"].startswith("__Host-raftd-")
        assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Strict")
