#!/usr/bin/env python3
"""Whole training steps of Transformers + FSDP2 on the GPUs of one machine, as `switchyard-bench ep` measures
ours: Qwen3-30B-A3B cut to a few layers, bf16 weights, gradients and Adam moments, random ids, the model's own
random router.

One process per GPU. The model is Transformers' Qwen3-MoE, each block and the root under `fully_shard`; with
--liger (its wheel must be importable) Liger's kernels and its cross entropy on bf16 logits, else grouped_mm
and the model's own loss. One line of JSON per row; the step is the slowest rank's median, tokens per GPU.
Weights are drawn as the one-GPU peers' driver draws them: embedding N(0, 1), other matrices N(0, 0.02).
"""
import argparse
import json
import statistics
import tempfile
import time
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.distributed.fsdp import fully_shard

QWEN3_30B_A3B = dict(vocab_size=151936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
                     num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128,
                     num_experts_per_tok=8)
TOY = dict(vocab_size=512, hidden_size=128, intermediate_size=128, moe_intermediate_size=64,
           num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_experts=16, num_experts_per_tok=4)


class LossModel(torch.nn.Module):
    """The model with its loss inside forward, where the root's own weights are whole."""

    def __init__(self, causal_lm, liger):
        super().__init__()
        self.causal_lm = causal_lm
        self.cross_entropy = None
        if liger:
            from liger_kernel.transformers import LigerCrossEntropyLoss
            self.cross_entropy = LigerCrossEntropyLoss()

    def forward(self, ids, labels):
        hidden = self.causal_lm.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = F.linear(hidden.flatten(0, 1), self.causal_lm.lm_head.weight)
        if self.cross_entropy is not None:
            return self.cross_entropy(logits, labels.flatten())
        return F.cross_entropy(logits.float(), labels.flatten())  # as the model's own


def build(args, device):
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig
    if args.liger:
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3_moe
        apply_liger_kernel_to_qwen3_moe(swiglu=True, rope=True, rms_norm=True, fused_linear_cross_entropy=False)
    config = Qwen3MoeConfig(num_hidden_layers=args.layers, norm_topk_prob=True, decoder_sparse_step=1,
                            rope_theta=1e6, max_position_embeddings=40960, rms_norm_eps=1e-6,
                            tie_word_embeddings=False, router_aux_loss_coef=0.0,
                            **(TOY if args.toy else QWEN3_30B_A3B))
    config._attn_implementation = "sdpa"
    config._experts_implementation = "grouped_mm"
    with device:
        causal_lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator(device=device).manual_seed(1)
    with torch.no_grad():
        for name, weight in causal_lm.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(0, 1.0 if "embed_tokens" in name else 0.02, generator=generator)
    causal_lm.train()
    if args.checkpointing:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = LossModel(causal_lm, args.liger)
    for block in causal_lm.model.layers:
        fully_shard(block, reshard_after_forward=args.reshard)
    fully_shard(model, reshard_after_forward=args.reshard)
    return model


def slowest(value, device):
    value = torch.tensor([value], device=device, dtype=torch.float64)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value.item()


class Mark:
    """A point in the stream's time; in the host's where there is no GPU."""

    def __init__(self, device):
        self.event = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        self.at = time.perf_counter()

    def ms_since(self, other):
        return other.event.elapsed_time(self.event) if self.event else (self.at - other.at) * 1e3


def measure(args, model, optimizer, rows, length, vocabulary, device):
    generator = torch.Generator(device=device).manual_seed(7 + dist.get_rank())
    batches = [torch.randint(0, vocabulary, (rows, length), device=device, generator=generator) for _ in range(4)]
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    marks = []
    for step in range(args.warm_up + args.steps):
        ids = batches[step % len(batches)]
        begin = Mark(device)
        loss = model(ids, torch.roll(ids, -1, 1))
        loss.backward()
        middle = Mark(device)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        marks.append((begin, middle, Mark(device)))
        if step == 0:
            first = loss.detach()
    if device.type == "cuda":
        torch.cuda.synchronize()
    marks = marks[args.warm_up:]
    step_ms = slowest(statistics.median(end.ms_since(begin) for begin, _, end in marks), device)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return dict(step_ms=round(step_ms, 2), tokens_per_second_per_gpu=round(rows * length / step_ms * 1e3),
                forward_backward_ms=round(
                    slowest(statistics.median(m.ms_since(b) for b, m, _ in marks), device), 2),
                peak_gib=round(slowest(peak, device) / 2**30, 2), first_loss=round(first.item(), 3),
                last_loss=round(loss.item(), 3))


def run(rank, world, store, args):
    device = torch.device("cpu") if args.cpu else torch.device("cuda", rank)
    if not args.cpu:
        torch.cuda.set_device(rank)
    dist.init_process_group("gloo" if args.cpu else "nccl", init_method=f"file://{store}", rank=rank,
                            world_size=world, device_id=None if args.cpu else device)
    model = build(args, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=not args.cpu)
    shape = TOY if args.toy else QWEN3_30B_A3B
    for rows in [int(n) for n in args.micro_batch.split(",")]:
        row = dict(item="peer", peer="transformers+liger+fsdp2" if args.liger else "transformers+fsdp2",
                   gpus=world, layers=args.layers, reshard_after_forward=args.reshard, micro_batch=rows,
                   checkpointing=args.checkpointing)
        failed = ""
        try:
            row.update(measure(args, model, optimizer, rows, args.sequence, shape["vocab_size"], device))
        except torch.cuda.OutOfMemoryError:
            failed = "out of memory"
        except Exception as error:
            traceback.print_exc()
            failed = f"{type(error).__name__}: {str(error)[:200]}"
        if failed:
            # The ranks' collectives no longer match: this size and larger ones end here.
            print(json.dumps(dict(row, error=failed)), flush=True)
            raise SystemExit(0 if failed == "out of memory" else 1)
        if rank == 0:
            print(json.dumps(row), flush=True)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=0, help="how many; 0: all")
    parser.add_argument("--micro-batch", default="1,2,4,8", help="rows per GPU")
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=4)
    parser.add_argument("--liger", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--no-reshard", dest="reshard", action="store_false",
                        help="weights stay whole between forward and backward")
    parser.add_argument("--toy", action="store_true", help="small sizes")
    parser.add_argument("--cpu", action="store_true", help="over Gloo: a check of this script only")
    args = parser.parse_args()
    world = args.gpus or torch.cuda.device_count()
    if not args.cpu and torch.cuda.device_count() < max(world, 1):
        raise SystemExit(f"peers_fsdp: needs {max(world, 1)} GPUs, this machine has {torch.cuda.device_count()}")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (world, f"{folder}/store", args), nprocs=world)


if __name__ == "__main__":
    main()
