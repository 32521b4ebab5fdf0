"""The dashboard in a real browser, as its users have it before them."""

from __future__ import annotations

import json
import re
import signal
import time
from typing import Any

import pytest

from raftd.bench.local import wait_for
from raftd.client import Client
from raftd.client.connection import Connection
from raftd.jobs import replies as r
from raftd.jobs import rights as g
from raftd.jobs.rights import ALL_TUBES, Grant, Right
from raftd.passwords import digest_of_token
from raftd.wire import client as w
from tests.browser.conftest import origin
from tests.processes.harness import ProcessCluster

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SCRIPT = "<script>alert('body')</script><img src=x onerror=alert(1)>"
PHONE = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}


def tile(page: Any, name: str) -> str:
    return page.locator(".tile", has=page.locator(".tile-name", has_text=re.compile(f"^{name}$"))).locator("b").inner_text()


def until(page: Any, expression: str) -> None:
    """The policy of the page lets no text be evaluated in it, so it is asked from outside."""
    wait_for(lambda: page.evaluate(expression), what=expression)


def wait_for_tile(page: Any, name: str, value: str) -> None:
    wait_for(lambda: tile(page, name) == value, what=f"{name} being {value}")


def press(page: Any, text: str) -> None:
    page.get_by_role("button", name=text, exact=True).click()


def confirm(page: Any, text: str) -> None:
    page.locator("dialog").get_by_role("button", name=text, exact=True).click()


def said(page: Any, text: str) -> None:
    page.locator(".toast", has_text=text).first.wait_for()


# -- looking --------------------------------------------------------------------------------------


def test_it_loads_on_each_node_and_says_who_leads(cluster, opened):
    leader = cluster.leader()
    for node in cluster.nodes:
        page = opened(origin(cluster, node))
        page.get_by_text(f"Node {leader} leads in term").wait_for()
        page.get_by_text("All of the 3 nodes answer.").wait_for()
        picture = page.locator(".cluster-picture svg").get_attribute("aria-label")
        assert f"node {leader}: ★ leads" in picture
        assert picture.count("follower") == 2


def test_a_put_is_seen_without_asking(cluster, queue, opened):
    """Within a second, and what a turn and a drawing take: it is printed, for a machine may have much else to do."""
    page = opened(origin(cluster, 1), "#/tube/seen")
    page.get_by_text("There is no such tube now").wait_for()
    page.evaluate(
        """() => new MutationObserver(() => { if (document.querySelector(".tiles")) window.seen ??= Date.now(); })
            .observe(document.getElementById("page"), { childList: true, subtree: true })"""
    )
    before = time.time() * 1000
    queue.put("seen", "x")
    until(page, "window.seen")
    print(f"a put is seen after {page.evaluate('window.seen') - before:.0f} ms")
    wait_for_tile(page, "Ready", "1")


def test_a_buried_job_is_kicked(cluster, queue, opened):
    queue.put("buried", "x")
    queue.reserve("buried").bury()
    page = opened(origin(cluster, 2), "#/tube/buried")
    page.get_by_text("1 job is buried: nobody takes it until it is kicked.").wait_for()
    page.get_by_role("button", name="buried 1").click()
    page.get_by_role("columnheader", name="Buried").wait_for()
    press(page, "Kick …")
    confirm(page, "Kick them")
    said(page, "1 job is ready.")
    wait_for_tile(page, "Buried", "0")
    assert queue.stats("buried").ready == 1


def test_from_a_tube_to_a_job_to_its_history(cluster, queue, opened):
    id = queue.put("walk", json.dumps({"to": "ann", "deep": [1, {"x": None}]}))
    page = opened(origin(cluster, 3), "#/tubes")
    page.get_by_label("Name contains").fill("walk")
    page.get_by_role("link", name="walk", exact=True).click()
    page.get_by_role("link", name=f"#{id}").click()
    page.get_by_role("heading", name=f"Job {id}").wait_for()
    assert '"to": "ann"' in page.locator("pre.body").inner_text()
    page.get_by_role("button", name="Bytes").click()
    page.locator("pre.body", has_text="000000  7b 22 74 6f").wait_for()
    assert "put" in page.get_by_role("region", name="History").inner_text()
    queue.reserve("walk")
    page.get_by_text("reserved", exact=True).first.wait_for()  # it is looked at again by itself
    page.get_by_text("Held by").wait_for()


def test_a_body_and_names_that_are_scripts_are_text(cluster, queue, opened):
    id = queue.put("hostile", SCRIPT)
    error = "<b>not bold</b>" + SCRIPT
    queue.set_policy("hostile", {"max_attempts": 1})
    queue.reserve("hostile").fail(error)
    page = opened(origin(cluster, 1), f"#/job/{id}")
    page.get_by_role("heading", name=f"Job {id}").wait_for()
    page.locator("pre.body").wait_for()
    assert page.locator("pre.body").inner_text() == SCRIPT
    assert error in page.locator(".facts").inner_text()
    page.goto(f"{origin(cluster, 1)}/#/tube/{'%3Cimg src=x onerror=alert(1)%3E'}")
    page.get_by_role("heading", name="<img src=x onerror=alert(1)>").wait_for()
    assert page.locator("main img, main script, main b b").count() == 0
    assert page.evaluate("document.querySelectorAll('script').length") == 1


def test_hundreds_of_tubes_are_sorted_filtered_and_paged_by_the_node(cluster, queue, opened):
    with queue_of(cluster) as more:
        for number in range(120):
            more.put(f"many-{number:03}", "x")
        for _ in range(3):
            more.put("many-077", "x")
    page = opened(origin(cluster, 1), "#/tubes")
    page.get_by_label("Name contains").fill("many-")
    until(page, """document.querySelector("tbody th")?.textContent === "many-077" """)
    assert page.locator("tbody tr").count() == 50
    press(page, "Next →")
    page.get_by_text("page 2").wait_for()
    page.locator("#page-next:enabled").wait_for()  # where the next page begins is known when this one is there
    page.keyboard.press("n")
    page.get_by_text("page 3").wait_for()
    until(page, """document.querySelectorAll("tbody tr").length === 20""")
    page.keyboard.press("p")
    page.get_by_text("page 2").wait_for()
    page.get_by_label("Name contains").fill("many-119")
    until(page, """document.querySelectorAll("tbody tr").length === 1""")
    page.get_by_label("Name contains").fill("no such tube")
    page.get_by_text("No tube fits the filter.").wait_for()
    page.get_by_label("Name contains").fill("many-")
    page.get_by_role("button", name="Tube", exact=True).click()
    until(page, """document.querySelector("tbody th")?.textContent === "many-000" """)
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Tube")


def queue_of(cluster: ProcessCluster) -> Client:
    return Client("raftd://{}:{}".format(*cluster.address(cluster.leader(), "client")), timeout=20)


def test_it_says_why_a_tube_does_not_drain(cluster, queue, opened):
    queue.put("stuck", "x")
    page = opened(origin(cluster, 2), "#/tube/stuck")
    page.get_by_text("No worker watches it: 1 job is ready, and nobody takes it.").wait_for()
    press(page, "Pause …")
    confirm(page, "Pause it")
    page.get_by_text("It is paused: nothing is reserved from it for another").wait_for()
    press(page, "Resume")
    said(page, "stuck goes on.")
    queue.reserve("stuck")
    page.get_by_text("Workers hold what is left: 1 job.").wait_for()


# -- doing ----------------------------------------------------------------------------------------


def test_a_job_is_put_and_a_policy_set(cluster, queue, opened):
    page = opened(origin(cluster, 1), "#/tube/made", misses=True)
    press(page, "Put a job …")
    page.get_by_label("Body").fill("by hand")
    confirm(page, "Put it")
    said(page, "is put.")
    job = queue.reserve("made", timeout=10)
    assert job.body == b"by hand"
    press(page, "Set a policy …")
    page.get_by_label("Policy (JSON)").fill('{"max_attempts": 0.5}')
    confirm(page, "Set it")
    page.locator("dialog .problem").wait_for()
    page.get_by_label("Policy (JSON)").fill('{"max_attempts": 4, "dead_letter": "made-dead"}')
    confirm(page, "Set it")
    page.locator(".facts dd", has_text="made-dead").wait_for()
    assert queue.policy("made").policy.max_attempts == 4


def test_dead_jobs_go_back_by_a_filter_and_those_that_come_later_stay(cluster, queue, opened):
    queue.set_policy("work", {"max_attempts": 1, "dead_letter": "work-dead"})
    for number in range(130):  # more than a page, and more than one step
        queue.put("work", str(number))
    for job in (queue.reserve("work") for _ in range(130)):
        job.fail("ValueError: no such file" if int(job.body) % 2 else "TimeoutError")
    page = opened(origin(cluster, 3), "#/tube/work-dead")
    page.get_by_text("130 of its jobs are dead").wait_for()
    page.get_by_label("Error contains").fill("ValueError")
    press(page, "Count")
    page.get_by_text("65 dead letters fit the filter now.").wait_for()
    queue.put("work", "later")
    queue.reserve("work").fail("ValueError: it comes later")
    press(page, "Move back …")
    page.get_by_text("65 dead letters go from work-dead back to where they died").wait_for()
    confirm(page, "Move 65")
    page.get_by_text("65 jobs moved back.").wait_for()
    wait_for_tile(page, "Dead here", "66")
    assert queue.stats("work").ready == 65
    press(page, "Count")
    page.get_by_text("1 dead letter fits the filter now.").wait_for()
    press(page, "Delete …")
    page.locator("dialog").wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")
    assert queue.stats("work-dead").ready == 66
    job = queue.reserve("work-dead")
    job.release()
    page.goto(f"{origin(cluster, 3)}/#/job/{job.id}")
    press(page, "Move back to work")
    said(page, f"Job {job.id} is ready in work.")
    page.get_by_role("button", name="Move back to work").wait_for(state="detached")
    assert queue.stats("work-dead").ready == 65


def test_a_schedule_is_run_paused_and_removed(cluster, queue, opened):
    queue.set_schedule("beat", {"tube": "beaten", "body": "x", "every_s": 3600})
    page = opened(origin(cluster, 1), "#/schedules")
    row = page.locator("tr", has_text="beat")
    row.get_by_role("button", name="Run now").click()
    said(page, "is put.")
    assert queue.stats("beaten").ready == 1
    row.get_by_role("button", name="Pause").click()
    row.get_by_text("paused").first.wait_for()
    row.get_by_role("button", name="Remove …").click()
    confirm(page, "Remove it")
    page.get_by_text("No schedules.").wait_for()


def test_the_lead_is_handed_over_and_a_backup_taken(cluster, queue, opened):
    leader = cluster.leader()
    other = next(node for node in cluster.nodes if node != leader)
    page = opened(origin(cluster, leader), "#/nodes")
    page.locator("tbody tr").nth(other - 1).get_by_role("button", name="Give it the lead …").click()
    confirm(page, "Give it the lead")
    said(page, f"Node {other} leads.")
    page.locator("tbody tr").nth(other - 1).get_by_text("★ leads").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download a backup").click()
    assert re.fullmatch(r"raftd-\d+\.backup", download.value.suggested_filename)
    assert download.value.path().stat().st_size > 200


# -- people and machines that go ------------------------------------------------------------------


def test_a_node_that_it_does_not_talk_to_dies_and_comes_back(tmp_path, opened):
    with ProcessCluster(tmp_path, 3) as cluster:
        leader = cluster.leader()
        here = next(node for node in cluster.nodes if node != leader)
        page = opened(origin(cluster, here), misses=True)
        page.get_by_text("All of the 3 nodes answer.").wait_for()
        cluster.kill(leader)
        page.get_by_text(f"Node {here} does not hear node {leader}.").wait_for()
        page.get_by_text(re.compile(rf"Node [^{leader}] leads in term")).wait_for()
        cluster.start(leader)
        page.get_by_text("All of the 3 nodes answer.").wait_for()
        page.locator(".log li").nth(1).wait_for()
        # without a majority there is no leader, and it says so
        others = [node for node in cluster.nodes if node != here]
        for node in others:
            cluster.kill(node)
        page.locator(".banner", has_text=re.compile("No leader for .* This node hears 1 of 3 nodes")).wait_for()
        for node in others:
            cluster.start(node)
        page.locator(".banner").wait_for(state="detached")


def test_its_own_node_dies_and_it_moves_to_another(tmp_path, opened):
    with ProcessCluster(tmp_path, 3) as cluster:
        cluster.leader()
        page = opened(origin(cluster, 1), "#/tubes", misses=True)
        page.get_by_text("in all").wait_for()
        cluster.kill(1)
        page.locator(".banner", has_text="Node 1 has not answered for").wait_for()
        page.locator(".banner", has_text="lives: this page moves there.").wait_for()
        page.wait_for_url(re.compile(rf"^{origin(cluster, 2)}|^{origin(cluster, 3)}"))
        page.get_by_role("heading", name="Tubes").wait_for()
        assert page.url.endswith("#/tubes")


def test_whoever_has_to_signs_in_and_sees_what_he_may(tmp_path, opened):
    with ProcessCluster(tmp_path, 1) as cluster:
        cluster.leader()
        with Connection(cluster.address(1, "client"), 10) as first:
            grants = [g.AddGrant("root", Grant(right, ALL_TUBES)) for right in Right]
            users = [g.AddUser("root"), g.AddToken("root", "t", digest_of_token("raftd-root")), *grants]
            users += [g.AddUser("ann"), g.AddToken("ann", "t", digest_of_token("raftd-ann")), g.AddGrant("ann", Grant(Right.READ, "mail"))]
            wait_for(lambda: first.ask(w.ChangeAccessRequest(1, users)).reply == r.AccessChanged(), what="the users being there")
        page = opened(origin(cluster, 1), "#/tube/mail", misses=True)
        page.get_by_role("heading", name="Sign in to test").wait_for()
        page.get_by_label("Token").fill("raftd-wrong")
        press(page, "Sign in")
        page.get_by_text("That is not known here").wait_for()
        page.get_by_label("Token").fill("raftd-root")
        press(page, "Sign in")
        press(page, "Put a job …")
        page.get_by_label("Body").fill("hello")
        confirm(page, "Put it")
        wait_for_tile(page, "Ready", "1")
        page.reload()  # the cookie is all that is needed
        wait_for_tile(page, "Ready", "1")
        press(page, "Sign out")
        page.get_by_label("Token").fill("raftd-ann")
        press(page, "Sign in")
        wait_for_tile(page, "Ready", "1")
        assert page.get_by_role("button", name="Put a job …").count() == 0
        page.get_by_role("link", name="Nodes").click()
        page.get_by_text("sees its nodes").wait_for()
        press(page, "Sign out")
        page.get_by_label("Token").fill("raftd-root")
        page.get_by_label("Only look").check()
        press(page, "Sign in")
        page.get_by_text("read only", exact=True).wait_for()
        page.get_by_role("link", name="Nodes").click()
        page.get_by_role("heading", name="Nodes").wait_for()
        assert page.get_by_role("button", name="Remove …").count() == 0


def test_a_page_that_is_open_for_long_does_not_grow(cluster, queue, opened):
    page = opened(origin(cluster, 1), "#/tubes")
    page.wait_for_selector("tbody th a")

    devtools = page.context.new_cdp_session(page)

    def size() -> tuple[int, int]:
        devtools.send("HeapProfiler.collectGarbage")
        return page.evaluate("document.querySelectorAll('*').length"), page.evaluate("performance.memory.usedJSHeapSize")

    def told(times: int) -> None:
        """So many summaries, as they would come in an hour, all at once."""
        page.evaluate(
            """async (times) => {
                const { live, state } = await import("/page/app.js");
                for (let round = 0; round < times; round += 1) {
                    live.handlers.told({ ...state.summary, tubes: structuredClone(state.summary.tubes) });
                    if (round % 100 === 0) await new Promise(requestAnimationFrame);
                }
            }""",
            times,
        )

    told(2_000)
    before = size()
    told(10_000)
    after = size()
    print(f"elements {before[0]} -> {after[0]}, heap {before[1] >> 10} -> {after[1] >> 10} KiB")
    assert after[0] == before[0]
    assert after[1] < before[1] + (8 << 20)


# -- for everybody --------------------------------------------------------------------------------

VIEWS = ("#/", "#/tubes", "#/tube/kinds", "#/job/KIND", "#/schedules", "#/nodes", "#/users")


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_nothing_serious_is_found_by_axe_and_nothing_is_cut_off(cluster, queue, opened, options):
    from axe_playwright_python.base import AXE_FILE_PATH

    id = queue.put("kinds", '{"a": 1}')
    queue.set_policy("kinds", {"max_attempts": 3})
    queue.set_schedule("beat", {"tube": "kinds", "body": "x", "every_s": 3600})
    page = opened(origin(cluster, 1), **options)
    found = []
    for view in VIEWS:
        page.goto(f"{origin(cluster, 1)}/{view.replace('KIND', str(id))}")
        page.locator("h1").wait_for()
        until(page, "!document.querySelector('main').textContent.includes('Asking the node')")
        page.evaluate(AXE_FILE_PATH.read_text())
        result = page.evaluate("axe.run()")
        found += [
            f"{view}: {one['id']}: {one['nodes'][0]['html']}" for one in result["violations"] if one["impact"] in ("serious", "critical")
        ]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
    page.goto(f"{origin(cluster, 1)}/#/tube/kinds")
    press(page, "Put a job …")
    page.locator("dialog").wait_for()
    result = page.evaluate("axe.run()")
    found += [f"a dialog: {one['id']}" for one in result["violations"] if one["impact"] in ("serious", "critical")]
    assert found == []


def test_it_is_used_with_the_keyboard_alone(cluster, queue, opened):
    queue.put("keys", "x")
    page = opened(origin(cluster, 1))
    page.get_by_role("heading", name="Overview").wait_for()
    page.keyboard.press("g")
    page.keyboard.press("t")
    page.get_by_role("heading", name="Tubes").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("keys")
    until(page, """document.querySelectorAll("tbody th a").length === 1""")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "keys":
            break
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="keys").wait_for()
    page.keyboard.press("?")
    page.get_by_role("heading", name="Keyboard").wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")


def test_colours_are_chosen_and_kept(cluster, opened):
    page = opened(origin(cluster, 1))
    press_dark = page.get_by_role("button", name="Change to dark colours")
    press_dark.click()
    page.reload()
    page.get_by_role("button", name="Change to light colours").wait_for()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


# -- what went wrong once ---------------------------------------------------------------------------


def buried(queue: Client, tube: str, count: int) -> None:
    for number in range(count):
        queue.put(tube, str(number))
    for _ in range(count):
        queue.reserve(tube).bury()


def test_a_node_that_hangs_is_noticed(tmp_path, opened):
    with ProcessCluster(tmp_path, 3) as cluster:
        cluster.leader()
        page = opened(origin(cluster, 1), "#/nodes", misses=True)
        page.get_by_text("3 nodes, all heard.").wait_for()
        cluster.running[1].process.send_signal(signal.SIGSTOP)
        page.locator(".banner", has_text="Node 1 has not answered for").wait_for()
        page.wait_for_url(re.compile(rf"^{origin(cluster, 2)}|^{origin(cluster, 3)}"))
        said(page, "Node 1 did not answer: this is node")


def test_a_count_of_another_filter_is_not_acted_on(cluster, queue, opened):
    buried(queue, "filtered", 2)
    page = opened(origin(cluster, 1), "#/tube/filtered")
    page.get_by_text("2 jobs are buried").wait_for()

    def slowly(route: Any) -> None:
        time.sleep(1)  # as a node that is slow to count
        route.continue_()

    page.route("**/dead?**", slowly)
    press(page, "Count")
    page.get_by_label("Error contains").fill("no job has this error")
    page.wait_for_timeout(2_000)  # until the answer to the first count is there
    assert page.get_by_text("the filter now").count() == 0
    press(page, "Count")
    page.get_by_text("No job fits the filter.").wait_for()


def test_what_is_stopped_in_the_middle_says_how_far_it_came(cluster, queue, opened):
    buried(queue, "many-buried", 3)
    page = opened(origin(cluster, 1), "#/tube/many-buried")
    press(page, "Count")
    page.get_by_text("3 buried jobs fit the filter now.").wait_for()
    # more steps than three jobs would take
    page.route("**/replay", lambda route: route.fulfill(json={"done": 1, "skipped": 0, "after": 1, "more": True}))
    press(page, "Delete …")
    page.get_by_text("3 jobs are gone for good").wait_for()
    confirm(page, "Delete 3")
    page.locator("dialog [role=status]").wait_for()
    confirm(page, "Stop")
    page.get_by_text("Count again to go on.").wait_for()
    page.locator("dialog").wait_for(state="detached")
    assert queue.stats("many-buried").buried == 3


def test_a_double_click_puts_one_job(cluster, queue, opened):
    page = opened(origin(cluster, 1), "#/tube/doubled")
    press(page, "Put a job …")
    page.get_by_label("Body").fill("once")
    page.locator("dialog").get_by_role("button", name="Put it").dblclick()
    said(page, "is put.")
    page.locator("dialog").wait_for(state="detached")
    assert queue.stats("doubled").ready == 1


def test_a_large_number_in_a_body_is_shown_as_it_is(cluster, queue, opened):
    id = queue.put("exact", '{"id": 12345678901234567890}')
    page = opened(origin(cluster, 1), f"#/job/{id}")
    page.locator("pre.body").wait_for()
    assert page.locator("pre.body").inner_text() == '{"id": 12345678901234567890}'


def test_quick_pages_are_not_the_same_page(cluster, queue, opened):
    for number in range(160):
        queue.put(f"quick-{number:03}", "x")
    page = opened(origin(cluster, 2), "#/tubes")
    page.get_by_label("Name contains").fill("quick-")
    page.get_by_role("button", name="Tube", exact=True).click()
    until(page, 'document.querySelectorAll("tbody tr").length === 50')
    for _ in range(5):
        page.keyboard.press("n")
    wait_for(lambda: page.locator("tbody th").first.inner_text() == f"quick-{50 * (number_of_page(page) - 1):03}", what="the page it says")


def number_of_page(page: Any) -> int:
    return int(page.locator(".pager span").inner_text().removeprefix("page "))
