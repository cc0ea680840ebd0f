#!/usr/bin/env python3
"""What NCCL moves between the GPUs of one machine: the all-to-all of token rows that our dispatch
replaces, with and without deduplication, and the collectives of sharded weights.

One process per GPU. Prints one line per case: payload that leaves a GPU, median time, GB/s on the
wire per GPU and direction; for weights the bus bandwidth (payload x (R-1)/R over time).
"""
import argparse
import json
import math
import statistics
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

EXPERTS, TOP_K = 128, 8


def remote_copies(world, dedup):
    """Rows that a token sends to other ranks, uniform routing (docs/multigpu.md)."""
    if not dedup:
        return TOP_K * (world - 1) / world
    mine = EXPERTS // world
    return (world - 1) * (1 - math.comb(EXPERTS - mine, TOP_K) / math.comb(EXPERTS, TOP_K))


def median_us(call, samples, launches):
    for _ in range(3):
        call()
    times = []
    for _ in range(samples):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(launches):
            call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3 / launches)
    # The slowest rank's time counts.
    mine = torch.tensor([statistics.median(times)], device="cuda")
    dist.all_reduce(mine, op=dist.ReduceOp.MAX)
    return mine.item()


def report(args, rank, row):
    if rank != 0:
        return
    print(f"{row['what']:<34} {row['mb']:>8.1f} MB {row['us']:>9.1f} us {row['gb_s']:>7.1f} GB/s", flush=True)
    if args.json:
        with open(args.json, "a") as out:
            out.write(json.dumps(dict(bench="nccl", **row)) + "\n")


def bench_rows(args, rank, world):
    for hidden in (2048, 7168):
        for tokens in (4096, 8192):
            for dedup in (True, False):
                rows = round(tokens * remote_copies(world, dedup) / (world - 1))  # for one peer
                splits = [0 if r == rank else rows for r in range(world)]
                sent = torch.randn(rows * (world - 1), hidden, device="cuda").bfloat16()
                got = torch.full_like(sent, float("nan"))
                call = lambda: dist.all_to_all_single(got, sent, splits, splits)
                call()
                total = torch.tensor([sent.double().sum(), -got.double().sum()], device="cuda")
                dist.all_reduce(total)
                if not abs(total.sum().item()) < 1e-6 * total[0].abs().item() + 1e-3:
                    raise SystemExit(f"all-to-all: sent and received differ: {total.tolist()}")
                us = median_us(call, args.samples, 8)
                size = sent.numel() * 2
                report(args, rank, dict(what=f"all-to-all H {hidden} T {tokens} {'dedup' if dedup else 'copies'}",
                                        mb=size / 1e6, us=us, gb_s=size / us / 1e3))


def bench_weights(args, rank, world):
    for name, elements in (("dense block", 19_136_512), ("experts of a layer", 603_979_776)):
        full = torch.randn(elements // world * world, device="cuda", dtype=torch.bfloat16)
        shard = torch.empty(full.numel() // world, device="cuda", dtype=torch.bfloat16)
        wire = full.numel() * 2 * (world - 1) / world
        us = median_us(lambda: dist.all_gather_into_tensor(full, shard), args.samples, 2)
        report(args, rank, dict(what=f"all-gather, {name}", mb=wire / 1e6, us=us, gb_s=wire / us / 1e3))
        us = median_us(lambda: dist.reduce_scatter_tensor(shard, full), args.samples, 2)
        report(args, rank, dict(what=f"reduce-scatter bf16, {name}", mb=wire / 1e6, us=us, gb_s=wire / us / 1e3))
        del full, shard
    one = torch.zeros(1, device="cuda")
    us = median_us(lambda: dist.all_reduce(one), args.samples, 50)
    report(args, rank, dict(what="all-reduce of one float", mb=0.0, us=us, gb_s=0.0))


def run(rank, world, store, args):
    torch.cuda.set_device(rank)
    torch.manual_seed(rank)
    dist.init_process_group("nccl", init_method=f"file://{store}", rank=rank, world_size=world,
                            device_id=torch.device("cuda", rank))
    bench_rows(args, rank, world)
    bench_weights(args, rank, world)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=0, help="how many; 0: all")
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--json", default="", help="rows are appended to this file")
    args = parser.parse_args()
    world = args.gpus or torch.cuda.device_count()
    if torch.cuda.device_count() < max(world, 2):
        raise SystemExit(f"nccl_bandwidth: needs {max(world, 2)} GPUs, this machine has {torch.cuda.device_count()}")
    print(f"# {world} x {torch.cuda.get_device_name(0)}, torch {torch.__version__}, NCCL {torch.cuda.nccl.version()}",
          flush=True)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (world, f"{folder}/store", args), nprocs=world)


if __name__ == "__main__":
    main()
