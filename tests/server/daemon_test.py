#!/usr/bin/env python3
"""switchyardd as a process: flags, port file, metrics that promtool accepts, one daemon per folder, kill -9."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request

DAEMON = pathlib.Path(os.environ["SY_BUILD_DIR"]) / "bin/switchyardd"


class DaemonTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def command(self, name="ports"):
        return [str(DAEMON), "--listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0", "--metrics-listen",
                "127.0.0.1:0", "--state-dir", str(self.folder / "state"), "--artifact-root",
                str(self.folder / "artifacts"), "--port-file", str(self.folder / name)]

    def start(self, name):
        process = subprocess.Popen(self.command(name), stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        deadline = time.monotonic() + 30
        while not (self.folder / name).exists():
            self.assertIsNone(process.poll(), "the daemon ended")
            self.assertLess(time.monotonic(), deadline, "no port file")
            time.sleep(0.05)  # the file appears whole, by rename
        return process, json.loads((self.folder / name).read_text())

    def test_metrics_pass_promtool_and_sigterm_ends_it(self):
        promtool = shutil.which("promtool")
        if promtool is None:
            self.skipTest("promtool (Debian: prometheus) is not installed")
        process, ports = self.start("ports")
        text = urllib.request.urlopen(f"http://{ports['metrics_listen']}/metrics", timeout=10).read().decode()
        checked = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True)
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
        for line in ('switchyard_jobs{state="QUEUED"} 0', 'switchyard_jobs_finished_total{outcome="FAILED",reason=""} 0',
                     "switchyard_event_watchers 0"):
            self.assertIn(line, text)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(timeout=20), 0)

    def test_one_daemon_per_folder_and_kill_frees_it(self):
        first, _ = self.start("first")
        second = subprocess.run(self.command("second"), capture_output=True, text=True, timeout=30)
        self.assertEqual(second.returncode, 1)
        self.assertIn("another switchyardd", second.stderr)
        first.kill()
        first.wait()
        self.start("third")

    def test_unknown_flags_exit_with_2_and_a_suggestion(self):
        result = subprocess.run([str(DAEMON), "--stat-dir", "/x"], capture_output=True, text=True, timeout=10)
        self.assertEqual(result.returncode, 2)
        self.assertIn("did you mean --state-dir?", result.stderr)

    def test_help_shows_every_flag_with_its_default(self):
        result = subprocess.run([str(DAEMON), "--help"], capture_output=True, text=True, timeout=10)
        self.assertEqual(result.returncode, 0)
        for word in ("--listen", "127.0.0.1:7070", "--lease-ttl", "(2m)"):
            self.assertIn(word, result.stdout)


if __name__ == "__main__":
    unittest.main()
