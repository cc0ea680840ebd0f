"""Partitions: agents in network namespaces of their own, cut off by nftables."""

import contextlib
import os
import subprocess
import time

import cluster
from cluster import wait_until
from row import row
from rows_kills import PATIENT, verify

HOST = "10.211.7.1"


def sh(*command):
    subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def namespaces(count):
    """A bridge with HOST and one namespace per node behind it. Yields their names."""
    tag = f"sy{os.getpid() % 10000}"
    names = [f"{tag}n{i}" for i in range(count)]
    sh("ip", "link", "add", tag, "type", "bridge")
    try:
        sh("ip", "addr", "add", f"{HOST}/24", "dev", tag)
        sh("ip", "link", "set", tag, "up")
        for index, name in enumerate(names):
            sh("ip", "netns", "add", name)
            sh("ip", "link", "add", f"{tag}v{index}", "type", "veth", "peer", "name", "eth0", "netns", name)
            sh("ip", "link", "set", f"{tag}v{index}", "master", tag, "up")
            sh("ip", "-n", name, "addr", "add", f"10.211.7.{index + 2}/24", "dev", "eth0")
            sh("ip", "-n", name, "link", "set", "lo", "up")
            sh("ip", "-n", name, "link", "set", "eth0", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", tag], capture_output=True)


RULES = {"both": "input drop; output drop", "in": "input drop", "out": "output drop", "some": "input random"}


def cut(name, how="both"):
    rules = ["add table inet faults"]
    for hook in ("input", "output"):
        if f"{hook} drop" in RULES[how]:
            rules.append(f"add chain inet faults {hook} {{ type filter hook {hook} priority 0; policy accept; }}")
            side = "saddr" if hook == "input" else "daddr"
            rules.append(f"add rule inet faults {hook} ip {side} 10.211.7.0/24 drop")
        elif f"{hook} random" in RULES[how]:
            rules.append(f"add chain inet faults {hook} {{ type filter hook {hook} priority 0; policy accept; }}")
            rules.append(f"add rule inet faults {hook} ip saddr 10.211.7.0/24 numgen random mod 100 < 30 drop")
    subprocess.run(["ip", "netns", "exec", name, "nft", "-f", "-"], input="\n".join(rules), text=True, check=True)


def heal(name):
    subprocess.run(["ip", "netns", "exec", name, "nft", "delete", "table", "inet", "faults"], capture_output=True)


@contextlib.contextmanager
def networked(nodes=2, ranks=1, ttl=10.0, **options):
    """A cluster whose coordinator listens on the bridge and whose agents are in namespaces."""
    with namespaces(nodes) as names:
        with cluster.cluster(nodes=0, ranks=ranks, ttl=ttl, listen_host=HOST, **options) as made:
            for index, name in enumerate(names):
                made.start_agent(f"node{index}", prefix=["ip", "netns", "exec", name],
                                 flags=["--address", f"10.211.7.{index + 2}"])
            yield made, dict(zip((f"node{i}" for i in range(nodes)), names))


@row("9", "partition between coordinator and agent",
     "nft drops in the agent's namespace: both ways, one way, 30 % of packets, flapping; shorter and longer than the lease",
     needs=("root", "ip", "nft"))
def partition(run):
    for how in ("both", "in", "out", "some"):
        with networked() as (made, spaces):
            name = made.submit("job", steps=300, step_ms=15, every=10)
            made.wait_step(name, 10)
            node = made.get(name).attempts[0].nodes[0]
            cut(spaces[node], how)
            time.sleep(made.ttl * 0.25)
            heal(spaces[node])
            made.wait_final()
            made.expect(name, "SUCCEEDED", attempts=1)
            run.add()
            verify(made)
    for how in ("both", "in", "out"):
        with networked() as (made, spaces):
            name = made.submit("job", steps=1400, step_ms=15, every=10)
            made.wait_step(name, 10)
            node = made.get(name).attempts[0].nodes[0]
            cut(spaces[node], how)
            wait_until("the node to be lost", lambda: len(made.get(name).attempts) == 2, 30)
            time.sleep(1)
            heal(spaces[node])
            made.wait_final()
            made.expect(name, "SUCCEEDED", "NODE_LOST", attempts=2)
            run.add()
            verify(made)
    with networked() as (made, spaces):
        name = made.submit("job", steps=400, step_ms=15, every=10, **PATIENT)
        made.wait_step(name, 10)
        for _ in range(4 if run.fast else 12):
            for space in spaces.values():
                cut(space, run.random.choice(["both", "in", "out"]))
                time.sleep(run.random.uniform(0, 0.3))
            for space in spaces.values():
                heal(space)
                time.sleep(run.random.uniform(0, 0.3))
            run.add()
        made.wait_final()
        made.expect(name, "SUCCEEDED", attempts=1)
        verify(made)


@row("22", "a healthy job that cannot be asked, 25 times", "25 cuts of a quarter of the lease: no restart (skypilot #10155)",
     needs=("root", "ip", "nft"))
def blips(run):
    with networked(nodes=1) as (made, spaces):
        name = made.submit("job", steps=2500, step_ms=10, every=50)
        made.wait_step(name, 10)
        for _ in range(25):
            cut(spaces["node0"])
            time.sleep(made.ttl * 0.08)
            heal(spaces["node0"])
            # A connection that lost packets waits before it sends them again.
            before = made.steps(name)
            wait_until("news of the job", lambda: made.steps(name) > before or made.state(name) in cluster.FINAL, 10)
            run.add()
        made.wait_final()
        made.expect(name, "SUCCEEDED", attempts=1)
        verify(made)


@row("23", "the job succeeds while cut off, then the network heals", "it ends inside the partition: SUCCEEDED, not run again"
     " (skypilot #6133)", needs=("root", "ip", "nft"))
def success_in_the_dark(run):
    for _ in range(1 if run.fast else 3):
        with networked(nodes=2) as (made, spaces):
            name = made.submit("job", steps=60, step_ms=15, every=0)
            made.wait_step(name, 10)
            node = made.get(name).attempts[0].nodes[0]
            cut(spaces[node])
            trace = made.job_dir(name) / "trace/rank-0.log"
            wait_until("the last step", lambda: " step 60" in trace.read_text(), 10)
            time.sleep(0.5)
            heal(spaces[node])
            made.wait_final()
            made.expect(name, "SUCCEEDED", attempts=1)
            run.add()
            verify(made)
