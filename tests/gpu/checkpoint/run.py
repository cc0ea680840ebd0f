#!/usr/bin/env python3
"""Checkpoints of the real trainer on one GPU: what a save costs training, how fast it is written and
loaded, and whether a job that is killed gives the same bits as one that is not.

usage: run.py TRAINER [--stall] [--exact] [--model 6b|3b|1b|tiny] [--device cuda:0] [--kills N] [--work DIR]

--stall trains, saves once on the way, and compares the steps that follow with those before; then it
kills the trainer and resumes. The folder needs 8 bytes a parameter. --exact trains deterministically
in one go, then again with SIGKILLs at random moments, and compares every loss and the final files.
Prints a table; exit code 1 when something is not as it should be, 77 without a GPU.
"""

import argparse
import json
import pathlib
import queue
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "parity"))
from token_file import write_token_file  # noqa: E402

# Qwen3-30B-A3B cut to 8 and 4 layers, and a smaller one; parameters: 5.6 B, 3.1 B and 1.1 B.
MODELS = {
    "6b": dict(vocab_size=151936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
               num_hidden_layers=8, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
               num_experts=128, num_experts_per_tok=8),
    "3b": dict(vocab_size=151936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
               num_hidden_layers=4, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
               num_experts=128, num_experts_per_tok=8),
    "1b": dict(vocab_size=32768, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
               num_hidden_layers=2, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
               num_experts=96, num_experts_per_tok=8),
    "tiny": dict(vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
                 num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                 num_experts=8, num_experts_per_tok=2)}
ROW = {"6b": 4096, "3b": 4096, "1b": 2048, "tiny": 64}


def make_work(folder, model):
    (folder / "model").mkdir(parents=True)
    config = dict(MODELS[model], architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", torch_dtype="bfloat16",
                  hidden_act="silu", norm_topk_prob=True, mlp_only_layers=[], decoder_sparse_step=1,
                  router_aux_loss_coef=0.001, rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=40960,
                  attention_bias=False, tie_word_embeddings=False, initializer_range=0.02)
    (folder / "model/config.json").write_text(json.dumps(config))
    random_ids = np.random.default_rng(1)
    rows = []
    for _ in range(64):
        ids = random_ids.integers(0, config["vocab_size"], ROW[model]).astype("i4")
        rows.append([(ids, np.array([0] + [1] * (ROW[model] - 1), dtype="u1"))])
    write_token_file(folder / "train.tok", rows)


class Trainer:
    """One rank, alone; frames arrive with the time."""

    def __init__(self, program, folder, name, attempt, options, resume="", steps=100000, every=0):
        self.log = folder / f"{name}-{attempt}.log"
        bf16 = options.device != "cpu"
        frame = {
            "type": "config", "job_name": "projects/default/jobs/" + name, "job_uid": name, "attempt": attempt,
            "rank": 0, "world_size": 1, "local_rank": 0, "master_address": "127.0.0.1", "master_port": 29500,
            "device": options.device, "threads": options.threads, "job_dir": str(folder / name),
            "resume_from": str(resume), "train_tokens": str(folder / "train.tok"), "validation_tokens": [],
            "job": {
                "model": {"path": str(folder / "model"), "dtype": "bfloat16" if bf16 else "float32",
                          "random_init": True, "activation_memory": "ACTIVATION_MEMORY_LEAN"},
                "data": {"shuffle": True},
                "batch": {"global_batch_size": options.rows, "local_batch_size": 1, "max_steps": str(steps)},
                "optimizer": {"kind": "OPTIMIZER_KIND_ADAMW", "lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
                              "weight_decay": 0.01, "max_grad_norm": 1.0,
                              "moment_dtype": "bfloat16" if bf16 else "float32",
                              "gradient_dtype": "bfloat16" if bf16 else "float32", "exact_master": bf16},
                "lr_schedule": {"decay": "LR_DECAY_COSINE", "warmup_steps": "2", "decay_steps": "1000"},
                "parallel": {"num_ranks": 1, "ep_size": 1, "dp_replicate_size": 1, "collective_timeout": "60s"},
                "checkpoint": {"every_steps": str(every), "save_optimizer": True},
                "deterministic": options.exact, "seed": 42}}
        config = folder / f"{name}-{attempt}.json"
        config.write_text(json.dumps(frame))
        self.process = subprocess.Popen([program, "--config", config], stdout=subprocess.PIPE, text=True,
                                        stderr=open(self.log, "w"))
        self.frames = queue.Queue()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.frames.put((time.monotonic(), json.loads(line)))
        self.frames.put((time.monotonic(), None))

    def next(self, timeout=120):
        """(time, frame); None at the end."""
        return self.frames.get(timeout=timeout)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.reader.join()

    def logged(self, pattern):
        found = re.findall(pattern, self.log.read_text())
        if not found:
            raise AssertionError(f"no {pattern!r} in the log:\n{self.log.read_text()[-2000:]}")
        return found[-1]


def complete(folder):
    """Folders of checkpoints that have their manifest, by step."""
    found = {int(path.parents[1].name[5:]): path.parents[1]
             for path in folder.glob("staging/*/step-*/switchyard/manifest.json")}
    return dict(sorted(found.items()))


def stall(program, folder, options):
    every = options.every
    trainer = Trainer(program, folder, "stall", 1, options, every=every)
    steps, saved, failed = {}, None, None
    while saved is None:
        at, frame = trainer.next()
        assert frame is not None, trainer.log.read_text()[-3000:]
        if frame["type"] == "step":
            steps[frame["step"]] = (at, frame)
        elif frame["type"] == "checkpoint":
            saved = frame
        elif frame["type"] in ("warning", "error"):
            raise AssertionError(frame)
    trainer.kill()
    # A step's frame comes while the next one computes: intervals are steps.
    times = [steps[s][0] for s in sorted(steps)]
    interval = {s: times[s - 1] - times[s - 2] for s in sorted(steps) if s >= 2}
    usual = statistics.median(interval[s] for s in range(3, every + 1))
    last = min(max(steps), 2 * every)
    during = [interval[s] for s in range(every + 1, last + 1)]
    lost = sum(during) - usual * len(during)
    worst = max(during)
    seconds = float(trainer.logged(r"saved step=\d+ seconds=([\d.]+) in_background=1"))
    size = sum(path.stat().st_size for path in pathlib.Path(saved["path"]).rglob("*") if path.is_file())
    update = [steps[s][1]["phase_seconds"].get("optimizer", 0) for s in range(3, last + 1)]
    print(f"step without a save          {usual * 1e3:9.1f} ms   (median of {every - 2})")
    print(f"slowest step after the save  {worst * 1e3:9.1f} ms   (of {len(during)})")
    print(f"stall of the save            {lost * 1e3:9.1f} ms   sum over these steps, {lost / usual:.2f} steps; "
          f"longest optimizer phase {max(update) * 1e3:.1f} ms, median {statistics.median(update) * 1e3:.1f}")
    print(f"written in the background    {size / 1e9:9.2f} GB   in {seconds:.2f} s: {size / 1e9 / seconds:.2f} GB/s",
          flush=True)

    step = saved["step"]
    resumed = Trainer(program, folder, "stall", 2, options, resume=saved["path"])
    start = time.monotonic()
    while True:
        at, frame = resumed.next()
        assert frame is not None and frame["type"] not in ("warning", "error"), frame or resumed.log.read_text()[-3000:]
        if frame["type"] == "step":
            break
    resumed.kill()
    state, seconds, peak = resumed.logged(r"loaded state_bytes=(\d+) seconds=([\d.]+).*peak_host_bytes=(\d+)")
    print(f"loaded                       {int(state) / 1e9:9.2f} GB   in {float(seconds):.2f} s: "
          f"{size / 1e9 / float(seconds):.2f} GB/s of files; peak host {int(peak) / 1e9:.2f} GB; "
          f"first step {at - start:.1f} s after the start")
    same = frame["loss"] == steps[step + 1][1]["loss"] if step + 1 in steps else None
    print(f"loss of step {frame['step']} after resuming: {frame['loss']:.6f}, before: "
          f"{steps[step + 1][1]['loss']:.6f}, same bits: {same}", flush=True)
    shutil.rmtree(folder / "stall")
    assert frame["step"] == step + 1, frame
    return lost < usual or options.device == "cpu"  # where the writer shares the cores with training


def digest(folder):
    """Checksums of the tensors' files, as the trainer computed them from what it wrote."""
    manifest = json.loads((folder / "switchyard/manifest.json").read_text())
    return {file["name"]: file["crc32c"] for file in manifest["files"] if file["name"].endswith(".safetensors")}


def run_to_end(program, folder, name, options, kills, spans):
    """Losses by step, files of the final checkpoint, kills made. `spans`: seconds of a run without kills."""
    losses, attempt, made = {}, 0, 0
    while True:
        attempt += 1
        found = complete(folder / name)
        for old in list(found.values())[:-1]:
            shutil.rmtree(old)
        resume = list(found.values())[-1] if found else ""
        started = time.monotonic()
        trainer = Trainer(program, folder, name, attempt, options, resume, options.steps, options.every)
        deadline = started + options.random.uniform(0.3, 1.0) * spans if made < kills else float("inf")
        ended = False
        while time.monotonic() < deadline:
            try:
                _, frame = trainer.next(min(120, max(0.01, deadline - time.monotonic())))
            except queue.Empty:
                continue
            if frame is None:
                ended = True
                break
            if frame["type"] == "step":
                before = losses.setdefault(frame["step"], frame["loss"])
                assert before == frame["loss"], f"attempt {attempt}, step {frame['step']}: {frame['loss']}, was {before}"
            assert frame["type"] not in ("error", "warning"), frame
        if ended:
            assert trainer.process.wait() == 0, trainer.log.read_text()[-3000:]
            final = complete(folder / name)[options.steps]
            files = digest(final)
            shutil.rmtree(folder / name)
            return losses, files, made, time.monotonic() - started
        trainer.kill()
        made += 1


def exact(program, folder, options):
    losses, files, _, seconds = run_to_end(program, folder, "whole", options, 0, 0)
    again, files_again, made, _ = run_to_end(program, folder, "killed", options, options.kills, seconds)
    print(f"{options.steps} steps in one go: {seconds:.1f} s; with {made} SIGKILLs: "
          f"losses {'the same bits' if losses == again else 'DIFFER'}, "
          f"final files {'the same bytes' if files == files_again else 'DIFFER'} ({len(files)} files)", flush=True)
    assert len(losses) == options.steps, losses
    return losses == again and files == files_again


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer")
    parser.add_argument("--stall", action="store_true")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--model", choices=MODELS, default="6b")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--rows", type=int, default=16, help="of a step, in micro-batches of one")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--every", type=int, default=12)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work")
    options = parser.parse_args()
    options.random = random.Random(options.seed)
    if options.device != "cpu":
        import torch
        if not torch.cuda.is_available():
            print("no GPU")
            return 77
        print(torch.cuda.get_device_name())
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        folder = pathlib.Path(folder)
        make_work(folder, options.model)
        good = True
        if options.stall:
            good &= stall(options.trainer, folder, options)
        if options.exact:
            good &= exact(options.trainer, folder, options)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
