"""The coordinator: crashes at every failpoint, clients that repeat, vanish or do not read, limits of the process."""

import concurrent.futures
import pathlib
import resource
import signal
import subprocess
import time
import uuid

import cluster
import grpc
from cluster import BIN, kill, pb, wait_until
from row import row
from rows_kills import failpoints, verify

# What a failpoint needs beyond a job with checkpoints, of which only the newest is kept.
NEEDS_CANCEL = {"cancel_job.before_store", "cancel_job.before_answer"}
NEEDS_LOST_NODE = {"scheduler.before_node_lost"}
NEEDS_DOWNLOAD = {"download.before_chunk"}
NEEDS_GARBAGE = {"collect.before_remove"}
# Reached only by `switchyardd backup` and restore, by a migration, or when a disk is full: their own rows.
ELSEWHERE = {"backup.before_rename", "backup.after_rename", "restore.before_rename", "restore.between_steps",
             "migrate.before_commit", "ballast.before_free"}


def supervise(made, future, seconds=60):
    """Restarts the coordinator without failpoints when it has died. Returns (deaths, longest start)."""
    deaths, longest, end = 0, 0.0, time.monotonic() + seconds
    while not future.done():
        assert time.monotonic() < end, f"not done after {seconds} s"
        code = made.coordinator.process.poll()
        if code is not None:
            assert code == -signal.SIGKILL, f"the coordinator exited {code}:\n{made.coordinator.tail()}"
            deaths += 1
            longest = max(longest, made.restart_coordinator())
        time.sleep(0.005)
    future.result()
    return deaths, longest


def crash_at(run, point, action, hit):
    """One history: the coordinator dies at its `hit`-th pass of the point. True: it did."""
    arm = {"SWITCHYARD_FAILPOINTS": f"{point}={action}@{hit}"}
    # Long enough for agents that wait before they connect again; short where a lease has to end.
    with cluster.cluster(nodes=2, ranks=1, ttl=3.0 if point in NEEDS_LOST_NODE else 12.0,
                         flags=["--garbage-grace", "0s"] if point in NEEDS_GARBAGE else ()) as made:
        made.coordinator.kill(signal.SIGTERM)
        made.start_coordinator(environment=arm, wait=False)

        def scenario():
            names = [made.submit(f"job-{i}", steps=24, step_ms=5, every=8, keep_last=1) for i in range(2)]
            if point in NEEDS_CANCEL:
                # Under a crash of its own: cancelled or finished, but one of them, and it stays.
                victim = made.submit("victim", steps=400, step_ms=10)
                made.wait_state(victim, "RUNNING", "SUCCEEDED")
                made.cancel(victim)
            if point in NEEDS_LOST_NODE:
                made.submit("far", steps=400, step_ms=10, ranks=2)
                made.wait_state("projects/default/jobs/far", "RUNNING")
                kill([made.agents["node0"].process.pid])
            made.wait_final(names)
            if point in NEEDS_DOWNLOAD:
                subprocess.run([made.bin / "switchyard", "--server", made.addresses["listen"], "checkpoints", "download",
                                names[0].rsplit("/", 1)[-1], made.folder / "downloaded", "--chunk-bytes", "64"],
                               check=True, capture_output=True, timeout=60)
            return names

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            future = pool.submit(scenario)
            deaths, longest = supervise(made, future)
            names = future.result()
        assert longest < 10, f"ready again after {longest:.1f} s"
        made.wait_final(seconds=60)
        for name in names:
            # A crash of the coordinator is no reason to start anything again.
            made.expect(name, "SUCCEEDED", attempts=1)
        if point in NEEDS_CANCEL:
            made.expect("projects/default/jobs/victim", "CANCELLED")
        verify(made)
        return deaths > 0


@row("1", "kill -9 coordinator at each failpoint",
     "each place of `switchyardd --print-failpoints` x SIGKILL (and torn write) x its 1st, 2nd, 5th pass", fast=True)
def coordinator_failpoints(run):
    never = []
    for point, actions in failpoints("switchyardd"):
        if point in ELSEWHERE:
            continue
        if run.fast and run.random.random() > 0.2:
            continue
        for action in (a for a in ("crash", "partial") if a in actions):
            reached = False
            for hit in (1,) if run.fast else (1, 2, 5):
                if crash_at(run, point, action, hit):
                    reached = True
                    run.add()
                    run.note(action)
            if not reached:
                never.append(point)
    assert not never, f"these failpoints were never reached: {never}"


@row("12", "duplicate submit", "1,000 parallel calls with one request id; then the same id with another payload", fast=True)
def duplicate_submit(run):
    count = 200 if run.fast else 1000
    with cluster.cluster(nodes=1, ranks=1) as made:
        request_id, spec = str(uuid.uuid4()), made.spec(steps=5)
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            names = set(pool.map(lambda _: made.submit("", request_id=request_id, spec=spec, timeout=30), range(count)))
        assert len(names) == 1, f"{len(names)} jobs by one request id"
        try:
            made.submit("", request_id=request_id, spec=made.spec(steps=6))
            raise AssertionError("another payload was accepted under the same request id")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
            assert "IDEMPOTENCY_KEY_REUSED" in str(error.trailing_metadata()), error.trailing_metadata()
        made.wait_final()
        run.add(count)
        verify(made)


@row("13", "the answer is lost after the commit", "the answer is held back until the client gives up; it asks again",
     fast=True)
def answer_lost(run):
    arm = {"SWITCHYARD_FAILPOINTS": "create_job.before_answer=delay(400ms)@1+"}
    with cluster.cluster(nodes=1, ranks=1, environment=arm) as made:
        for index in range(2 if run.fast else 10):
            request = pb.CreateJobRequest(parent="projects/default", request_id=str(uuid.uuid4()),
                                          job=cluster.job_pb2.Job(spec=made.spec(steps=3)))
            try:
                made.jobs.CreateJob(request, timeout=0.15)
                raise AssertionError("the answer was not held back")
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
            first = made.jobs.CreateJob(request, timeout=10).job.name
            made.acknowledged.append(first)
            jobs = made.jobs.ListJobs(pb.ListJobsRequest(parent="projects/default"), timeout=5).jobs
            assert len(jobs) == index + 1, [job.name for job in jobs]
            run.add()
        made.wait_final()
        verify(made)


@row("21", "1,000 submits while the coordinator restarts", "8 clients; the coordinator is killed again and again",
     fast=True)
def submits_through_restarts(run):
    count = 100 if run.fast else 1000
    with cluster.cluster(nodes=2, ranks=4) as made:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            pending = [pool.submit(made.submit, f"job-{i}", steps=2, step_ms=1, every=0) for i in range(count)]
            while not all(future.done() for future in pending):
                time.sleep(run.random.uniform(0.2, 0.8))
                made.restart_coordinator()
                run.note("restarts")
            for future in pending:
                future.result()
        made.wait_final(seconds=300)
        for name in made.acknowledged:
            made.expect(name, "SUCCEEDED")
        run.add(count)
        verify(made)


@row("33", "a second coordinator on the same database", "started beside the first", fast=True)
def second_coordinator(run):
    with cluster.cluster(nodes=1, ranks=1) as made:
        name = made.submit("job", steps=30)
        second = subprocess.run([BIN / "switchyardd", "--listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0",
                                 "--metrics-listen", "127.0.0.1:0", "--state-dir", made.state_dir, "--artifact-root",
                                 made.artifacts], capture_output=True, text=True, timeout=30)
        assert second.returncode == 1 and "another switchyardd" in second.stderr, second
        made.wait_final()
        made.expect(name, "SUCCEEDED", attempts=1)
        run.add()
        verify(made)


@row("19", "coordinator down for less and for more than the lease",
     "stopped for 0.5 TTL: nothing happens; for 2 TTL: agents stop their trainers, the job goes on afterwards")
def coordinator_down(run):
    for share, attempts in ((0.5, 1), (2.0, 2)):
        with cluster.cluster(nodes=1, ranks=1, ttl=6.0) as made:
            name = made.submit("job", steps=1400, step_ms=10, every=20)
            made.wait_step(name, 30)
            made.coordinator.kill()
            time.sleep(share * made.ttl)
            alive = len(made.trainers())
            assert alive == (1 if share < 1 else 0), f"{alive} trainers {share} TTL after the coordinator went"
            made.start_coordinator()
            made.wait_final()
            made.expect(name, "SUCCEEDED", attempts=attempts)
            run.add()
            verify(made)


@row("24", "cancel at every failpoint; cancel against finish",
     "coordinator killed around a cancel; cancels at random times of jobs that are about to end")
def cancels(run):
    for point in sorted(NEEDS_CANCEL):
        assert crash_at(run, point, "crash", 1), point
        run.add()
    with cluster.cluster(nodes=2, ranks=4) as made:
        names = [made.submit(f"job-{i}", steps=10, step_ms=8, every=5) for i in range(30 if run.fast else 120)]
        wanted = set()
        for name in names:
            try:
                made.cancel(name)
                wanted.add(name)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
            time.sleep(run.random.uniform(0, 0.03))
        made.wait_final()
        for name in names:
            run.note(made.state(name))
            assert made.state(name) in ("SUCCEEDED", "CANCELLED"), made.get(name)
            if name not in wanted:
                made.expect(name, "SUCCEEDED")
            run.add()
        assert not made.trainers(), "trainers outlived their jobs"
        verify(made)


@row("25", "someone else ends the work", "the attempt's folder on the node is deleted; then its trainers are killed by hand")
def foreign_hands(run):
    with cluster.cluster(nodes=1, ranks=2) as made:
        name = made.submit("gang", ranks=2, steps=80, step_ms=15, every=10)
        made.wait_step(name, 15)
        subprocess.run(["rm", "-rf", str(made.folder / "node0.state/attempts")], check=True)
        time.sleep(0.2)
        kill(made.trainers(), signal.SIGTERM)
        made.wait_final()
        reply = made.get(name)
        assert cluster.State.Name(reply.job.state) in ("SUCCEEDED", "FAILED"), reply
        assert len(reply.attempts) <= 3, reply.attempts
        assert not made.trainers()
        run.add()
        # Logs of the deleted folder are gone, and only they.
        verify(made, history=False)


@row("11", "a client that does not read", "watch and log streams whose client stops reading; memory stays flat")
def slow_reader(run):
    with cluster.cluster(nodes=1, ranks=1) as made:
        name = made.submit("loud", steps=3, step_ms=10, every=0, plan={"faults": [{"step": 2, "do": "flood:48"}]})
        steps = 1000 if run.fast else 5000
        long = made.submit("long", steps=steps, step_ms=0, every=0)
        made.wait_final()
        before = _resident_kib(made.coordinator.process.pid)
        readers, watches = [], []
        for _ in range(4 if run.fast else 64):
            stream = made.jobs.ReadLogs(pb.ReadLogsRequest(name=name, attempt=1))
            next(stream)  # and no more
            readers.append(stream)
        for _ in range(8 if run.fast else 200):
            watch = made.jobs.WatchJob(pb.WatchJobRequest(name=long, include_metrics=True))
            next(watch)
            watches.append(watch)
        time.sleep(2)
        grown = _resident_kib(made.coordinator.process.pid) - before
        limit = (len(readers) + len(watches)) * 128 + 8 * 1024
        what = f"{len(readers)} readers of 48 MiB and {len(watches)} watches of {steps} steps"
        assert grown < limit, f"{grown} KiB for {what}, at most {limit}"
        run.note("KiB grown", grown)
        # Exact, for one who reads slowly but to the end, in two goes.
        log = made.state_dir / "logs/default/loud/1/rank-0.stdout"
        wanted, got = log.read_bytes(), bytearray()
        position = None
        for chunk in made.jobs.ReadLogs(pb.ReadLogsRequest(name=name, attempt=1, ranks=[0])):
            if chunk.position.stream != "stdout":
                continue
            got += chunk.data
            position = chunk.position
            if len(got) > len(wanted) // 2:
                break
        resume = pb.LogPosition(attempt=1, rank=0, stream="stdout", offset=len(got))
        assert position.offset + len(chunk.data) == len(got)
        for chunk in made.jobs.ReadLogs(pb.ReadLogsRequest(name=name, attempt=1, ranks=[0], positions=[resume])):
            if chunk.position.stream == "stdout":
                got += chunk.data
        assert bytes(got) == wanted, f"{len(got)} bytes read, {len(wanted)} stored"
        for stream in [*readers, *watches]:
            stream.cancel()
        run.add(len(readers) + len(watches) + 1)
        verify(made, history=False)


def _resident_kib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return 0


@row("32", "a log flood", "64 MiB of long lines and bytes of all values; the API is timed meanwhile")
def log_flood(run):
    with cluster.cluster(nodes=1, ranks=1) as made:
        name = made.submit("loud", steps=6, step_ms=20, every=0, plan={"faults": [{"step": 3, "do": "flood:64"}]})
        made.wait_step(name, 1)
        slowest, peak, calls = 0.0, 0, 0
        while made.state(name) not in cluster.FINAL:
            begin = time.monotonic()
            made.get(name)
            slowest = max(slowest, time.monotonic() - begin)
            peak = max(peak, _resident_kib(made.coordinator.process.pid),
                       _resident_kib(made.agents["node0"].process.pid))
            calls += 1
        made.expect(name, "SUCCEEDED", attempts=1)
        log = made.state_dir / "logs/default/loud/1/rank-0.stdout"
        block = bytes(((i * 7919) >> 3) & 0xFF for i in range(1 << 20))
        text = log.read_bytes()
        assert text.count(block) == 64, f"{text.count(block)} of 64 blocks arrived whole"
        assert peak < 400 * 1024, f"{peak} KiB"
        # Two loaded cores: the bound is generous, the number is in the notes.
        assert slowest < 2, f"one call took {slowest:.2f} s"
        run.note("slowest call ms", int(slowest * 1000))
        run.note("peak MiB", peak // 1024)
        run.add()
        verify(made, history=False)


@row("28", "the n-th allocation fails in the coordinator",
     "malloc answers null once, at the n-th call after the start, n = 1,000 ... ; the daemon is restarted when it ends",
     needs=(str(BIN.parent / "test/libfailing_malloc.so"),))
def failing_malloc(run):
    library = str(BIN.parent / "test/libfailing_malloc.so")
    count = 4 if run.fast else 40
    with cluster.cluster(nodes=1, ranks=2, ttl=6.0) as made:
        for index in range(count):
            environment = {"LD_PRELOAD": library, "FAILING_MALLOC": str(run.random.randint(3000, 60000))}
            made.coordinator.kill(signal.SIGTERM)
            made.start_coordinator(environment=environment, wait=False)
            for extra in range(3):
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    future = pool.submit(made.submit, f"job-{index}-{extra}", steps=4, step_ms=2, every=2)
                    while not future.done():
                        code = made.coordinator.process.poll()
                        if code is not None:
                            run.note(f"ended by {code}")
                            made.start_coordinator()
                        time.sleep(0.01)
                    future.result()
            run.add()
        if made.coordinator.process.poll() is not None:
            made.start_coordinator()
        made.wait_final()
        verify(made)


@row("29", "descriptors run out", "the coordinator may open 64 files; 200 streams are opened at it, then closed")
def descriptors(run):
    with cluster.cluster(nodes=1, ranks=1) as made:
        made.coordinator.kill(signal.SIGTERM)
        daemon = made.start_coordinator()
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        channels = []
        name = made.submit("job", steps=60, step_ms=20, every=10)
        for _ in range(200):
            channel = grpc.insecure_channel(made.addresses["listen"], options=[
                ("grpc.use_local_subchannel_pool", 1)])
            stub = cluster.rpc.JobServiceStub(channel)
            channels.append((channel, stub.WatchJob(pb.WatchJobRequest(name=name))))
        time.sleep(2)
        assert daemon.process.poll() is None, f"the coordinator ended: {daemon.process.poll()}\n{daemon.tail()}"
        for channel, _ in channels:
            channel.close()
        made.submit("after", steps=3)
        made.wait_final()
        made.expect(name, "SUCCEEDED")
        assert daemon.process.poll() is None
        run.add()
        verify(made)


@row("18", "clocks jump", "libfaketime: one day forward, one hour back, on both sides and during a lease",
     needs=("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",))
def clock_jumps(run):
    library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
    for side in ("coordinator", "agent"):
        for jump in ("+86400", "-3600"):
            with cluster.cluster(nodes=1, ranks=1, ttl=3.0) as made:
                stamp = made.folder / "clock"
                stamp.write_text("+0\n")
                environment = {"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(stamp), "FAKETIME_NO_CACHE": "1",
                               "DONT_FAKE_MONOTONIC": "1"}
                if side == "coordinator":
                    made.restart_coordinator(signal.SIGTERM, environment)
                else:
                    made.restart_agent("node0", signal.SIGTERM, environment=environment)
                name = made.submit("job", steps=300, step_ms=15, every=20)
                made.wait_step(name, 20)
                stamp.write_text(f"{jump}\n")
                time.sleep(made.ttl)
                made.wait_final()
                made.expect(name, "SUCCEEDED", attempts=1)
                run.add()
                # Times of day are only shown: whether a step came after the end cannot be told by them.
                verify(made, wall=False)
