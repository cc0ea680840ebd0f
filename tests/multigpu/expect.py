#!/usr/bin/env python3
"""What 2, 4 and 8 GPUs should do on Qwen3-30B-A3B, from figures of one GPU and of the link: docs/multigpu.md.

Prints the tables of that page. Inputs are measured on H100 80GB HBM3 (docs/benchmarks.md, docs/multigpu.md); what is
assumed says so. A run of tests/multigpu/run is to be compared with this.
"""
import argparse
from math import comb

HIDDEN, FFN, EXPERTS, TOP_K, LAYERS = 2048, 768, 128, 8, 48
EXPERT_PARAMETERS, OTHER_PARAMETERS = 28.99e9, 1.54e9

# One H100, 8192 tokens, all experts on it, microseconds (docs/benchmarks.md).
LAYER_US = 8370
MOVES_US = 308 + 223        # of it: permute three times, combine twice
EXPERTS_US = 771 + 378 + 614 + 701 + 1196
MOE_FORWARD_US = 39 / 2 + 100 + 771 + 378 + 117
MOE_BACKWARD_US = 39 / 2 + 207 + 614 + 701 + 1196 + 106
HEAD_US = 25000             # and loss, forward and backward
ADAMW_US_PER_PARAMETER = 18500 / 3.115e9  # with the gradient norm
TOKENS = 8192
# Two H100: what a push kernel carries, one direction, both ways at once.
LINK_GB_S = 331
FIXED_US = 12               # of a transfer: launch, wait, flags (cells 2.4 us one way)
# Device memory, as permute and combine use it.
MEMORY_BYTES_PER_US = 2.7e6
# Assumed: the shares of the transfers' time that stay exposed, as the issue demands of the schedule.
EXPOSED_FORWARD, EXPOSED_BACKWARD = 0.30, 0.10
# Assumed: the fullest rank over the mean with a real router (kernels.md 5: 389 against 357 TF).
IMBALANCE = 1.08


def remote_copies(ranks):
    """Ranks other than its own that a token's experts live on, uniform routing."""
    mine = EXPERTS // ranks
    return (ranks - 1) * (1 - comb(EXPERTS - mine, TOP_K) / comb(EXPERTS, TOP_K))


def transfer_us(ranks):
    return TOKENS * remote_copies(ranks) * HIDDEN * 2 / LINK_GB_S / 1e3 + FIXED_US


def moves_us(ranks):
    """Rows to their experts three times and partial sums back twice, at the speed of device memory."""
    row = HIDDEN * 2
    ours = remote_copies(ranks) * TOKENS  # records received: as many as sent
    expand = (ours + TOKENS + TOP_K * TOKENS) * row
    partial = TOP_K * TOKENS * row + ours * row                # read rows, write sums (remote) or add them (own)
    reduce = (ours + 2 * TOKENS) * row
    return (3 * expand + 2 * (partial + reduce)) / MEMORY_BYTES_PER_US


def layer_us(ranks, exposed_forward, exposed_backward, imbalance):
    t = transfer_us(ranks)
    return (LAYER_US - MOVES_US + moves_us(ranks) + (imbalance - 1) * EXPERTS_US
            + 2 * t * exposed_forward + 3 * t * exposed_backward)


def moe_tf(ranks, backward, exposed):
    flops = 6 * TOKENS * TOP_K * HIDDEN * FFN * (2 if backward else 1)
    local = MOE_BACKWARD_US if backward else MOE_FORWARD_US
    share = 3 / 5 if backward else 2 / 5
    us = local + share * (moves_us(ranks) - MOVES_US) + (3 if backward else 2) * transfer_us(ranks) * exposed
    return flops / us / 1e6


def tokens_per_second(ranks, layers, exposed_forward, exposed_backward, imbalance):
    per_layer = (EXPERT_PARAMETERS / ranks + (OTHER_PARAMETERS - 2 * 311e6) / ranks) / LAYERS
    updated = per_layer * layers + 2 * 311e6 / ranks
    us = (layers * layer_us(ranks, exposed_forward, exposed_backward, imbalance) + HEAD_US
          + updated * ADAMW_US_PER_PARAMETER)
    return TOKENS / us * 1e6, us / 1e3


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    worlds = (2, 4, 8)
    print("| | " + " | ".join(f"{r} GPUs" for r in worlds) + " |\n|---|" + "---|" * len(worlds))

    def row(name, value):
        print(f"| {name} | " + " | ".join(value(r) for r in worlds) + " |")
    row("remote rows per token", lambda r: f"{remote_copies(r):.2f}")
    row("MB of one transfer", lambda r: f"{TOKENS * remote_copies(r) * HIDDEN * 2 / 1e6:.1f}")
    row("us of one transfer", lambda r: f"{transfer_us(r):.0f}")
    row("us of a layer's five transfers", lambda r: f"{5 * transfer_us(r):.0f}")
    row("us of local moves (one GPU: %d)" % MOVES_US, lambda r: f"{moves_us(r):.0f}")
    row("layer, nothing exposed, us (one GPU: %d)" % LAYER_US, lambda r: f"{layer_us(r, 0, 0, 1):.0f}")
    row("layer, 30 % / 10 % exposed, us", lambda r: f"{layer_us(r, EXPOSED_FORWARD, EXPOSED_BACKWARD, 1):.0f}")
    row("layer, all exposed, us", lambda r: f"{layer_us(r, 1, 1, 1):.0f}")
    row("MoE block forward, all / 30 % exposed, TF",
        lambda r: f"{moe_tf(r, False, 1):.0f} / {moe_tf(r, False, EXPOSED_FORWARD):.0f}")
    row("MoE block backward, all / 10 % exposed, TF",
        lambda r: f"{moe_tf(r, True, 1):.0f} / {moe_tf(r, True, EXPOSED_BACKWARD):.0f}")
    for layers in (4, 48):
        for name, forward, backward, imbalance in (("all exposed, balanced", 1, 1, 1),
                                                   ("30 % / 10 % exposed, balanced", EXPOSED_FORWARD, EXPOSED_BACKWARD, 1),
                                                   ("30 % / 10 % exposed, load 1.08", EXPOSED_FORWARD, EXPOSED_BACKWARD, IMBALANCE)):
            def cell(r):
                rate, ms = tokens_per_second(r, layers, forward, backward, imbalance)
                return f"{ms:.1f} ms, {rate:,.0f}"
            row(f"step of {layers} layers, {name}: ms, tokens/s/GPU", cell)


if __name__ == "__main__":
    main()
