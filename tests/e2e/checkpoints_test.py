#!/usr/bin/env python3
"""The catalogue of checkpoints with the real programs: kept, downloaded, verified, converted, compared, deleted."""

import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import unittest

import cluster
import workload

# 12 steps, a checkpoint every 2; kept are the last two and those of every 6 steps.
KEPT = [6, 10, 12]
RETENTION = {"checkpoint": {"max_recent_checkpoints": 2, "keep_every_steps": 6, "keep_best": 0},
             "step_scheduler": {"ckpt_every_steps": 2}}

LOGITS = """
import json, sys, torch, transformers
ids = torch.arange(1, 49).reshape(2, 24) % 300
out = []
for folder in sys.argv[1:]:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    with torch.no_grad():
        logits = model(ids).logits.float()
    out.append({"dtype": str(model.dtype), "faults": {k: sorted(map(str, v)) for k, v in report.items() if v},
                "logits": logits.flatten().tolist()})
print(json.dumps(out))
"""


def run_transformers(*folders):
    """Loads each folder as it says itself; dtype, faults of the load, logits for the same tokens."""
    result = subprocess.run([sys.executable, "-c", LOGITS, *map(str, folders)], capture_output=True, text=True,
                            env=dict(os.environ, HF_HUB_OFFLINE="1"))
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


def apart(a, b):
    """How far two lists of logits are apart, over the largest; but for the tenth that is farthest: rounding may turn
    the router's choice where two experts are as good as equal, and that is a jump."""
    differences = sorted(abs(x - y) for x, y in zip(a, b))
    return differences[len(differences) * 9 // 10] / max(map(abs, a))


def read_tree(folder):
    folder = pathlib.Path(folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def tensor_names(path):
    data = path.read_bytes()
    header = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
    return [name for name in header if name != "__metadata__"]


def vllm_places(names, config):
    """Where vLLM's loader of Qwen3-MoE puts each tensor (hf_format.md 6.2): parameter -> parts that came.

    Its rules go by substrings: experts first, then q/k/v and gate/up into packed parameters, then the name itself.
    """
    experts = [(f"experts.{e}.{ours}.", f"experts.{packed}", (e, part))
               for e in range(config["num_experts"])
               for ours, packed, part in (("gate_proj", "w13_", "w1"), ("up_proj", "w13_", "w3"), ("down_proj", "w2_", "w2"))]
    packed = [("q_proj", "qkv_proj", "q"), ("k_proj", "qkv_proj", "k"), ("v_proj", "qkv_proj", "v"),
              ("gate_proj", "gate_up_proj", 0), ("up_proj", "gate_up_proj", 1)]
    places = {}
    for name in names:
        for part, replaced, shard in experts:
            if part in name:
                target, what = name.replace(part, replaced), shard
                break
        else:
            for part, replaced, shard in packed:
                if part in name and "mlp.experts" not in name:
                    target, what = name.replace(part, replaced), shard
                    break
            else:
                target, what = name, None
        assert what not in places.setdefault(target, []), f"{name} comes twice"
        places[target].append(what)
    return places


def vllm_parameters(config):
    """The parameters of its model, and the parts that each must get."""
    experts = range(config["num_experts"])
    wanted = {"model.embed_tokens.weight": [None], "model.norm.weight": [None]}
    if not config.get("tie_word_embeddings"):
        wanted["lm_head.weight"] = [None]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm",
                     "self_attn.o_proj", "mlp.gate"):
            wanted[f"{at}{name}.weight"] = [None]
        wanted[f"{at}self_attn.qkv_proj.weight"] = ["k", "q", "v"]
        wanted[f"{at}mlp.experts.w13_weight"] = [(e, p) for e in experts for p in ("w1", "w3")]
        wanted[f"{at}mlp.experts.w2_weight"] = [(e, "w2") for e in experts]
    return wanted


class CatalogueTest(unittest.TestCase):
    """A cluster of its own, and words about its jobs' checkpoints."""

    jobs = ()  # that run first

    @classmethod
    def setUpClass(cls):
        cls.context = cluster.cluster()
        cls.cluster = cls.context.__enter__()
        try:
            cls.work = workload.make_workload(cls.cluster.folder / "work")
            for job in cls.jobs:
                cls.submit(job, "--watch")
        except BaseException:
            cls.context.__exit__(*sys.exc_info())
            raise

    @classmethod
    def tearDownClass(cls):
        cls.context.__exit__(*sys.exc_info())

    @classmethod
    def submit(cls, name, *flags, **changes):
        sections = {key: dict(RETENTION.get(key, {}), **changes.get(key, {})) for key in RETENTION.keys() | changes.keys()}
        recipe = workload.write_recipe(cls.cluster.folder / f"{name}.yaml", workload.recipe(cls.work, **sections))
        cls.cluster.cli("submit", recipe, "--name", name, *flags, check=0)

    def folder(self, job="good", step=12):
        return self.cluster.artifacts / "default" / job / "checkpoints" / f"step-{step}"

    def listed(self, job="good"):
        answer = json.loads(self.cluster.cli("checkpoints", "list", job, "-o", "json", check=0).stdout)
        return sorted(int(c["step"]) for c in answer["checkpoints"])

    def on_disk(self, job="good"):
        return sorted(int(p.name[5:]) for p in self.folder(job).parent.iterdir())

    def await_kept(self, job, steps):
        """Rows go first, files soon after; nothing else may be left of the job."""
        cluster.wait_until(f"{job} to keep {steps}", lambda: self.on_disk(job) == steps, 30)
        self.assertEqual(self.listed(job), steps)
        left = {p.name for p in self.folder(job).parents[1].iterdir()} - {"job.json", "checkpoints"}
        self.assertEqual([str(p) for name in left for p in (self.folder(job).parents[1] / name).rglob("*") if p.is_file()], [])

    def restart(self, **environment):
        self.cluster.coordinator.kill(signal.SIGKILL)
        self.cluster.start_coordinator(**environment)

    def scratch(self):
        path = self.cluster.folder / "scratch" / self.id().rsplit(".", 1)[-1]
        path.mkdir(parents=True)
        return path


class CheckpointsTest(CatalogueTest):
    jobs = ("good",)

    def test_retention_leaves_exactly_what_the_recipe_keeps(self):
        self.await_kept("good", KEPT)

    def test_metrics_count_what_is_committed_kept_and_deleted(self):
        self.restart()  # counters from 0
        before = self.cluster.coordinator.metrics()
        self.submit("counted", "--watch")
        self.await_kept("counted", KEPT)
        after = self.cluster.coordinator.metrics()

        def value(text, name):
            return float(re.search(rf"(?m)^{re.escape(name)} ([0-9.e+]+)$", text).group(1))

        def grown(name):
            return value(after, name) - value(before, name)

        size = sum(map(len, read_tree(self.folder("counted")).values()))
        self.assertEqual(grown("switchyard_checkpoint_commit_seconds_count"), 6)
        self.assertEqual(grown('switchyard_checkpoints_deleted_total{cause="retention"}'), 3)
        self.assertEqual(grown('switchyard_checkpoint_rejected_total{cause="DAMAGED"}'), 0)
        self.assertEqual(grown("switchyard_checkpoints"), 3)
        # Manifests differ by the digits of their steps.
        self.assertAlmostEqual(grown("switchyard_checkpoint_bytes_total"), 6 * size, delta=size * 0.01)
        self.assertAlmostEqual(grown("switchyard_checkpoint_stored_bytes"), 3 * size, delta=size * 0.01)

    def test_a_download_survives_the_coordinators_death(self):
        to = self.scratch() / "here"
        self.restart(SWITCHYARD_FAILPOINTS="download.before_chunk=crash@40")
        process = subprocess.Popen(
            [str(cluster.BIN / "switchyard"), "checkpoints", "download", "good@12", str(to), "--chunk-bytes", "4096",
             "-o", "json"], env=dict(os.environ, SWITCHYARD_SERVER=self.cluster.addresses["listen"]),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        cluster.wait_until("the crash", lambda: self.cluster.coordinator.process.poll() is not None, 60)
        self.assertFalse(to.exists(), "whole or not at all")
        self.assertIsNone(process.poll(), "the client waits")
        self.cluster.start_coordinator()
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, err)
        self.assertEqual(read_tree(to), read_tree(self.folder()))
        total = sum(map(len, read_tree(to).values()))
        self.assertEqual(json.loads(out)["bytes_received"], total, "no byte came twice")

    def test_a_download_that_was_killed_goes_on_where_it_was(self):
        to = self.scratch() / "here"
        partial = to.with_name("here.partial")
        self.restart(SWITCHYARD_FAILPOINTS="download.before_chunk=delay(20ms)")
        command = [str(cluster.BIN / "switchyard"), "checkpoints", "download", "good", str(to), "--chunk-bytes", "4096"]
        environment = dict(os.environ, SWITCHYARD_SERVER=self.cluster.addresses["listen"])
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        half = 50_000
        cluster.wait_until("some bytes", lambda: sum(p.stat().st_size for p in partial.rglob("*") if p.is_file()) > half, 60)
        process.kill()
        process.wait()
        self.assertFalse(to.exists())
        self.restart()
        out = subprocess.run([*command, "-o", "json"], env=environment, capture_output=True, text=True, timeout=60)
        self.assertEqual(out.returncode, 0, out.stderr)
        answer = json.loads(out.stdout)
        self.assertLessEqual(answer["bytes_received"], answer["bytes"] - half)
        self.assertEqual(read_tree(to), read_tree(self.folder()))
        self.assertFalse(partial.exists())

    def test_verify_names_the_file_and_the_reason(self):
        self.cluster.cli("checkpoints", "verify", "good@6", check=0)
        self.cluster.cli("checkpoints", "verify", self.folder(), check=0)
        work = self.scratch()

        def flip(path, at):
            data = bytearray(path.read_bytes())
            data[at] ^= 1
            path.write_bytes(data)

        weights, state = "model.safetensors", "switchyard/state.json"
        cases = {
            "data": (lambda f: flip(f / weights, -1), weights, "has crc32c"),
            "header": (lambda f: flip(f / weights, 8), weights, "InvalidHeader"),
            "truncated": (lambda f: os.truncate(f / weights, 1000), weights, "bytes, the manifest says"),
            "manifest": (lambda f: flip(f / "switchyard/manifest.json", 0), "switchyard/manifest.json", "JSON"),
            "no manifest": (lambda f: (f / "switchyard/manifest.json").unlink(), "switchyard/manifest.json",
                            "not written to its end"),
            "state": (lambda f: flip(f / state, 3), state, "has crc32c"),
            "missing": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json", "is missing"),
            "stranger": (lambda f: (f / "extra.safetensors").write_bytes(b"x"), "extra.safetensors", "not in the manifest"),
            "config": (lambda f: flip(f / "config.json", 0), "config.json", "JSON"),
        }
        for name, (spoil, file, reason) in cases.items():
            with self.subTest(name):
                folder = work / name.replace(" ", "-")
                shutil.copytree(self.folder(), folder)
                spoil(folder)
                answer = self.cluster.cli("checkpoints", "verify", folder, "-o", "json", check=7)
                faults = {(f["file"], f["reason"]) for f in json.loads(answer.stdout)["faults"]}
                self.assertTrue(any(f == file and reason in r for f, r in faults), faults)

    def test_damage_on_the_coordinators_disk_is_told_to_the_client(self):
        job = "spoilt"
        self.submit(job, "--watch")
        path = self.folder(job) / "model.safetensors"
        os.truncate(path, path.stat().st_size - 1)
        answer = self.cluster.cli("checkpoints", "verify", f"{job}@12", check=7)
        self.assertIn("model.safetensors", answer.stdout)
        answer = self.cluster.cli("checkpoints", "download", f"{job}@12", self.scratch() / "here", check=7)
        self.assertIn("CHECKPOINT_DAMAGED", answer.stderr)
        self.assertIn("model.safetensors", answer.stderr)

    def test_an_export_loads_in_its_dtype_with_the_same_logits(self):
        work = self.scratch()
        bounds = {"fp32": ("torch.float32", 0.0), "bf16": ("torch.bfloat16", 0.03), "fp16": ("torch.float16", 0.004)}
        for dtype in bounds:
            self.cluster.cli("checkpoints", "export", self.folder(), work / dtype, "--dtype", dtype, check=0)
            self.cluster.cli("checkpoints", "verify", work / dtype, check=0)
            self.assertFalse((work / dtype / "switchyard").exists())
        source, *exported = run_transformers(self.folder(), *(work / dtype for dtype in bounds))
        for (dtype, (name, bound)), loaded in zip(bounds.items(), exported):
            self.assertEqual(loaded["faults"], {}, dtype)
            self.assertEqual(loaded["dtype"], name)
            self.assertLessEqual(apart(source["logits"], loaded["logits"]), bound, dtype)
            if bound:
                self.assertNotEqual(source["logits"], loaded["logits"], dtype)
            else:
                self.assertEqual(source["logits"], loaded["logits"], dtype)
        # And back: what bf16 lost is known.
        self.cluster.cli("checkpoints", "diff", self.folder(), work / "fp32", check=0)
        answer = json.loads(self.cluster.cli("checkpoints", "diff", self.folder(), work / "bf16", "-o", "json", check=8).stdout)
        self.assertGreater(answer["summary"]["tensors"]["dtype"], 0)
        self.assertLessEqual(answer["summary"]["max_relative"], 2 ** -8)

    def test_a_bf16_checkpoint_in_many_shards_goes_the_same_way(self):
        folder, work = self.folder("shards"), self.scratch()
        # What an export made is a model to train from.
        self.cluster.cli("checkpoints", "export", self.folder(), work / "base", "--dtype", "bf16", check=0)
        self.submit("shards", "--watch", checkpoint={"max_shard_bytes": 20000},
                    model={"pretrained_model_name_or_path": str(work / "base"), "torch_dtype": "bfloat16"})
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        shards = sorted(set(index["weight_map"].values()))
        self.assertGreater(len(shards), 3)
        self.cluster.cli("checkpoints", "verify", "shards", check=0)
        self.cluster.cli("checkpoints", "download", "shards", work / "here", "--parallel", "8", check=0)
        self.assertEqual(read_tree(work / "here"), read_tree(folder))
        for dtype in ("fp32", "fp16"):
            self.cluster.cli("checkpoints", "export", work / "here", work / dtype, "--dtype", dtype, check=0)
            self.cluster.cli("checkpoints", "verify", work / dtype, check=0)
        answer = json.loads(self.cluster.cli("checkpoints", "diff", folder, work / "fp32", "-o", "json", check=8).stdout)
        self.assertEqual(answer["summary"]["max_abs"], 0, "bf16 fits into fp32")
        source, fp32, fp16 = run_transformers(folder, work / "fp32", work / "fp16")
        self.assertEqual([x["dtype"] for x in (source, fp32, fp16)], ["torch.bfloat16", "torch.float32", "torch.float16"])
        for loaded, bound in ((source, 0.03), (fp16, 0.004)):
            self.assertEqual(loaded["faults"], {})
            self.assertLessEqual(apart(fp32["logits"], loaded["logits"]), bound)
        answer = json.loads(self.cluster.cli("checkpoints", "diff", folder, work / "fp16", "-o", "json", check=8).stdout)
        self.assertLessEqual(answer["summary"]["max_relative"], 2 ** -11)
        # One shard gone, one swapped for another: both are told.
        (work / "here" / shards[0]).unlink()
        shutil.copy(work / "here" / shards[1], work / "here" / shards[2])
        faults = json.loads(self.cluster.cli("checkpoints", "verify", work / "here", "-o", "json", check=7).stdout)["faults"]
        self.assertTrue({shards[0], shards[2]} <= {f["file"] for f in faults}, faults)

    def test_diff_of_two_steps(self):
        answer = json.loads(self.cluster.cli("checkpoints", "diff", "good@6", "good@12", "-o", "json", check=8).stdout)
        counts = answer["summary"]["tensors"]
        self.assertEqual((counts["missing"], counts["added"], counts["shape"], counts["dtype"]), (0, 0, 0, 0))
        self.assertGreater(counts["values"], 10)
        self.cluster.cli("checkpoints", "diff", "good@12", "good@12", check=0)

    def test_pin_unpin_delete(self):
        job = "pins"
        self.submit(job, "--watch")
        self.await_kept(job, KEPT)
        self.cluster.cli("checkpoints", "pin", f"{job}@6", check=0)
        self.assertIn("pinned", self.cluster.cli("checkpoints", "list", job, check=0).stdout)
        self.assertIn("CHECKPOINT_PINNED", self.cluster.cli("checkpoints", "delete", f"{job}@6", check=5).stderr)
        self.restart()
        self.cluster.cli("checkpoints", "unpin", f"{job}@6", check=0)
        self.cluster.cli("checkpoints", "delete", f"{job}@6", check=0)
        self.assertIn("CHECKPOINT_FINAL", self.cluster.cli("checkpoints", "delete", f"{job}@12", check=5).stderr)
        self.cluster.cli("checkpoints", "delete", f"{job}@12", "--final", check=0)
        self.await_kept(job, [10])
        self.cluster.cli("checkpoints", "download", f"{job}@6", self.scratch() / "x", check=3)

    def test_the_names_fill_every_parameter_of_vllm(self):
        folder = self.folder()
        config = json.loads((folder / "config.json").read_text())
        self.assertEqual(config["architectures"], ["Qwen3MoeForCausalLM"])
        self.assertEqual(config["model_type"], "qwen3_moe")
        self.assertNotIn("quantization_config", config)
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            self.assertTrue((folder / name).exists(), name)
        # vLLM loads every safetensors file of the folder itself, unless an index says which.
        files = sorted(folder.glob("*.safetensors"))
        self.assertEqual([f.name for f in files], ["model.safetensors"])
        places = vllm_places(tensor_names(files[0]), config)
        wanted = vllm_parameters(config)
        self.assertEqual(sorted(places), sorted(wanted))
        for parameter, parts in wanted.items():
            self.assertEqual(sorted(map(str, places[parameter])), sorted(map(str, parts)), parameter)
        # The rules see what they are for: Transformers v5's fused names fill no expert.
        fused = [re.sub(r"experts\.\d+\.gate_proj\.weight", "experts.gate_up_proj", n) for n in tensor_names(files[0])]
        with self.assertRaises(AssertionError):
            self.assertEqual(sorted(vllm_places(fused, config)), sorted(wanted))


class RetentionCrashTest(CatalogueTest):
    def test_retention_is_made_up_for_wherever_the_coordinator_dies(self):
        for point in ("delete.before_begin", "delete.before_rename", "delete.after_rename", "delete.before_remove",
                      "delete.before_end", "delete.after_end"):
            with self.subTest(point):
                job = "dies-" + point.replace(".", "-").replace("_", "-")
                self.restart(SWITCHYARD_FAILPOINTS=f"{point}=crash@1")
                self.submit(job)
                cluster.wait_until(f"the crash at {point}", lambda: self.cluster.coordinator.process.poll() is not None, 90)
                self.assertEqual(self.cluster.coordinator.process.returncode, -signal.SIGKILL)
                self.cluster.start_coordinator()
                self.assertEqual(self.cluster.wait_state(job, "SUCCEEDED", "FAILED"), "SUCCEEDED")
                self.await_kept(job, KEPT)


if __name__ == "__main__":
    unittest.main(verbosity=2)
