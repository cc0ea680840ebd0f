"""A coordinator and agents on loopback, made of the real programs, in a temporary folder.

Used by the tests in this folder. Every wait has a deadline and fails with what was seen last.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

SOURCE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("SY_BUILD_DIR", SOURCE / "build/release"))
BIN = BUILD / "bin"


def wait_until(what, predicate, seconds=60.0, step=0.05):
    """Returns the first true value of predicate(); raises with `what` and the last value."""
    end = time.monotonic() + seconds
    value = None
    while time.monotonic() < end:
        value = predicate()
        if value:
            return value
        time.sleep(step)
    raise AssertionError(f"waited {seconds} s for {what}; last: {value!r}")


class Daemon:
    """One long-running program with a log file and a port file."""

    def __init__(self, name, command, folder, environment=None):
        self.name, self.command, self.folder = name, command, folder
        self.environment = dict(os.environ, **(environment or {}))
        self.log = folder / f"{name}.log"
        self.ports_file = folder / f"{name}.ports"
        self.process = None
        self.ports = {}

    def launch(self):
        """Starts it without waiting until it is ready."""
        self.ports_file.unlink(missing_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [str(c) for c in self.command] + ["--port-file", str(self.ports_file)],
                stdout=log, stderr=log, env=self.environment)
        return self

    def wait_ready(self, seconds=30):
        def ready():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} exited {self.process.returncode}:\n{self.tail()}")
            return self.ports_file.exists() and self.ports_file.read_text().strip()

        self.ports = json.loads(wait_until(f"{self.name} to be ready", ready, seconds, 0.02))
        return self

    def start(self):
        return self.launch().wait_ready()

    def tail(self, lines=40):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def kill(self, sig=signal.SIGKILL):
        if self.process and self.process.poll() is None:
            self.process.send_signal(sig)
            self.process.wait(30)

    def metrics(self):
        with urllib.request.urlopen(f"http://{self.ports['metrics_listen']}/metrics", timeout=5) as reply:
            return reply.read().decode()


class Cluster:
    def __init__(self, folder, cpu_ranks=(2,), coordinator_flags=()):
        self.folder = pathlib.Path(folder)
        self.artifacts = self.folder / "artifacts"
        self.coordinator_flags = list(coordinator_flags)
        # Fixed after the first start, so that a restarted coordinator is found again.
        self.addresses = {"listen": "127.0.0.1:0", "agent_listen": "127.0.0.1:0"}
        self.coordinator = None
        self.start_coordinator()
        self.agents = []
        for index, ranks in enumerate(cpu_ranks):
            self.start_agent(f"node{index}", ranks)

    def start_coordinator(self, **environment):
        self.coordinator = Daemon("switchyardd", [
            BIN / "switchyardd", "--listen", self.addresses["listen"],
            "--agent-listen", self.addresses["agent_listen"], "--metrics-listen", "127.0.0.1:0",
            "--state-dir", self.folder / "coordinator", "--artifact-root", self.artifacts,
            *self.coordinator_flags], self.folder, environment).start()
        self.addresses = {key: self.coordinator.ports[key] for key in self.addresses}

    def start_agent(self, name, ranks):
        """`ranks`: CPU ranks to offer; None: the node's GPUs."""
        devices = [] if ranks is None else ["--cpu-ranks", str(ranks)]
        agent = Daemon(f"agent-{name}", [
            BIN / "switchyard-agent", "--coordinator", self.addresses["agent_listen"], "--node", name,
            "--state-dir", self.folder / f"agent-{name}.state", "--metrics-listen", "127.0.0.1:0",
            "--bin-dir", BIN, *devices], self.folder).start()
        self.agents.append(agent)
        return agent

    def stop(self):
        for daemon in [*self.agents, self.coordinator]:
            with contextlib.suppress(Exception):
                daemon.kill(signal.SIGTERM)
            with contextlib.suppress(Exception):
                daemon.kill()

    # --- the command line -----------------------------------------------------------------------

    def cli(self, *arguments, timeout=240, check=None, **popen):
        """Runs the CLI; returns CompletedProcess with text. `check`: the exit code it must have."""
        environment = dict(os.environ, SWITCHYARD_SERVER=self.addresses["listen"])
        result = subprocess.run([str(BIN / "switchyard"), *map(str, arguments)], env=environment,
                                capture_output=True, text=True, timeout=timeout, **popen)
        if check is not None and result.returncode != check:
            raise AssertionError(
                f"switchyard {' '.join(map(str, arguments))}: exit {result.returncode}, expected {check}\n"
                f"stdout: {result.stdout}\nstderr: {result.stderr}\n"
                f"--- coordinator\n{self.coordinator.tail()}\n--- agent\n"
                + "\n".join(agent.tail() for agent in self.agents))
        return result

    def job(self, name):
        return json.loads(self.cli("get", name, "-o", "json", check=0).stdout)

    def state(self, name):
        value = self.job(name)
        return value.get("job", value)["state"]

    def wait_state(self, name, *states, seconds=120):
        return wait_until(f"{name} to be {'/'.join(states)}",
                          lambda: (s := self.state(name)) in states and s, seconds, 0.2)

    def trainer_pids(self):
        """Process ids of the trainers below this cluster's shims (they name their attempt's folder)."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().split(b"\0")
                if not command[0].endswith(b"switchyard-trainer"):
                    continue
                parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                if str(self.folder).encode() in pathlib.Path("/proc", parent, "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found


@contextlib.contextmanager
def cluster(**options):
    with tempfile.TemporaryDirectory(prefix="sy-e2e-") as folder:
        made = Cluster(folder, **options)
        try:
            yield made
        except BaseException:
            for daemon in [made.coordinator, *made.agents]:
                print(f"--- {daemon.name}\n{daemon.tail()}", file=sys.stderr)
            raise
        finally:
            made.stop()


def prep(*arguments, check=0):
    result = subprocess.run([str(BIN / "switchyard-prep"), *map(str, arguments)], capture_output=True, text=True)
    if check is not None and result.returncode != check:
        raise AssertionError(f"switchyard-prep {arguments}: exit {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result
