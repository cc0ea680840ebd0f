"""A coordinator and agents as real processes with the fake worker, and the means to hurt them.

Built on tests/e2e/cluster.py: Daemon (one program, its log and port file) and wait_until. Jobs are submitted
through gRPC; `acknowledged` holds every job whose creation was answered, which check.py holds against the
database afterwards.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
import uuid

import grpc
from google.protobuf import json_format

SOURCE = pathlib.Path(__file__).resolve().parents[2]


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


e2e = _load("e2e_cluster", SOURCE / "tests/e2e/cluster.py")
wait_until, Daemon, BIN = e2e.wait_until, e2e.Daemon, e2e.BIN
sys.path.insert(0, str(SOURCE / "client/python"))
import example_submit  # noqa: E402  (the stubs)

job_pb2, pb, rpc = example_submit.job_pb2, example_submit.service_pb2, example_submit.service_grpc
State = job_pb2.Job.State
FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
MODEL_CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 64, "hidden_size": 16,
    "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
    "norm_topk_prob": True, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "mlp_only_layers": [], "hidden_act": "silu", "attention_bias": False}


def processes(folder, names):
    """Process ids of programs of these names that are started from `folder`, or work below it (shims)."""
    root, found = str(folder).encode() + b"/", []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                if words[0].rsplit(b"/", 1)[-1].decode() in names and any(w.startswith(root) for w in words[:2]):
                    found.append(int(entry))
    return found


def kill(pids, sig=signal.SIGKILL):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)


class Cluster:
    """`nodes` agents with `ranks` CPU ranks each. Short times, so that leases end within seconds."""

    def __init__(self, folder, nodes=2, ranks=2, ttl=3.0, flags=(), agent_flags=(), environment=None,
                 state_dir=None, artifacts=None, prefix=(), listen_host="127.0.0.1", start=True):
        self.folder = pathlib.Path(folder)
        self.state_dir = pathlib.Path(state_dir or self.folder / "coordinator")
        self.artifacts = pathlib.Path(artifacts or self.folder / "artifacts")
        self.ttl, self.flags, self.agent_flags, self.ranks = ttl, list(flags), list(agent_flags), ranks
        self.prefix = list(prefix)
        self.bin = self.folder / "bin"
        self.bin.mkdir(parents=True)
        for program in BIN.iterdir():
            if program.name.startswith("switchyard"):
                (self.bin / program.name).symlink_to(program)
        for name in ("switchyard-trainer", "switchyard-prep"):
            (self.bin / name).unlink(missing_ok=True)
            (self.bin / name).symlink_to(BIN.parent / "test/faults_worker")
        self.model = self.folder / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text(json.dumps(MODEL_CONFIG))
        self.data = self.folder / "data.jsonl"
        self.data.write_text('{"text": "x"}\n')
        self.addresses = {key: f"{listen_host}:0" for key in ("listen", "agent_listen")}
        self.acknowledged, self.specs, self.lock = [], {}, threading.Lock()
        self.coordinator, self.agents, self.daemons = None, {}, []
        self.channel = None
        if start:
            self.start_coordinator(environment=environment)
            for index in range(nodes):
                self.start_agent(f"node{index}")

    # --- processes -------------------------------------------------------------------------------

    def start_coordinator(self, environment=None, wait=True, flags=()):
        self.coordinator = Daemon("switchyardd", [
            *self.prefix, self.bin / "switchyardd", "--listen", self.addresses["listen"],
            "--agent-listen", self.addresses["agent_listen"], "--metrics-listen", "127.0.0.1:0",
            "--state-dir", self.state_dir, "--artifact-root", self.artifacts, "--lease-ttl", f"{self.ttl}s",
            "--heartbeat-interval", f"{self.ttl / 15}s", "--retry-backoff", "50ms", *self.flags, *flags],
            self.folder, environment)
        self.daemons.append(self.coordinator)
        self.coordinator.launch()
        if wait:
            self.coordinator.wait_ready()
            self.addresses = {key: self.coordinator.ports[key] for key in self.addresses}
            self.connect()
        return self.coordinator

    def connect(self):
        """A channel that tries again at once when the coordinator is back; kept, since others may be calling."""
        if self.channel is not None:
            return
        self.channel = grpc.insecure_channel(self.addresses["listen"], options=[
            ("grpc.min_reconnect_backoff_ms", 20), ("grpc.initial_reconnect_backoff_ms", 20),
            ("grpc.max_reconnect_backoff_ms", 100), ("grpc.use_local_subchannel_pool", 1)])
        self.jobs = rpc.JobServiceStub(self.channel)

    def restart_coordinator(self, sig=signal.SIGKILL, environment=None):
        """Returns the seconds until it was ready."""
        self.coordinator.kill(sig)
        begin = time.monotonic()
        self.start_coordinator(environment)
        return time.monotonic() - begin

    def start_agent(self, name, environment=None, prefix=(), wait=True, ranks=None, flags=()):
        agent = Daemon(f"agent-{name}", [
            *prefix, self.bin / "switchyard-agent", "--coordinator", self.addresses["agent_listen"],
            "--node", name, "--state-dir", self.folder / f"{name}.state", "--metrics-listen", "127.0.0.1:0",
            "--bin-dir", self.bin, "--cpu-ranks", str(ranks or self.ranks), *self.agent_flags, *flags],
            self.folder, environment)
        self.agents[name] = agent
        self.daemons.append(agent)
        agent.launch()
        return agent.wait_ready() if wait else agent

    def restart_agent(self, name, sig=signal.SIGKILL, **options):
        self.agents[name].kill(sig)
        return self.start_agent(name, **options)

    def trainers(self):
        return processes(self.folder, ["switchyard-trainer"])

    def shims(self):
        return processes(self.folder, ["switchyard-shim"])

    def stop(self):
        for daemon in self.daemons:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.process.send_signal(signal.SIGCONT)
                daemon.process.kill()
                daemon.process.wait()
        for _ in range(3):  # a shim may still be starting one
            kill(processes(self.folder, [p.name for p in self.bin.iterdir()]))
        if self.channel is not None:
            self.channel.close()

    # --- jobs ------------------------------------------------------------------------------------

    def spec(self, steps=10, step_ms=10, ranks=1, every=5, retries=50, keep_last=0, plan=None, **retry):
        return json_format.ParseDict({
            "model": {"path": str(self.model), "dtype": "float32"},
            "data": {"train": {"paths": [str(self.data)]}, "seq_length": 64, "packing": "PACKING_NONE",
                     "chat_template": json.dumps(dict({"step_ms": step_ms}, **(plan or {})))},
            "batch": {"global_batch_size": ranks, "local_batch_size": 1, "max_steps": str(steps)},
            "optimizer": {"kind": "OPTIMIZER_KIND_ADAMW", "lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
                          "moment_dtype": "float32"},
            "lr_schedule": {"decay": "LR_DECAY_CONSTANT"},
            "parallel": {"num_ranks": ranks, "cpu_only": True},
            "checkpoint": {"every_steps": str(every), "save_optimizer": True, "keep_last": keep_last},
            "retry": dict({"max_retries": retries}, **retry)}, job_pb2.JobSpec())

    def submit(self, name, tries=100, request_id=None, spec=None, timeout=5, priority=0, **options):
        """Submits until it is answered, always with one request id. Returns the job's resource name."""
        spec = spec or self.spec(**options)
        if priority:
            spec.schedule.priority = priority
        request = pb.CreateJobRequest(parent="projects/default", job_id=name, job=job_pb2.Job(spec=spec),
                                      request_id=request_id or str(uuid.uuid4()))
        job = self.retry(lambda: self.jobs.CreateJob(request, timeout=timeout, wait_for_ready=True).job, tries)
        with self.lock:
            if job.name not in self.specs:
                self.acknowledged.append(job.name)
            self.specs[job.name] = spec
        return job.name

    @staticmethod
    def retry(call, tries=100):
        for left in range(tries - 1, -1, -1):
            try:
                return call()
            except grpc.RpcError as error:
                transient = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED,
                             grpc.StatusCode.CANCELLED)
                if error.code() not in transient or left == 0:
                    raise
                time.sleep(0.05)

    def get(self, name):
        return self.retry(lambda: self.jobs.GetJob(pb.GetJobRequest(name=name), timeout=5, wait_for_ready=True))

    def state(self, name):
        return State.Name(self.get(name).job.state)

    def cancel(self, name, grace=1.0):
        request = pb.CancelJobRequest(name=name, request_id=str(uuid.uuid4()))
        request.grace_period.FromMilliseconds(int(grace * 1000))
        return self.retry(lambda: self.jobs.CancelJob(request, timeout=5, wait_for_ready=True).job)

    def job_dir(self, name):
        return self.artifacts / name.split("/")[1] / name.split("/")[3]

    def steps(self, name):
        return int(self.get(name).job.progress.step)

    def wait_state(self, name, *states, seconds=30):
        return wait_until(f"{name} to be {'/'.join(states)}", lambda: (s := self.state(name)) in states and s,
                          seconds, 0.02)

    def wait_step(self, name, step, seconds=30):
        return wait_until(f"{name} to be at step {step}", lambda: self.steps(name) >= step, seconds, 0.01)

    def unfinished(self, names):
        """Those of `names` that are not final, by one listing."""
        states = [State.Value(s) for s in ("VALIDATING", "QUEUED", "STARTING", "RUNNING", "STOPPING", "PAUSED")]
        live, token = set(), ""
        while True:
            request = pb.ListJobsRequest(parent="projects/default", states=states, page_size=1000, page_token=token)
            reply = self.retry(lambda: self.jobs.ListJobs(request, timeout=5, wait_for_ready=True))
            live |= {job.name for job in reply.jobs}
            token = reply.next_page_token
            if not token:
                return live & set(names)

    def wait_final(self, names=None, seconds=60):
        names = list(names or self.acknowledged)
        end, live = time.monotonic() + seconds, set(names)
        while live:
            if time.monotonic() > end:
                shown = {name: self.get(name).job for name in sorted(live)[:3]}
                raise AssertionError(f"{len(live)} jobs not final after {seconds} s: " + "; ".join(
                    f"{n} {State.Name(j.state)} attempt {j.current_attempt} {j.state_message}"
                    for n, j in shown.items()))
            live = self.unfinished(names)
            time.sleep(0.05)

    def expect(self, name, state, reason=None, attempts=None):
        """The job ended like this; `attempts`: exactly so many."""
        reply = self.get(name)
        got = State.Name(reply.job.state)
        assert got == state, f"{name} is {got}, expected {state}: {reply.job.state_message}"
        if reason is not None:
            failures = [job_pb2.FailureReason.Name(a.failure.reason) for a in reply.attempts]
            failures.append(job_pb2.FailureReason.Name(reply.job.failure.reason))
            assert reason in failures, f"{name} failed by {failures}, expected {reason}"
        if attempts is not None:
            assert len(reply.attempts) == attempts, f"{name} took {len(reply.attempts)} attempts, not {attempts}: " + \
                "; ".join(f"{a.number} {job_pb2.FailureReason.Name(a.failure.reason)} {a.failure.message}"
                          for a in reply.attempts)
        return reply


@contextlib.contextmanager
def cluster(**options):
    """A cluster in a temporary folder; its logs are printed when the body fails."""
    with tempfile.TemporaryDirectory(prefix="sy-faults-") as folder:
        made = Cluster(folder, start=False, **{k: v for k, v in options.items() if k != "nodes"})
        try:
            made.start_coordinator(environment=options.get("environment"))
            for index in range(options.get("nodes", 2)):
                made.start_agent(f"node{index}")
            yield made
        except BaseException:
            for daemon in {d.name: d for d in made.daemons}.values():
                print(f"--- {daemon.name}\n{daemon.tail(25)}", file=sys.stderr)
            raise
        finally:
            made.stop()
