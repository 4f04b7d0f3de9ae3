"""Tools as Jobs of a real cluster: what the fake one can't prove."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from cluster_place import Place
from support.stack import Stack, seqs, shell, wait_for

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]
WAIT_S = 300


def code(source: str, **more: Any) -> dict[str, Any]:
    return {"tool": "code", "args": {"language": "python", "source": source}, **more}


def lines(events: list[dict[str, Any]], stream: str = "stdout") -> list[str]:
    return [e["content"] for e in events if e["type"] == "log" and e.get("stream") == stream]


def ended(stack: Stack, *steps: dict[str, Any], **body: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    run_id = stack.submit(*steps, **body)
    run = stack.wait_end(run_id, WAIT_S)
    return run, stack.events(run_id)


def test_steps_work_in_the_runs_files(stack: Stack, place: Place) -> None:
    run, events = ended(
        stack,
        {"tool": "file_write", "args": {"path": "in.txt", "content": "b\na\n"}},
        shell("sort in.txt > out.txt; rm in.txt; echo '$$' $(echo sub)"),
        code("import sys; print(open('out.txt').read().split()); print('careful', file=sys.stderr)"),
    )
    assert (run["status"], run["error"]) == ("succeeded", None)
    assert lines(events) == ["$$ sub", "['a', 'b']"]
    assert lines(events, "stderr") == ["careful"]
    made = {(e["path"], e["size"]) for e in events if e["type"] == "artifact"}
    assert made == {("in.txt", 4), ("out.txt", 4)}
    [*_, last] = [e for e in events if e["type"] == "step"]
    assert {"created", "scheduled", "pulled", "synced", "first_line", "ended"} <= last["stages"].keys()
    place.wait_nothing_left()


def test_what_a_tool_is_allowed(stack: Stack) -> None:
    """Not root, nothing writable but its places, no token, no name of our services."""
    script = (
        "id -u; touch /etc/x 2>/dev/null || echo read-only; "
        "ls /var/run/secrets/kubernetes.io 2>/dev/null || echo no token; "
        "cat /run/tailrun/sync.json 2>/dev/null || echo no addresses; "
        "grep -c NoNewPrivs:.1 /proc/self/status; grep CapEff /proc/self/status"
    )
    _, events = ended(stack, shell(script))
    shown = lines(events)
    assert shown[:5] == ["10001", "read-only", "no token", "no addresses", "1"]
    assert int(shown[5].split()[1], 16) == 0


def test_every_line_of_a_log_that_is_rotated_comes_or_is_told(stack: Stack) -> None:
    """300 000 lines are several of the kubelet's files."""
    run, events = ended(stack, shell("seq -f 'line %.0f of many more' 1 300000", cpu="1"))
    assert run["status"] == "succeeded"
    lost = sum(e["lost"] for e in events if e["type"] == "gap")
    told = [int(text.split()[1]) for text in lines(events)]
    assert len(told) + lost == 300_000
    assert told == sorted(set(told))
    assert seqs(events) == list(range(1, len(events) + 1))


@pytest.mark.parametrize(
    ("command", "within_s"),
    [("echo ready; exec sleep 600", 3), ("trap '' TERM; echo ready; while :; do sleep 1; done", 12)],
)
def test_a_cancel_is_bounded_and_leaves_nothing(
    stack: Stack, place: Place, command: str, within_s: float
) -> None:
    run_id = stack.submit(shell(command))
    stack.watch(run_id).wait_line("ready", WAIT_S)
    began = time.monotonic()
    stack.cancel(run_id)
    run = stack.wait_end(run_id, WAIT_S)
    assert run["status"] == "cancelled"
    assert time.monotonic() - began < within_s
    place.wait_nothing_left()


def test_out_of_memory_is_named_and_keeps_the_files(stack: Stack) -> None:
    source = "open('made', 'w').write('x')\nprint('go', flush=True)\nx = bytearray(900_000_000)\nprint(x[0])"
    run, events = ended(stack, code(source), max_attempts=1)
    assert run["error"]["code"] == "oom_killed"
    assert lines(events) == ["go"]
    assert stack.http.get(f"/v1/runs/{run['run_id']}/files/made").text == "x"


def test_an_image_that_no_registry_has_fails_for_good(stack: Stack) -> None:
    run, _ = ended(stack, shell("true", image="NO-SUCH:image"))
    assert (run["error"]["code"], run["attempt"]) == ("image_pull", 1)
    assert "NO-SUCH:image" in run["error"]["message"]


def test_a_registry_that_does_not_answer_is_told_while_it_is_waited_for(stack: Stack, place: Place) -> None:
    run_id = stack.submit(shell("true", image="localhost:1/no/such:image"))
    wait_for(lambda: any("localhost:1" in x for x in lines(stack.events(run_id), "system")), "word", 120)
    stack.cancel(run_id)
    assert stack.wait_end(run_id, WAIT_S)["status"] == "cancelled"
    place.wait_nothing_left()


def test_a_program_that_is_not_there_fails_for_good(stack: Stack) -> None:
    run, _ = ended(stack, argv=["no-such-program"])
    assert (run["error"]["code"], run["attempt"]) == ("start_failed", 1)


def test_a_used_up_quota_is_told_while_it_is_waited_for(stack: Stack, place: Place) -> None:
    quotas = f"/api/v1/namespaces/{place.namespace}/resourcequotas"
    place.create(quotas, "v1", "ResourceQuota", "none", spec={"hard": {"pods": "0"}})
    try:
        wait_for(lambda: place._do("get", f"{quotas}/none").get("status", {}).get("hard"), "the quota", 60)
        run_id = stack.submit(shell("echo ran"))
        word = "exceeded quota"
        wait_for(lambda: any(word in x for x in lines(stack.events(run_id), "system")), word, 60)
    finally:
        place.delete("resourcequotas/none")
    stack.cancel(run_id)
    assert stack.wait_end(run_id, WAIT_S)["status"] == "cancelled"
    place.wait_nothing_left()


def test_a_tool_reaches_nothing_but_its_files(stack: Stack, place: Place) -> None:
    """With the policies that a deployment has: nothing in, out only to the API."""
    policies = f"/apis/networking.k8s.io/v1/namespaces/{place.namespace}/networkpolicies"
    to_api = {"ipBlock": {"cidr": f"{os.environ['TAILRUN_POD_HOST']}/32"}}
    spec = {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "egress": [{"to": [to_api], "ports": [{"port": stack.port}]}],
    }
    place.create(policies, "networking.k8s.io/v1", "NetworkPolicy", "closed", spec=spec)
    try:
        other = stack.submit(shell("python3 -m http.server 8000 >/dev/null 2>&1 & echo up; sleep 60"))
        stack.watch(other).wait_line("up", WAIT_S)
        [pod] = place.all("pods")
        address = pod["status"]["podIP"]
        source = (
            "import os, socket, time\n"
            "time.sleep(5)\n"  # rules follow a new pod with a delay
            "metadata, api = ('169.254.169.254', 80), (os.environ['KUBERNETES_SERVICE_HOST'], 443)\n"
            f"for where in (metadata, api, ('{address}', 8000), ('1.1.1.1', 443)):\n"
            "    try:\n"
            "        socket.create_connection(where, 3).close()\n"
            "        print('REACHED', where)\n"
            "    except OSError as error:\n"
            "        print('shut')\n"
        )
        _, events = ended(stack, code(source))
        assert lines(events) == ["shut"] * 4, "is this cluster's CNI one that enforces NetworkPolicy?"
        stack.cancel(other)
        stack.wait_end(other, WAIT_S)
    finally:
        place._do("delete", f"{policies}/closed")


def test_a_worker_that_dies_in_mid_step_costs_nothing(stack: Stack, place: Place) -> None:
    place.wait_nothing_left()  # of the tests before
    run_id = stack.submit(shell("for i in $(seq 1 60); do echo line $i; sleep 0.2; done; echo kept > file"))
    watcher = stack.watch(run_id)
    watcher.wait_line("line 10", WAIT_S)
    [job] = place.all("jobs")
    stack.owner(run_id).kill()
    stack.workers.append(stack.add_worker(len(stack.workers)))
    events = watcher.finish(WAIT_S)
    assert lines(events) == [f"line {n}" for n in range(1, 61)]
    assert seqs(events) == list(range(1, len(events) + 1))
    assert stack.run(run_id)["attempt"] == 2
    assert f"re-attached to Job {job['metadata']['name']}" in lines(events, "system")
    assert stack.http.get(f"/v1/runs/{run_id}/files/file").text == "kept\n"


def test_a_drained_node_evicts_the_step(stack: Stack, place: Place) -> None:
    place.wait_nothing_left()  # of the tests before
    run_id = stack.submit(shell("echo up; sleep 600"), max_attempts=1)
    stack.watch(run_id).wait_line("up", WAIT_S)
    [pod] = place.all("pods")
    place.evict(pod["metadata"]["name"])
    run = stack.wait_end(run_id, WAIT_S)
    assert (run["status"], run["error"]["code"]) == ("failed", "evicted")
    place.wait_nothing_left()


def test_twenty_runs_at_once(stack: Stack, place: Place) -> None:
    runs = [stack.submit(shell(f"echo {n} > out; cat out")) for n in range(20)]
    for n, run_id in enumerate(runs):
        run = stack.wait_end(run_id, WAIT_S)
        assert (run["status"], run["error"]) == ("succeeded", None)
        assert lines(stack.events(run_id)) == [str(n)]
    place.wait_nothing_left()


def test_two_hundred_megabytes_in_five_thousand_files(stack: Stack) -> None:
    make = "mkdir d; for i in $(seq 1 5000); do head -c 40000 /dev/urandom > d/$i; done; cat d/* | md5sum"
    run, events = ended(stack, shell(make, cpu="1"), shell("ls d | wc -l; cat d/* | md5sum", cpu="1"))
    assert (run["status"], run["error"]) == ("succeeded", None)
    first, count, second = lines(events)
    assert (count, first) == ("5000", second)
