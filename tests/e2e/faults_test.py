#!/usr/bin/env python3
"""Bad input at every edge: a clear error with the numbers, the right exit code and state, nothing lost."""

import json
import os
import pathlib
import shutil
import signal
import sys
import unittest

import cluster
import workload


class FaultsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.context = cluster.cluster()
        cls.cluster = cls.context.__enter__()
        cls.work = workload.make_workload(cls.cluster.folder / "work")

    @classmethod
    def tearDownClass(cls):
        cls.context.__exit__(*sys.exc_info())

    def recipe(self, name, **changes):
        return workload.write_recipe(self.cluster.folder / f"{name}.yaml", workload.recipe(self.work, **changes))

    def failure(self, name):
        job = self.cluster.job(name)
        return job.get("job", job).get("failure", {})

    def test_an_unknown_key_is_refused_with_a_suggestion(self):
        result = self.cluster.cli("submit", self.recipe("typo", step_scheduler={"max_step": 5}), check=2)
        self.assertIn("step_scheduler.max_step", result.stderr + result.stdout)
        self.assertIn("max_steps", result.stderr + result.stdout)

    def test_a_missing_model_folder_is_named(self):
        path = self.recipe("nomodel", model={"pretrained_model_name_or_path": "/no/such/model"})
        result = self.cluster.cli("validate", path, check=2)
        self.assertIn("/no/such/model", result.stdout + result.stderr)

    def test_missing_data_is_named(self):
        path = self.recipe("nodata", dataset={"path_or_dataset_id": "/no/such/data.jsonl"})
        result = self.cluster.cli("validate", path, check=2)
        self.assertIn("/no/such/data.jsonl", result.stdout + result.stderr)

    def test_a_truncated_safetensors_file_fails_the_job_by_name(self):
        broken = self.cluster.folder / "broken-model"
        shutil.copytree(self.work["model"], broken)
        weights = broken / "model.safetensors"
        os.truncate(weights, weights.stat().st_size - 100)
        path = self.recipe("truncated", model={"pretrained_model_name_or_path": str(broken)})
        result = self.cluster.cli("submit", path, "--name", "truncated", "--watch", check=10)
        failure = self.failure("truncated")
        self.assertIn(failure["reason"], ("CHECKPOINT_INVALID", "CONFIG_INVALID"))
        self.assertIn("model.safetensors", failure["message"])
        self.assertIn("model.safetensors", result.stdout + result.stderr)

    def test_a_malformed_line_fails_the_job_with_file_and_line(self):
        bad = self.cluster.folder / "bad.jsonl"
        lines = pathlib.Path(self.work["train"]).read_text().splitlines()
        lines[16] = '{"messages": [{"role": "user", "content": '
        bad.write_text("\n".join(lines) + "\n")
        path = self.recipe("badline", dataset={"path_or_dataset_id": str(bad)})
        result = self.cluster.cli("submit", path, "--name", "badline", "--watch", check=10)
        failure = self.failure("badline")
        self.assertEqual(failure["reason"], "DATA_INVALID")
        self.assertIn("bad.jsonl:17", failure["message"] + " ".join(failure.get("last_lines", [])))
        self.assertIn("bad.jsonl:17", result.stdout + result.stderr)

    def test_a_gang_larger_than_the_cluster_waits_and_says_why(self):
        path = self.recipe("large", resources={"num_ranks": 4}, distributed={"ep_size": 4})
        self.cluster.cli("submit", path, "--name", "large", check=0)
        def told():
            job = self.cluster.job("large")
            job = job.get("job", job)
            return job if "CONSTRAINTS_UNSATISFIABLE" in job.get("pending_reason", "") else None
        job = cluster.wait_until("the pending reason", told, 20, 0.2)
        self.assertRegex(job["state_message"], r"4\b.*\b2\b")
        self.cluster.cli("cancel", "large", check=0)
        self.cluster.wait_state("large", "CANCELLED", seconds=20)
        result = self.cluster.cli("watch", "large")
        self.assertEqual(result.returncode, 11)

    def test_cancelled_while_queued_starting_and_running(self):
        self.cluster.cli("submit", self.recipe("long", step_scheduler={"max_steps": 100000}), "--name", "long", check=0)
        self.cluster.cli("submit", self.recipe("behind"), "--name", "behind", check=0)
        self.cluster.wait_state("long", "RUNNING")
        self.assertEqual(self.cluster.state("behind"), "QUEUED")
        self.cluster.cli("cancel", "behind", check=0)
        self.assertEqual(self.cluster.wait_state("behind", "CANCELLED", seconds=20), "CANCELLED")
        self.cluster.cli("cancel", "long", check=0)
        self.assertEqual(self.cluster.wait_state("long", "CANCELLED", seconds=60), "CANCELLED")
        self.assertEqual(self.cluster.trainer_pids(), [])
        # While starting: prep or loading has not ended yet.
        self.cluster.cli("submit", self.recipe("early", step_scheduler={"max_steps": 100000}), "--name", "early", check=0)
        self.cluster.wait_state("early", "STARTING", "RUNNING", seconds=30)
        self.cluster.cli("cancel", "early", check=0)
        self.assertEqual(self.cluster.wait_state("early", "CANCELLED", seconds=60), "CANCELLED")
        # A second cancel is fine, and the devices are free again.
        self.cluster.cli("cancel", "early", check=0)
        self.cluster.cli("submit", self.recipe("after"), "--name", "after", "--watch", check=0)

    def test_a_killed_trainer_fails_the_job_and_names_the_rank(self):
        path = self.recipe("killed", step_scheduler={"max_steps": 100000}, job={"max_retries": 0})
        self.cluster.cli("submit", path, "--name", "killed", check=0)
        self.cluster.wait_state("killed", "RUNNING")
        pids = cluster.wait_until("two trainers", lambda: len(p := self.cluster.trainer_pids()) == 2 and p, 20)
        os.kill(pids[1], signal.SIGKILL)
        self.assertEqual(self.cluster.wait_state("killed", "FAILED", seconds=60), "FAILED")
        failure = self.failure("killed")
        self.assertEqual(failure["reason"], "TRAINER_SIGNAL")
        self.assertEqual(failure["signal"], 9)
        self.assertEqual(self.cluster.trainer_pids(), [])
        result = self.cluster.cli("watch", "killed")
        self.assertEqual(result.returncode, 10)
        self.assertIn("TRAINER_SIGNAL", result.stdout + result.stderr)

    def test_a_killed_trainer_with_retries_left_resumes_from_the_checkpoint(self):
        path = self.recipe("phoenix", step_scheduler={"max_steps": 40, "ckpt_every_steps": 5}, job={"max_retries": 2})
        self.cluster.cli("submit", path, "--name", "phoenix", check=0)
        def committed():
            listed = json.loads(self.cluster.cli("checkpoints", "phoenix", "-o", "json", check=0).stdout)
            return listed.get("checkpoints", listed)
        cluster.wait_until("a checkpoint", committed, 90, 0.2)
        pids = self.cluster.trainer_pids()
        if pids:
            os.kill(pids[0], signal.SIGKILL)
        self.assertEqual(self.cluster.wait_state("phoenix", "SUCCEEDED", "FAILED"), "SUCCEEDED")
        if pids:
            job = self.cluster.job("phoenix")
            self.assertEqual(int(job.get("job", job)["current_attempt"]), 2)

    def test_a_job_id_taken_and_an_unknown_job(self):
        self.cluster.cli("submit", self.recipe("once"), "--name", "once", check=0)
        result = self.cluster.cli("submit", self.recipe("once"), "--name", "once")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("once", result.stderr)
        self.assertEqual(self.cluster.cli("get", "nobody").returncode, 3)
        self.cluster.wait_state("once", "SUCCEEDED")

    def test_no_coordinator_is_unavailable(self):
        result = self.cluster.cli("list", "--server", "127.0.0.1:1")
        self.assertEqual(result.returncode, 6)
        self.assertIn("127.0.0.1:1", result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
