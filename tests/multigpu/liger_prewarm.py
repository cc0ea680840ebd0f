#!/usr/bin/env python3
"""Compiles share I of N of the configurations that Liger's fused MoE tries, on GPU I modulo their number: the run
that is timed then finds them in Triton's cache, where one process alone would compile for minutes.

usage: liger_prewarm.py I N   (the same TRITON_CACHE_DIR for all)
"""
import sys

import torch
from triton.runtime.autotuner import Autotuner

EXPERTS, TOP_K, HIDDEN, FFN, TOKENS = 128, 8, 2048, 768, 2048


def main():
    share, shares = int(sys.argv[1]), int(sys.argv[2])
    torch.cuda.set_device(share % torch.cuda.device_count())
    prune = Autotuner.prune_configs

    def prune_to_share(self, arguments):
        configs = prune(self, arguments)
        return configs[share::shares] or configs[:1]

    def compile_only(self, *args, config, **meta):
        try:
            self.fn.run(*args, **dict(meta, **config.all_kwargs()))
            torch.cuda.synchronize()
            return [1.0, 1.0, 1.0]
        except Exception:  # a configuration that does not fit this GPU: the timed run drops it too
            return [float("inf")] * 3

    Autotuner.prune_configs = prune_to_share
    Autotuner._bench = compile_only
    # Nothing is kept of these "timings".
    Autotuner.check_disk_cache = lambda self, key, configs, bench: bench() or False
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction
    make = dict(device="cuda", dtype=torch.bfloat16)
    x = torch.randn(TOKENS, HIDDEN, **make).requires_grad_()
    up = (torch.randn(EXPERTS, 2 * FFN, HIDDEN, **make) * 0.02).requires_grad_()
    down = (torch.randn(EXPERTS, HIDDEN, FFN, **make) * 0.02).requires_grad_()
    ids = torch.rand(TOKENS, EXPERTS, device="cuda").topk(TOP_K, -1)[1].int()
    weights = torch.full((TOKENS, TOP_K), 1 / TOP_K, **make).requires_grad_()
    LigerFusedMoEFunction.apply(x, up, down, ids, weights).sum().backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
