#!/usr/bin/env python3
"""The peer of run.py: the same state saved with torch.distributed.checkpoint (async_save), loaded, and its
weights consolidated into safetensors files of at most 5 GB, as AutoModel does. Beside it dd.

usage: dcp.py [--model 6b|3b|1b|tiny] [--device cuda:0] [--work DIR]

State per parameter: weight and both moments in bf16, and 16 bits of the fp32 master. Rows as run.py's.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from run import MODELS  # noqa: E402


def shapes(m):
    hidden, kv = m["hidden_size"], m["num_key_value_heads"] * m["head_dim"]
    q = m["num_attention_heads"] * m["head_dim"]
    yield "embed_tokens", (m["vocab_size"], hidden)
    yield "lm_head", (m["vocab_size"], hidden)
    for layer in range(m["num_hidden_layers"]):
        p = f"layers.{layer}."
        for name, shape in (("q_proj", (q, hidden)), ("k_proj", (kv, hidden)), ("v_proj", (kv, hidden)),
                            ("o_proj", (hidden, q)), ("gate", (m["num_experts"], hidden)),
                            ("gate_up_proj", (m["num_experts"], 2 * m["moe_intermediate_size"], hidden)),
                            ("down_proj", (m["num_experts"], hidden, m["moe_intermediate_size"]))):
            yield p + name, shape


def peak_host():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def forget_cached(folder):
    """Reading must come from the disk, as after a restart."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="3b")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--work")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU")
        return 77
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29555")
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", rank=0, world_size=1)
    model = dict(shapes(MODELS[options.model]))
    state = {"model": {n: torch.randn(s, device=device, dtype=torch.bfloat16) for n, s in model.items()},
             "exp_avg": {n: torch.randn(s, device=device, dtype=torch.bfloat16) for n, s in model.items()},
             "exp_avg_sq": {n: torch.randn(s, device=device, dtype=torch.bfloat16) for n, s in model.items()},
             "remainder": {n: torch.zeros(s, device=device, dtype=torch.int16) for n, s in model.items()}}
    size = sum(t.nbytes for part in state.values() for t in part.values())
    weights = sum(t.nbytes for t in state["model"].values())
    if device.type == "cuda":
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        folder = pathlib.Path(folder)
        before = peak_host()
        start = time.monotonic()
        future = dcp.async_save(state, storage_writer=dcp.FileSystemWriter(folder / "dcp", single_file_per_rank=False,
                                                                          thread_count=8))
        stall = time.monotonic() - start
        future.result()
        written = time.monotonic() - start
        print(f"torch {torch.__version__} DCP, {size / 1e9:.2f} GB: async_save returns after {stall * 1e3:.0f} ms, "
              f"written after {written:.2f} s: {size / 1e9 / written:.2f} GB/s; host before {before / 1e9:.2f} GB, "
              f"peak {peak_host() / 1e9:.2f} GB", flush=True)
        forget_cached(folder)
        start = time.monotonic()
        dcp.load(state, storage_reader=dcp.FileSystemReader(folder / "dcp"))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - start
        print(f"loaded in {seconds:.2f} s: {size / 1e9 / seconds:.2f} GB/s; peak host {peak_host() / 1e9:.2f} GB",
              flush=True)
        del state["exp_avg"], state["exp_avg_sq"], state["remainder"]
        start = time.monotonic()
        host = {"model": {n: torch.empty(s, dtype=torch.bfloat16) for n, s in model.items()}}
        dcp.load(host, storage_reader=dcp.FileSystemReader(folder / "dcp"))
        shard, shards = {}, []
        for name, tensor in host["model"].items():
            if sum(t.nbytes for t in shard.values()) + tensor.nbytes > 5e9:
                shards.append(shard)
                shard = {}
            shard[name] = tensor
        for number, tensors in enumerate(shards + [shard]):
            save_file(tensors, folder / f"model-{number}.safetensors")
        os.sync()
        seconds = time.monotonic() - start
        print(f"weights consolidated in {seconds:.2f} s: {weights / 1e9:.2f} GB; peak host {peak_host() / 1e9:.2f} GB",
              flush=True)
        shutil.rmtree(folder / "dcp")
        for flags in (["oflag=direct"], []):
            done = subprocess.run(["dd", "if=/dev/zero", f"of={folder}/dd", "bs=16M",
                                   "count=" + ("256" if device.type == "cuda" else "1"), "conv=fsync", *flags],
                                  capture_output=True, text=True)
            print("dd", *flags, done.stderr.strip().splitlines()[-1], flush=True)
            (folder / "dd").unlink()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
