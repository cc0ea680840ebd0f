#!/usr/bin/env python3
"""The power goes while the real trainer writes checkpoints: what it has announced is there, whole, and
training goes on from it with the same bits. An ext4 on a loop device with the shutdown ioctl, which
drops all that was not synced. And the disk is full: training goes on, each checkpoint is a warning."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1] / "faults"), str(HERE.parents[1] / "parity")]
from loop_disk import fill, loop_disk, power_loss, remount  # noqa: E402
from token_file import crc32c, write_token_file  # noqa: E402

TRAINER = pathlib.Path(os.environ["SY_BUILD_DIR"]) / "bin/switchyard-trainer"
ROUNDS, STEPS = 5, 60
CONFIG = dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", torch_dtype="float32", vocab_size=64,
              hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=1,
              num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
              hidden_act="silu", norm_topk_prob=True, mlp_only_layers=[], decoder_sparse_step=1, rms_norm_eps=1e-6,
              rope_theta=1e4, max_position_embeddings=64, attention_bias=False, tie_word_embeddings=False,
              initializer_range=0.1)


def make_work(folder):
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(json.dumps(CONFIG))
    ids = np.random.default_rng(1)
    rows = [[(ids.integers(0, 64, 32).astype("i4"), np.array([0] + [1] * 31, dtype="u1"))] for _ in range(40)]
    write_token_file(folder / "train.tok", rows)


def start(folder, job_dir, name, every, resume=""):
    frame = {
        "type": "config", "job_name": "projects/p/jobs/j", "job_uid": "u", "attempt": 1, "rank": 0, "world_size": 1,
        "local_rank": 0, "master_address": "127.0.0.1", "master_port": 0, "device": "cpu", "threads": 1,
        "job_dir": str(job_dir), "resume_from": str(resume), "train_tokens": str(folder / "train.tok"),
        "validation_tokens": [],
        "job": {"model": {"path": str(folder / "model"), "dtype": "float32", "random_init": True},
                "data": {"shuffle": True},
                "batch": {"global_batch_size": 2, "local_batch_size": 2, "max_steps": str(STEPS)},
                "optimizer": {"kind": "OPTIMIZER_KIND_ADAMW", "lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
                              "moment_dtype": "float32", "gradient_dtype": "float32"},
                "lr_schedule": {"decay": "LR_DECAY_COSINE", "decay_steps": "100"},
                "parallel": {"num_ranks": 1, "ep_size": 1, "dp_replicate_size": 1, "collective_timeout": "60s"},
                "checkpoint": {"every_steps": str(every), "save_optimizer": True}, "seed": 1}}
    config = folder / f"{name}.json"
    config.write_text(json.dumps(frame))
    return subprocess.Popen([TRAINER, "--config", config], stdout=subprocess.PIPE, text=True,
                            stderr=open(folder / f"{name}.log", "w"))


def losses_to_the_end(process):
    losses = {}
    for line in process.stdout:
        frame = json.loads(line)
        assert frame["type"] not in ("warning", "error"), frame
        if frame["type"] == "step":
            losses[frame["step"]] = frame["loss"]
    assert process.wait() == 0
    return losses


def verify(folder):
    """Every file that the manifest lists is whole."""
    manifest = json.loads((folder / "switchyard/manifest.json").read_text())
    for file in manifest["files"]:
        data = (folder / file["name"]).read_bytes()
        assert len(data) == file["size"], (folder, file, len(data))
        assert f"{crc32c(data):08x}" == file["crc32c"], (folder, file)


def full_disk(folder, wanted):
    """No room for a checkpoint: a warning each, with what is needed and free, and only the last one is fatal."""
    disk = folder / "full"
    disk.mkdir()
    with loop_disk(disk, 16) as point:
        (point / "job").mkdir()
        fill(point, leave=20_000)
        process = start(folder, point / "job", "full", 20)
        frames = [json.loads(line) for line in process.stdout]
        assert process.wait() == 1
        assert {f["step"]: f["loss"] for f in frames if f["type"] == "step"} == wanted
        warnings = [f["message"] for f in frames if f["type"] == "warning"]
        assert len(warnings) == 3, warnings
        for step, message in zip((20, 40, 60), warnings):
            assert f"the checkpoint of step {step} was not written" in message, message
            needed, free = map(int, re.search(r"needs (\d+) bytes, (\d+) are free", message).groups())
            assert free < needed, message
        assert frames[-1]["type"] == "error" and frames[-1]["reason"] == "DISK_FULL", frames[-1]
        assert not list((point / "job/staging/1").iterdir()), "what failed is removed"
        print(f"full disk: {warnings[0]}")


def main():
    if os.geteuid() != 0 or not (shutil.which("mkfs.ext4") or os.path.exists("/usr/sbin/mkfs.ext4")):
        print("skipped: needs root and mkfs.ext4")
        return 77
    moments = random.Random(3)
    complete = torn = 0
    with tempfile.TemporaryDirectory(prefix="sy-power-") as folder:
        folder = pathlib.Path(folder)
        make_work(folder)
        wanted = losses_to_the_end(start(folder, folder / "whole", "whole", 0))
        assert len(wanted) == STEPS
        for number in range(ROUNDS):
            disk = folder / f"disk-{number}"
            disk.mkdir()
            with loop_disk(disk, 64) as point:
                process = start(folder, point / "job", f"dark-{number}", 1)
                announced = []
                after = moments.randrange(1, STEPS // 2)
                for line in process.stdout:
                    frame = json.loads(line)
                    if frame["type"] == "checkpoint":
                        announced.append(pathlib.Path(frame["path"]))
                    if len(announced) >= after:
                        break
                time.sleep(moments.uniform(0, 0.02))  # the moment of the fault
                power_loss(point)
                process.send_signal(signal.SIGKILL)
                # What had been said before, and not yet read.
                for line in process.stdout:
                    if line.endswith("\n") and (frame := json.loads(line))["type"] == "checkpoint":
                        announced.append(pathlib.Path(frame["path"]))
                process.wait()
                remount(disk)
                verify(announced[0])
                verify(announced[-1])
                for path in announced:
                    assert (path / "switchyard/manifest.json").exists(), f"{path} was announced and is not there"
                # One more may be there, whole or without a manifest.
                for path in (point / "job/staging/1").iterdir():
                    if path in announced:
                        continue
                    if (path / "switchyard/manifest.json").exists():
                        verify(path)
                        complete += 1
                    else:
                        torn += 1
                step = int(announced[-1].name[5:])
                again = losses_to_the_end(start(folder, folder / f"again-{number}", f"again-{number}", 0, announced[-1]))
                assert again == {s: wanted[s] for s in range(step + 1, STEPS + 1)}, f"after step {step}"
                print(f"round {number}: {len(announced)} announced, resumed from step {step}: the same losses", flush=True)
        full_disk(folder, wanted)
    print(f"{ROUNDS} power cuts; beyond what was announced: {complete} whole, {torn} without a manifest")
    return 0


if __name__ == "__main__":
    sys.exit(main())
