#!/usr/bin/env python3
"""A job's whole way through the real programs: submit to checkpoint, watched, measured, interrupted."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import unittest

import cluster
import workload


def load_with_transformers(folder):
    """Runs Transformers in a process of its own; returns what it reported."""
    code = (
        "import sys, json, torch, transformers\n"
        "model, report = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32,"
        " output_loading_info=True)\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer.apply_chat_template([{'role':'user','content':'What follows: the expert router?'}],"
        " add_generation_prompt=True, return_tensors='pt')['input_ids']\n"
        "out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)\n"
        "print(json.dumps({'faults': {k: sorted(map(str, v)) for k, v in report.items() if v},"
        " 'answer': tokenizer.decode(out[0, ids.shape[1]:])}))\n")
    result = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True,
                            env=dict(os.environ, HF_HUB_OFFLINE="1"))
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


class LifecycleTest(unittest.TestCase):
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

    def test_submit_watch_ends_with_a_checkpoint_that_transformers_loads(self):
        result = self.cluster.cli("submit", self.recipe("good"), "--name", "good", "--watch", check=0)
        losses = [float(x) for x in re.findall(r"loss[ =:]+([0-9.]+)", result.stdout)]
        self.assertGreater(len(losses), 5, result.stdout)
        self.assertLess(min(losses[-3:]), losses[0] - 0.3, result.stdout)
        self.assertRegex(result.stdout, r"prepared on node node0: 400 documents in \d+ rows, \d+ tokens, [0-9.]+% of them learnt")
        listed = json.loads(self.cluster.cli("checkpoints", "good", "-o", "json", check=0).stdout)
        checkpoints = listed.get("checkpoints", listed)
        self.assertEqual([int(c["step"]) for c in checkpoints], [12, 6])
        folder = pathlib.Path(checkpoints[0]["path"])
        loaded = load_with_transformers(folder)
        self.assertEqual(loaded["faults"], {})
        manifest = json.loads((folder / "switchyard/manifest.json").read_text())
        names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        self.assertEqual({f["name"] for f in manifest["files"]} | {"switchyard/manifest.json"}, names)
        # Nothing is left of the staging area.
        self.assertEqual([p for p in (folder.parents[1] / "staging").rglob("*") if p.is_file()], [])

    def test_a_plan_tells_size_and_place_and_changes_nothing(self):
        before = self.cluster.cli("list", "-o", "json", check=0).stdout
        plan = json.loads(self.cluster.cli("plan", self.recipe("planned"), "-o", "json", check=0).stdout)
        self.assertTrue(plan["fits_cluster"])
        self.assertEqual((plan["ranks_wanted"], plan["ranks_total"]), (2, 2))
        self.assertGreater(int(plan["parameters"]), int(plan["active_parameters"]))
        self.assertEqual(int(plan["micro_batches_per_step"]), 2)
        self.assertGreater(int(plan["memory"]["total"]), 4 * int(plan["parameters"]) // 2)
        self.assertEqual(self.cluster.cli("list", "-o", "json", check=0).stdout, before)

    def test_logs_are_there_after_the_end_whole_and_by_the_tail(self):
        self.cluster.cli("submit", self.recipe("logged"), "--name", "logged", "--watch", check=0)
        whole = self.cluster.cli("logs", "logged", check=0).stdout
        kept = b"".join(p.read_bytes() for p in
                        sorted((self.cluster.folder / "coordinator/logs/default/logged/1").iterdir()))
        self.assertGreater(len(kept), 0)
        for line in kept.decode().splitlines():
            self.assertIn(line, whole)
        tail = self.cluster.cli("logs", "logged", "--tail", "1", "--rank", "0", check=0).stdout
        self.assertLess(len(tail), len(whole))

    def test_the_same_job_twice_gives_the_same_bits(self):
        for name in ("twin-a", "twin-b"):
            self.cluster.cli("submit", self.recipe("twin"), "--name", name, "--watch", check=0)
        def weights(name):
            listed = json.loads(self.cluster.cli("checkpoints", name, "-o", "json", check=0).stdout)
            return (pathlib.Path(listed.get("checkpoints", listed)[0]["path"]) / "model.safetensors").read_bytes()
        self.assertEqual(weights("twin-a"), weights("twin-b"))

    def test_metrics_are_clean_and_hold_the_jobs_numbers(self):
        promtool = shutil.which("promtool")
        self.assertIsNotNone(promtool, "promtool (Debian: prometheus) is needed")
        self.cluster.cli("submit", self.recipe("measured", step_scheduler={"max_steps": 100000}), "--name", "measured",
                         check=0)
        try:
            def numbers():
                text = self.cluster.coordinator.metrics()
                return text if re.search(r'^switchyard_job_step\{[^}]*measured[^}]*\} [1-9]', text, re.M) else None
            text = cluster.wait_until("the job's step in /metrics", numbers, 90, 0.3)
            for metric in ("step", "loss", "tokens_per_second", "memory_bytes"):
                self.assertRegex(text, rf'(?m)^switchyard_job_{metric}\{{[^}}]*measured[^}}]*\}} [0-9.e+]+$')
            for daemon in (self.cluster.coordinator, self.cluster.agents[0]):
                checked = subprocess.run([promtool, "check", "metrics"], input=daemon.metrics(), text=True,
                                         capture_output=True)
                self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
        finally:
            self.cluster.cli("cancel", "measured", check=0)
        self.assertEqual(self.cluster.wait_state("measured", "CANCELLED", seconds=60), "CANCELLED")

    def test_a_coordinator_killed_in_the_middle_loses_nothing(self):
        self.cluster.cli("submit", self.recipe("survivor", step_scheduler={"max_steps": 60}), "--name", "survivor", check=0)
        self.cluster.cli("submit", self.recipe("waiting"), "--name", "waiting", check=0)
        watch = {}
        thread = threading.Thread(target=lambda: watch.update(result=self.cluster.cli("watch", "survivor")))
        thread.start()
        self.cluster.wait_state("survivor", "RUNNING")
        pids = set(self.cluster.trainer_pids())
        self.assertEqual(len(pids), 2)
        self.cluster.coordinator.kill(signal.SIGKILL)
        self.cluster.start_coordinator()
        self.assertEqual(self.cluster.wait_state("survivor", "SUCCEEDED", "FAILED"), "SUCCEEDED")
        job = self.cluster.job("survivor")
        self.assertEqual(int(job.get("job", job).get("current_attempt", 1)), 1, "the attempt went on")
        thread.join(60)
        self.assertEqual(watch["result"].returncode, 0, watch["result"].stdout + watch["result"].stderr)
        self.assertEqual(self.cluster.wait_state("waiting", "SUCCEEDED", "FAILED"), "SUCCEEDED")

    def test_a_python_client_submits_and_watches(self):
        result = subprocess.run(
            [sys.executable, cluster.SOURCE / "client/python/example_submit.py", "--server",
             self.cluster.addresses["listen"], "--spec", self.spec_file()],
            capture_output=True, text=True, timeout=200)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertIn("SUCCEEDED", result.stdout)

    def spec_file(self):
        """The JobSpec that the recipe reader makes, as JSON."""
        shown = self.cluster.cli("validate", self.recipe("python"), "-o", "json", check=0)
        spec = json.loads(shown.stdout)["spec"]
        path = self.cluster.folder / "spec.json"
        path.write_text(json.dumps(spec))
        return path


if __name__ == "__main__":
    unittest.main(verbosity=2)
