"""Whole training steps of public trainers, as switchyard-bench step measures ours: random ids, and the
chat rows of a token file padded to the longest of the batch, as trainers without packing do.

usage: peers.py PEERS {liger|automodel} [--micro-batch 1,2,4,8] [--data FILE.tok --documents 64]

PEERS holds driver.py, which builds the models (Qwen3-30B-A3B cut to 4 layers): Transformers with
Liger's kernels and Liger's cross entropy on bf16 logits, or NeMo AutoModel with its compiled fused
loss. torch AdamW in bf16. One line of JSON per row; tokens are real ones, padding does not count.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "parity"))
from token_file import read_token_file  # noqa: E402

LOSS = {"liger": "liger_ce", "automodel": "fused_compile"}
TINY_LOSS = {"liger": "compile", "automodel": "masked"}  # those that run on a CPU


def driver_arguments(peer):
    liger = "rope,norm,flce" if peer == "liger" else ""
    return argparse.Namespace(layers=4, seq=4096, embed_std=1.0, liger=liger,
                              experts="liger" if liger else "grouped_mm", attn="sdpa",
                              linear="torch", rms="torch_fp32", compile_attn=False,
                              compile_router=False)


def random_batches(driver, rows, length):
    generator = torch.Generator(device=driver.DEV).manual_seed(7)
    for _ in range(4):
        ids = torch.randint(0, driver.V, (rows, length), device=driver.DEV, generator=generator)
        yield ids, torch.roll(ids, -1, 1), rows * length


def padded_batches(driver, tokens, documents):
    """Right padding needs no attention mask: what comes later is not seen by causal attention."""
    all_documents = [d for row in read_token_file(tokens) for d in row]
    order = np.random.default_rng(7).permutation(len(all_documents))
    groups = [[all_documents[i] for i in order[n * documents:(n + 1) * documents]]
              for n in range(4)]
    # One length for the four, so that compiled kernels are not compiled again between steps.
    length = -(-max(len(ids) for group in groups for ids, _ in group) // 64) * 64
    for group in groups:
        ids = torch.zeros(documents, length, dtype=torch.long)
        labels = torch.full((documents, length), -100)
        for row, (tokens_of, supervised) in enumerate(group):
            n = len(tokens_of)
            ids[row, :n] = torch.from_numpy(tokens_of).long()
            labels[row, :n - 1] = torch.from_numpy(np.where(supervised, tokens_of, -100)[1:]).long()
        yield ids.to(driver.DEV), labels.to(driver.DEV), sum(len(ids) for ids, _ in group)


def measure(driver, model, loss_of, kind, batches, warm_up=4, steps=8):
    """Median step of CUDA events; nothing is read from the device between steps."""
    optimizer = measure.optimizer = getattr(measure, "optimizer", None) or torch.optim.AdamW(
        model.parameters(), lr=1e-5, fused=driver.CUDA)
    driver.mem_reset()
    batches = list(batches)
    times = []
    for i in range(warm_up + steps):
        ids, labels, _ = batches[i % len(batches)]
        begin = driver.Ev()
        loss = loss_of(ids, labels, kind, "real")
        loss.backward()
        middle = driver.Ev()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append((begin, middle, driver.Ev()))
        if i == 0:
            first = loss.detach()
    driver.sync()
    times = times[warm_up:]
    step = driver.med([end.ms_since(begin) for begin, _, end in times])
    tokens = np.mean([n for _, _, n in batches])
    return {"step_ms": round(step, 2),
            "forward_backward_ms": round(driver.med([m.ms_since(b) for b, m, _ in times]), 2),
            "tokens_per_second": round(tokens / step * 1e3), "tokens": float(tokens),
            "padded_tokens": batches[0][0].numel(), "peak_gib": driver.gib(driver.mem_peak()),
            "first_loss": round(first.item(), 3), "last_loss": round(loss.item(), 3)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("peers")
    parser.add_argument("peer", choices=sorted(LOSS))
    parser.add_argument("--micro-batch", default="1,2,4,8")
    parser.add_argument("--data")
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--tiny", action="store_true", help="toy sizes, for a machine without a GPU")
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.peers)
    import driver
    settings = driver_arguments(arguments.peer)
    length = 4096
    if arguments.tiny:
        driver.V, driver.H, driver.I, driver.E, driver.HQ, driver.HKV, driver.D = (
            512, 128, 64, 16, 4, 2, 32)
        settings.layers, settings.liger, settings.experts, length = 2, "", "grouped_mm", 64
    build = driver.build_hf if arguments.peer == "liger" else driver.build_automodel
    model, loss_of, _ = build(settings)
    kind = TINY_LOSS[arguments.peer] if arguments.tiny else LOSS[arguments.peer]

    def row(data, batches, **what):
        try:
            result = measure(driver, model, loss_of, kind, batches)
        except torch.cuda.OutOfMemoryError:
            measure.optimizer.zero_grad(set_to_none=True)
            result = {"error": "out of memory"}
        print(json.dumps({"item": "peer", "peer": arguments.peer, "data": data, **what, **result}),
              flush=True)

    for rows in [int(n) for n in arguments.micro_batch.split(",") if n]:
        row("random", random_batches(driver, rows, length), micro_batch=rows)
    if arguments.data:
        row(pathlib.Path(arguments.data).name,
            padded_batches(driver, arguments.data, arguments.documents),
            documents=arguments.documents)


if __name__ == "__main__":
    main()
