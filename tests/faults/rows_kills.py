"""Random kills, and kills of chosen programs at chosen times."""

import os
import pathlib
import signal
import subprocess
import time

import check
import cluster
from cluster import kill, wait_until
from row import row

# Kills that pile up may use up what stops a job that never gets anywhere; the campaign is about what is lost or
# run twice, so that its jobs are allowed to be unlucky for longer.
PATIENT = {"max_user_retries": 50, "no_progress_limit": 50}


def verify(made, **options):
    made.stop()
    faults = check.check(made, **options)
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:10])


def failpoints(program):
    """(name, actions) of every failpoint of the program."""
    text = subprocess.run([cluster.BIN / program, "--print-failpoints"], capture_output=True, text=True,
                          check=True).stdout
    return [(line.split()[0], line.split()[1:]) for line in text.splitlines()]


def campaign(run, kills, nodes=3):
    """Kills random programs at random instants while jobs come and go; everything ends, then all is checked."""
    rng = run.random
    with cluster.cluster(nodes=nodes, ranks=2, ttl=4.0) as made:
        names, done = [], 0
        while done < kills:
            live = made.unfinished(names[-40:])
            while len(live) < 6:
                name = made.submit(f"job-{len(names)}", ranks=rng.choice([1, 1, 2]), steps=rng.randint(5, 60),
                                   step_ms=rng.randint(1, 12), every=rng.randint(2, 10),
                                   plan={"prep_ms": rng.choice([0, 0, 30])}, **PATIENT)
                names.append(name)
                live.add(name)
            time.sleep(rng.uniform(0.0, 0.3))
            what = rng.choice(["coordinator", "agent", "agent", "trainer", "trainer", "shim", "agent+shim"])
            if what == "coordinator":
                made.restart_coordinator()
            elif what == "agent":
                made.restart_agent(rng.choice(sorted(made.agents)), wait=False)
            else:
                victims = {"trainer": made.trainers, "shim": made.shims, "agent+shim": made.shims}[what]()
                if not victims:
                    continue
                if what == "agent+shim":
                    kill([a.process.pid for a in made.agents.values()] + victims)
                    for name in sorted(made.agents):
                        made.restart_agent(name, wait=False)
                else:
                    kill([rng.choice(victims)])
            done += 1
            run.add()
            run.note(f"kills of {what}")
        made.wait_final(seconds=120)
        for name in names:
            run.note(f"jobs {made.state(name)}")
        verify(made)


@row("K", "random kills", "SIGKILL to coordinator, agent, shim or trainer at random instants; short jobs, six at a time",
     fast=True)
def random_kills(run):
    wanted = run.kills or (20 if run.fast else 2000)
    end = time.monotonic() + run.minutes * 60 if run.minutes else None
    while run.runs < wanted and (end is None or time.monotonic() < end):
        campaign(run, min(200, wanted - run.runs))


@row("3", "kill -9 one trainer, or all", "SIGKILL; the gang stops within 5 s and resumes from the newest checkpoint",
     fast=True)
def trainer_killed(run):
    for everyone in (False, True) if run.fast else (False, True) * 3:
        with cluster.cluster(nodes=2, ranks=2) as made:
            name = made.submit("gang", ranks=3, steps=60, step_ms=15, every=10)
            made.wait_step(name, 25)
            before = made.trainers()
            begin = time.monotonic()
            kill(before if everyone else [run.random.choice(before)])
            wait_until("the gang to be gone", lambda: not set(before) & set(made.trainers()), 5)
            assert time.monotonic() - begin < 5
            made.wait_final()
            reply = made.expect(name, "SUCCEEDED", "TRAINER_SIGNAL", attempts=2)
            assert reply.attempts[0].failure.signal == 9, reply.attempts[0]
            begins = [line.step for line in check.read_trace(made.job_dir(name) / "trace/rank-0.log")
                      if line.what == "begin"]
            assert begins[1] >= 20, f"attempts began at steps {begins}; step 20 was committed before the kill"
            run.add()
            verify(made)


@row("2", "kill -9 agent, any time", "SIGKILL at random instants; trainers keep running under their shim and are adopted",
     fast=True)
def agent_killed(run):
    with cluster.cluster(nodes=1, ranks=2, ttl=6.0) as made:
        name = made.submit("kept", ranks=2, steps=200 if run.fast else 800, step_ms=10, every=20)
        made.wait_step(name, 5)
        pids = made.trainers()
        assert len(pids) == 2, pids
        for _ in range(3 if run.fast else 12):
            time.sleep(run.random.uniform(0.05, 0.4))
            made.restart_agent("node0")
            run.add()
        # The same processes all the way, unless the job ended before the last kill.
        assert set(made.trainers()) in (set(pids), set()), f"{made.trainers()} instead of {pids}"
        made.wait_final()
        made.expect(name, "SUCCEEDED", attempts=1)
        verify(made)


def agent_crash_at(point, action, hit):
    """One history: the agent dies at its `hit`-th pass of the point. Its number of attempts; 0: it did not die."""
    with cluster.cluster(nodes=1, ranks=2, ttl=12.0) as made:
        made.restart_agent("node0", signal.SIGTERM,
                           environment={"SWITCHYARD_FAILPOINTS": f"{point}={action}@{hit}"}, wait=False)
        names = [made.submit(f"job-{i}", steps=24, step_ms=5, every=8) for i in range(2)]
        deaths, end = 0, time.monotonic() + 60
        while made.unfinished(names):
            assert time.monotonic() < end, f"{point}={action}@{hit}: not done after 60 s"
            code = made.agents["node0"].process.poll()
            if code is not None:
                assert code == -signal.SIGKILL, f"the agent exited {code}"
                deaths += 1
                made.start_agent("node0")
            time.sleep(0.01)
        replies = [made.expect(name, "SUCCEEDED") for name in names]
        for reply in replies:
            # Its trainers are adopted; what had not begun may be ordered anew.
            used = [a for a in reply.attempts if cluster.job_pb2.Attempt.State.Name(a.state) != "RELEASED"]
            assert len(used) == 1, f"{point}={action}@{hit}: {reply.attempts}"
        # It may also die after the end, while it cleans up.
        died = deaths or made.agents["node0"].process.poll() is not None
        verify(made)
        return died


@row("2f", "kill -9 agent at each failpoint", "each place of `switchyard-agent --print-failpoints` x SIGKILL (and torn "
     "write) x its 1st, 2nd, 5th pass; the trainers are adopted, no second attempt")
def agent_failpoints(run):
    never = []
    for point, actions in failpoints("switchyard-agent"):
        for action in (a for a in ("crash", "partial") if a in actions):
            reached = [agent_crash_at(point, action, hit) for hit in ((1,) if run.fast else (1, 2, 5))]
            run.add(sum(map(bool, reached)))
            run.note(action, sum(map(bool, reached)))
            if not any(reached):
                never.append(point)
    assert not never, f"these failpoints were never reached: {never}"


@row("4", "kill -9 shim; shim and agent together", "SIGKILL; no process of the attempt is left, the next one runs alone")
def shim_killed(run):
    for with_agent in (False, True) * (1 if run.fast else 4):
        with cluster.cluster(nodes=1, ranks=2) as made:
            name = made.submit("gang", ranks=2, steps=60, step_ms=15, every=10)
            made.wait_step(name, 15)
            before, shims = made.trainers(), made.shims()
            assert shims, "no shim is running"
            kill(shims + ([made.agents["node0"].process.pid] if with_agent else []))
            wait_until("no orphan", lambda: not set(before) & set(made.trainers()), 5)
            if with_agent:
                made.restart_agent("node0")
            made.wait_final()
            made.expect(name, "SUCCEEDED", attempts=2)
            run.add()
            verify(made)


@row("5", "everything at once, and the host reboots",
     "SIGKILL to all programs; agents come back with another boot id (bind mount in a mount namespace)",
     needs=("root", "unshare"))
def power_cycle(run):
    for _ in range(1 if run.fast else 3):
        with cluster.cluster(nodes=2, ranks=2, ttl=60.0) as made:
            name = made.submit("gang", ranks=4, steps=60, step_ms=15, every=10)
            made.wait_step(name, 25)
            kill([a.process.pid for a in made.agents.values()] + [made.coordinator.process.pid] + made.shims() +
                 made.trainers())
            begin = time.monotonic()
            made.restart_coordinator()
            boot_id = made.folder / "boot_id"
            boot_id.write_text("11111111-2222-3333-4444-555555555555\n")
            mount = f"mount --bind {boot_id} /proc/sys/kernel/random/boot_id && exec \"$@\""
            for agent in sorted(made.agents):
                made.restart_agent(agent, prefix=["unshare", "-m", "sh", "-c", mount, "agent"])
            made.wait_final(seconds=30)
            assert time.monotonic() - begin < 30, "waited for the lease of 60 s"
            made.expect(name, "SUCCEEDED", "NODE_REBOOT", attempts=2)
            run.add()
            verify(made)


@row("6", "SIGSTOP past the lease, then SIGCONT",
     "coordinator, agent, trainer, or a whole node is stopped for longer than TTL + E and then goes on")
def stopped(run):
    for who in ("coordinator", "agent", "trainer", "node"):
        with cluster.cluster(nodes=2, ranks=1, ttl=2.0) as made:
            name = made.submit("gang", ranks=1, steps=400, step_ms=20, every=10)
            made.wait_step(name, 15)
            node = made.get(name).attempts[0].nodes[0]
            pids = {"coordinator": [made.coordinator.process.pid], "trainer": made.trainers(),
                    "agent": [made.agents[node].process.pid],
                    "node": [made.agents[node].process.pid] + made.shims() + made.trainers()}[who]
            kill(pids, signal.SIGSTOP)
            time.sleep(made.ttl * 1.01 + 2 + 1.5)
            kill(pids, signal.SIGCONT)
            made.wait_final(seconds=60)
            reply = made.expect(name, "SUCCEEDED")
            run.note(f"{who}: attempts {len(reply.attempts)}")
            if who in ("agent", "node"):
                assert len(reply.attempts) == 2, f"{who} was stopped past its lease, but: {reply.attempts}"
            run.add()
            # Nobody can stop a frozen node from waking up late; it must not publish.
            verify(made, frozen=who == "node")


@row("7", "a trainer spins, no steps", "one rank burns the CPU inside a step: HANG by the watchdog, then a retry")
def spinning(run):
    with cluster.cluster(nodes=1, ranks=2, agent_flags=["--hang-floor", "1s"]) as made:
        name = made.submit("gang", ranks=2, steps=40, step_ms=10, every=10,
                           plan={"faults": [{"attempt": 1, "rank": 0, "step": 25, "do": "spin"}]})
        made.wait_final()
        made.expect(name, "SUCCEEDED", "HANG", attempts=2)
        run.add()
        verify(made)


@row("8", "a rank is far slower than the others", "the slow rank is named by the condition STRAGGLING; the job goes on")
def straggler(run):
    with cluster.cluster(nodes=1, ranks=2) as made:
        name = made.submit("gang", ranks=2, steps=120, step_ms=10, every=0,
                           plan={"faults": [{"rank": 1, "step": 10, "do": "slow:4"}]})

        def straggling():
            return [c for c in made.get(name).job.conditions if c.type == cluster.job_pb2.Condition.STRAGGLING]
        shown = wait_until("the condition STRAGGLING", straggling, 20)
        assert "rank 1" in shown[0].message, shown
        made.wait_final()
        made.expect(name, "SUCCEEDED", attempts=1)
        run.add()
        verify(made)


@row("20", "an agent that comes and goes", "killed and restarted every half second, 20 times; another node is well")
def flapping(run):
    with cluster.cluster(nodes=2, ranks=1) as made:
        names = [made.submit(f"job-{i}", steps=80, step_ms=10, every=10, **PATIENT) for i in range(6)]
        for _ in range(6 if run.fast else 20):
            time.sleep(0.5)
            made.restart_agent("node0", wait=False)
            run.add()
        made.wait_final()
        for name in names:
            made.expect(name, "SUCCEEDED")
        verify(made)


@row("27", "out of memory",
     "memory cgroup: a trainer, the agent or the coordinator is killed by the kernel's OOM killer",
     needs=("root", "/sys/fs/cgroup/memory"))
def out_of_memory(run):
    for who in ("trainer", "agent", "coordinator"):
        group = pathlib.Path(f"/sys/fs/cgroup/memory/sy-faults-{os.getpid()}")
        group.mkdir()
        try:
            with cluster.cluster(nodes=1, ranks=1) as made:
                plan = {"faults": [{"attempt": 1, "step": 15, "do": "memory:900"}]} if who == "trainer" else {}
                name = made.submit("job", steps=60, step_ms=15, every=10, plan=plan)
                made.wait_step(name, 5)
                daemon = made.coordinator if who == "coordinator" else made.agents["node0"]
                pid = made.trainers()[0] if who == "trainer" else daemon.process.pid
                used = _resident_bytes(pid)
                (group / "cgroup.procs").write_text(str(pid))
                if who == "trainer":
                    (group / "memory.limit_in_bytes").write_text(str(400 << 20))
                else:
                    # A hog beside it in the same group; the daemon has the higher score, so that it goes.
                    (group / "memory.limit_in_bytes").write_text(str(used + (64 << 20)))
                    pathlib.Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
                    hog = subprocess.Popen(["sh", "-c", f"echo $$ > {group}/cgroup.procs; exec /usr/bin/python3 -c "
                                            "'b = bytearray(200 << 20)'"])
                    wait_until(f"the {who} to be killed", lambda: daemon.process.poll() == -signal.SIGKILL, 20)
                    hog.kill()
                    hog.wait()
                    if who == "agent":
                        made.start_agent("node0")
                    else:
                        made.restart_coordinator()
                made.wait_final()
                made.expect(name, "SUCCEEDED", "OOM_HOST" if who == "trainer" else None)
                run.add()
                verify(made)
        finally:
            wait_until("the cgroup to be empty", lambda: not (group / "cgroup.procs").read_text().strip(), 10)
            group.rmdir()


def _resident_bytes(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
