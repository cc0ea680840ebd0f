#!/usr/bin/env python3
"""The Python example against a fake server: what it sends, its exit codes, a restart in the middle.

Against a real coordinator: python_client_test.py --server HOST:PORT --spec spec.json submits that job and
expects it to succeed.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "client/python/example_submit.py"

try:
    import fake_server
except ImportError as error:
    print(f"skipped: {error} (deploy/setup installs grpcio and grpcio-tools)")
    sys.exit(77)

SPEC = {"model": {"path": "/models/m", "dtype": "float32"}, "data": {"train": {"paths": ["/d.jsonl"]}},
        "batch": {"global_batch_size": 4, "local_batch_size": 1, "max_steps": "4"}, "seed": 7}


class PythonClientTest(unittest.TestCase):
    def setUp(self):
        self.service = fake_server.FakeJobService()
        self.server = fake_server.Server(self.service)
        self.folder = tempfile.TemporaryDirectory()
        self.spec = pathlib.Path(self.folder.name) / "spec.json"
        self.spec.write_text(json.dumps(SPEC))

    def tearDown(self):
        self.server.stop()
        self.folder.cleanup()

    def start(self):
        return subprocess.Popen([sys.executable, EXAMPLE, "--server", self.server.address, "--spec", self.spec,
                                 "--name", "mine"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, process):
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def test_submits_watches_and_returns_success(self):
        self.service.refuse_creates = 1
        self.service.event("RUNNING")
        self.service.step(1, 4.5)
        self.service.event("SUCCEEDED")
        code, out, err = self.finish(self.start())
        self.assertEqual(code, 0, err)
        self.assertIn("submitted projects/default/jobs/j1", out)
        self.assertIn("step 1/4 loss 4.5000", out)
        self.assertIn("projects/default/jobs/j1: SUCCEEDED", out)
        first, second = self.service.created
        self.assertEqual(first.request_id, second.request_id)
        self.assertEqual(first.job_id, "mine")
        self.assertEqual(first.job.spec.batch.max_steps, 4)
        self.assertEqual(first.job.spec.seed, 7)

    def test_a_failed_job_is_exit_code_ten_with_its_reason(self):
        self.service.job.failure.reason = fake_server.job_pb2.FailureReason.Value("NAN_LOSS")
        self.service.job.failure.message = "three steps in a row"
        self.service.event("FAILED")
        code, _, err = self.finish(self.start())
        self.assertEqual(code, 10)
        self.assertIn("NAN_LOSS: three steps in a row", err)

    def test_a_restarted_coordinator_is_watched_on_from_the_last_position(self):
        self.service.event("RUNNING")
        self.service.step(1, 4.5)
        process = self.start()
        self.assertIn("submitted", process.stdout.readline())
        self.assertIn("RUNNING", process.stdout.readline())
        self.assertIn("step 1/4", process.stdout.readline())
        self.server.stop()
        self.service.step(2, 4.25)
        self.service.event("SUCCEEDED")
        self.server.start()
        code, out, err = self.finish(process)
        self.assertEqual(code, 0, err)
        self.assertNotIn("step 1/4", out)
        self.assertIn("step 2/4", out)
        self.assertEqual(self.service.watched[-1].after_sequence, 1)
        self.assertEqual(self.service.watched[-1].after_step, 1)

    def test_no_server_is_exit_code_six(self):
        self.server.stop()
        code, _, err = self.finish(self.start())
        self.server.start()
        self.assertEqual(code, 6)
        self.assertIn("UNAVAILABLE", err)


def real_run(arguments):
    return subprocess.run([sys.executable, EXAMPLE, "--server", arguments.server, "--spec", arguments.spec]).returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--server")
    parser.add_argument("--spec")
    arguments, rest = parser.parse_known_args()
    if arguments.server:
        sys.exit(real_run(arguments))
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)
