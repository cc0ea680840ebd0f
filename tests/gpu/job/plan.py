#!/usr/bin/env python3
"""The memory plan against what a GPU really needs, and the speed of loading and saving.

usage: plan.py TRAINER [--layers 4] [--cases 8:1,exact:1] [--save]

Runs the trainer alone on Qwen3-30B-A3B's shape cut to some layers, random weights and token ids,
rows of 4096 tokens. A case is LAYOUT:MICRO_BATCH[:MEMORY]; layouts: 8 (bf16 weights, gradients and
moments), exact (bf16 gradients, exact master), fp32 (fp32 gradients, exact master); MEMORY: lean,
full_recompute, offload. Each case trains 8 steps and is killed; with --save one more run writes a
checkpoint and a third one loads it. Prints a table; exits 1 when a peak is more than 3 % off.
"""

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "parity"))

import numpy as np
from token_file import write_token_file

STEPS, ROW, VOCAB = 8, 4096, 151936
LAYOUTS = {"8": ("bfloat16", False), "exact": ("bfloat16", True), "fp32": ("float32", True)}


def model_config(layers):
    return {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16",
        "vocab_size": VOCAB, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": layers,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "hidden_act": "silu",
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
        "mlp_only_layers": [], "decoder_sparse_step": 1, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "max_position_embeddings": 40960, "attention_bias": False, "tie_word_embeddings": False,
        "initializer_range": 0.02}


def write_tokens(path, rows):
    random = np.random.default_rng(1)
    supervised = np.ones(ROW, "u1")
    supervised[0] = 0
    write_token_file(path, [[(random.integers(0, VOCAB, ROW), supervised)] for _ in range(rows)])


def frame(folder, name, layout, microbatch, memory, steps, model, random_init):
    gradients, master = LAYOUTS[layout]
    return {
        "type": "config", "job_name": f"projects/default/jobs/{name}", "job_uid": name, "attempt": 1, "rank": 0,
        "world_size": 1, "local_rank": 0, "device": "cuda:0", "threads": 8, "job_dir": str(folder / name),
        "train_tokens": str(folder / "train.tok"),
        "job": {
            "model": {"path": str(model), "dtype": "bfloat16", "random_init": random_init,
                      "activation_memory": f"ACTIVATION_MEMORY_{memory.upper()}"},
            "batch": {"global_batch_size": microbatch, "local_batch_size": microbatch, "max_steps": str(steps)},
            "optimizer": {"kind": "OPTIMIZER_KIND_ADAMW", "lr": 1e-5, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
                          "weight_decay": 0.01, "max_grad_norm": 1.0, "moment_dtype": "bfloat16",
                          "gradient_dtype": gradients, "exact_master": master},
            "lr_schedule": {"decay": "LR_DECAY_CONSTANT"}, "data": {}, "seed": 42}}


def run(trainer, folder, name, config, until):
    """Frames and log lines; the process is killed after step `until`."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    log = folder / f"{name}.log"
    frames = []
    with open(log, "w") as stderr:
        process = subprocess.Popen([trainer, "--config", path], stdout=subprocess.PIPE, stderr=stderr, text=True)
        for line in process.stdout:
            frames.append(json.loads(line))
            if frames[-1]["type"] == "step" and frames[-1]["step"] == until:
                process.kill()
        process.wait()
    return frames, log.read_text()


def numbers(pattern, text):
    found = re.findall(pattern, text)
    return [float(v) for v in (found[-1] if isinstance(found[-1], tuple) else (found[-1],))] if found else None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("trainer")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--cases", default="8:1,exact:1")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    status = 0
    with tempfile.TemporaryDirectory(prefix="sy-plan-") as made:
        folder = pathlib.Path(made)
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(model_config(arguments.layers)))
        cases = [c.split(":") for c in arguments.cases.split(",")]
        write_tokens(folder / "train.tok", (STEPS + 1) * max(int(c[1]) for c in cases))
        print(f"{'case':24} {'planned':>9} {'peak':>9} {'ratio':>6} {'ms':>8} {'tok/s':>8} {'MFU %':>6}  load")
        for case in cases:
            layout, microbatch, memory = case[0], int(case[1]), (case[2:] or ["lean"])[0]
            name = "-".join(case)
            frames, log = run(arguments.trainer, folder, name, frame(
                folder, name, layout, microbatch, memory, STEPS + 1, model, True), STEPS)
            steps = [f for f in frames if f["type"] == "step"]
            measured = numbers(r"device memory planned=(\d+) peak=(\d+)", log)
            if len(steps) < STEPS or measured is None:
                print(f"{name:24} FAILED: {[f for f in frames if f['type'] == 'error']} {log[-600:]}")
                status = 1
                continue
            seconds = float(np.median([s["step_seconds"] for s in steps[3:]]))
            ratio = measured[1] / measured[0]
            off = abs(ratio - 1) > 0.03
            status |= off
            load = re.findall(r"loaded (.*)", log)
            print(f"{name:24} {measured[0] / 2**30:8.2f}G {measured[1] / 2**30:8.2f}G {ratio:6.3f} {1e3 * seconds:8.1f} "
                  f"{microbatch * ROW / seconds:8.0f} {100 * steps[-1]['mfu']:6.1f}  {load[0] if load else ''}"
                  f"{'  MORE THAN 3 % OFF' if off else ''}")
            phases = {k: round(1e3 * v, 2) for k, v in steps[-1]["phase_seconds"].items()}
            print(f"{'':24} last step's phases, ms: {phases}; loss {steps[0]['loss']:.4f} to {steps[-1]['loss']:.4f}")
        if arguments.save:
            frames, log = run(arguments.trainer, folder, "save", frame(
                folder, "save", "exact", 1, "lean", 1, model, True), -1)
            saved = [f for f in frames if f["type"] == "checkpoint"]
            print("save:", re.findall(r"saved (.*)", log), [f for f in frames if f["type"] == "error"])
            if saved:
                source = pathlib.Path(saved[0]["path"])
                size = sum(f.stat().st_size for f in source.glob("*.safetensors"))
                shutil.copy(model / "config.json", source / "config.json")
                frames, log = run(arguments.trainer, folder, "load", frame(
                    folder, "load", "exact", 1, "lean", 2, source, False), 1)
                seconds = numbers(r"loaded .*seconds=([0-9.e+-]+)", log)
                print(f"load: {size / 1e9:.2f} GB of safetensors in {seconds} s: "
                      f"{size / 1e9 / seconds[0] if seconds else 0:.2f} GB/s; {re.findall(r'loaded (.*)', log)}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
