#!/usr/bin/env python3
"""The `switchyard` program as a process: Ctrl-C, a pseudo-terminal, a pipe, its environment."""

import fcntl
import os
import pathlib
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import unittest

try:
    import fake_server
except ImportError as error:
    print(f"skipped: {error} (deploy/setup installs grpcio and grpcio-tools)")
    sys.exit(77)

CLI = pathlib.Path(os.environ["SY_BUILD_DIR"]) / "bin/switchyard"


class CliProcessTest(unittest.TestCase):
    def setUp(self):
        self.service = fake_server.FakeJobService()
        self.server = fake_server.Server(self.service)
        self.environment = dict(os.environ, SWITCHYARD_SERVER=self.server.address)

    def tearDown(self):
        self.server.stop()

    def start(self, *arguments, **options):
        return subprocess.Popen([CLI, *arguments], env=self.environment, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, **options)

    def test_ctrl_c_detaches_and_the_job_goes_on(self):
        self.service.event("RUNNING")
        self.service.step(1, 4.5)
        process = self.start("watch", "j1", "--from-start")
        while "step 1/4" not in process.stdout.readline():
            self.assertIsNone(process.poll())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        self.assertEqual(process.returncode, 130)
        self.assertIn("detached; the job goes on", err)
        self.assertEqual(self.service.job.state, fake_server.State.Value("RUNNING"))

    def test_ctrl_c_while_the_server_is_away_detaches_too(self):
        self.service.event("RUNNING")
        process = self.start("watch", "j1")
        self.service.wait_for(lambda: self.service.watched)
        self.server.stop()
        self.assertIn("lost the coordinator", process.stderr.readline())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        self.server.start()
        self.assertEqual(process.returncode, 130)
        self.assertIn("detached", err)

    def test_a_terminal_gets_one_line_that_is_redrawn_and_fits(self):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
        process = subprocess.Popen([CLI, "watch", "j1", "--from-start"], env=self.environment, stdout=slave, stderr=slave)
        os.close(slave)
        self.service.event("RUNNING")
        for step in range(1, 5):
            self.service.step(step, 5.0 - step / 10)
        self.service.event("SUCCEEDED")
        shown = b""
        end = time.monotonic() + 30
        while time.monotonic() < end and select.select([master], [], [], 1)[0]:
            try:
                data = os.read(master, 4096)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            shown += data
        self.assertEqual(process.wait(20), 0)
        os.close(master)
        text = shown.decode()
        drawn = [part.split("\x1b[K")[0] for part in text.split("\r")[1:] if part.startswith("[")]
        self.assertGreaterEqual(len(drawn), 4, text)
        for line in drawn:
            self.assertLess(len(line), 60, line)
        self.assertIn("4/4", drawn[-1])
        self.assertIn("j1 succeeded", text)

    def test_a_closed_pipe_ends_it_quietly(self):
        reader = subprocess.run(["sh", "-c", f"'{CLI}' --help | head -n 1"], capture_output=True, text=True, timeout=20)
        self.assertEqual(reader.stdout.count("\n"), 1)
        self.assertEqual(reader.stderr, "")

    def test_no_arguments_show_the_help(self):
        result = subprocess.run([CLI], capture_output=True, text=True, timeout=20)
        self.assertEqual(result.returncode, 0)
        self.assertIn("Usage: switchyard COMMAND", result.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
