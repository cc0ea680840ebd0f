"""Trains one Qwen3-MoE three times from the same weights on the same batches and compares the losses:
our trainer, Transformers with torch AdamW, and Transformers again with the rows of every micro-batch
in the opposite order, which changes the order of every sum over tokens and nothing else. The three run
at the same time, on one device.

usage: run.py TRAINER [TOKENS] [--work DIR] [--steps 200] [--device cuda:0] [--tiny] [--json FILE]

TOKENS is a packed token file (tests/gpu/gsm8k.py); its rows are shuffled once. Weights are bf16 with
an fp32 master on both sides (ours keeps it as bf16 + 16 bits), moments fp32. Exit code 1 when the
mean loss of the last 10 steps differs by more than 0.5 %; 77: no CUDA.
"""

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.utils import logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "parity"))
from token_file import read_token_file, write_token_file  # noqa: E402

# 0.8 B parameters.
FULL = dict(vocab_size=151936, hidden_size=1024, intermediate_size=2048, moe_intermediate_size=512,
            num_hidden_layers=6, num_attention_heads=16, num_key_value_heads=4, head_dim=128,
            num_experts=48, num_experts_per_tok=4)
TINY = dict(vocab_size=512, hidden_size=64, intermediate_size=64, moe_intermediate_size=32,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            num_experts=8, num_experts_per_tok=2)
ROWS_PER_STEP, ROWS_PER_MICROBATCH = 4, 2
WARMUP = 20
BETAS, EPS, WEIGHT_DECAY, MAX_NORM = (0.9, 0.95), 1e-8, 0.1, 1.0
AUX_COEF = 0.001
LIMIT = 0.005  # of the final losses, relative


def learning_rate(step, steps, peak):
    """The rule of worker/trainer/optim/lr_schedule.h; step counts from 0."""
    if step <= WARMUP:
        return peak * step / WARMUP
    low = peak / 10
    return low + (peak - low) * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP))) / 2


def make_model(sizes, folder, device):
    config = Qwen3MoeConfig(
        **sizes, decoder_sparse_step=1, norm_topk_prob=True, rms_norm_eps=1e-6,
        max_position_embeddings=4096, tie_word_embeddings=False, output_router_logits=True,
        router_aux_loss_coef=AUX_COEF)
    with torch.device(device):
        model = Qwen3MoeForCausalLM._from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator(device=device).manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.fill_(1.0)
            else:  # as the peers' driver: with 0.02 in the embedding the router collapses
                p.normal_(0, 1.0 if "embed_tokens" in name else 0.02, generator=generator)
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def microbatch(rows, device):
    documents = [d for row in rows for d in row]
    tokens = torch.from_numpy(np.concatenate([ids for ids, _ in documents])).long()
    positions = torch.cat([torch.arange(len(ids)) for ids, _ in documents])
    targets = torch.cat([
        torch.cat([torch.from_numpy(np.where(on, ids, -100)[1:]).long(), torch.tensor([-100])])
        for ids, on in documents])
    return [t.to(device) for t in (tokens, positions, targets)]


def train_reference(folder, rows, steps, peak, device, reverse):
    """Per step: mean cross entropy of the supervised tokens, gradient norm before clipping. In a
    process of its own."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    model = Qwen3MoeForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa").to(device).train()
    model.set_experts_implementation("grouped_mm" if "cuda" in device else "eager")
    weights = list(model.parameters())
    master = [p.detach().float() for p in weights]
    optimizer = torch.optim.AdamW(master, lr=peak, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY,
                                  fused="cuda" in device)
    curve = []
    for step in range(steps):
        of_step = rows[step * ROWS_PER_STEP:(step + 1) * ROWS_PER_STEP]
        parts = [of_step[i:i + ROWS_PER_MICROBATCH]
                 for i in range(0, ROWS_PER_STEP, ROWS_PER_MICROBATCH)]
        batches = [microbatch(part[::-1] if reverse else part, device) for part in parts]
        supervised = sum(int((targets != -100).sum()) for _, _, targets in batches)
        total = torch.zeros((), dtype=torch.float64, device=device)
        gradients = None
        for tokens, positions, targets in batches:
            output = model(input_ids=tokens[None], position_ids=positions[None], use_cache=False)
            loss = torch.nn.functional.cross_entropy(output.logits[0].float(), targets,
                                                     reduction="sum") / supervised
            (loss + AUX_COEF * output.aux_loss / len(batches)).backward()
            total += loss.detach()
            # Summed in fp32 over the micro-batches, as our trainer does.
            if gradients is None:
                gradients = [p.grad.float() for p in weights]
            else:
                torch._foreach_add_(gradients, [p.grad for p in weights])
            model.zero_grad(set_to_none=True)
        for p, gradient in zip(master, gradients):
            p.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(master, MAX_NORM)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(weights, master)
        curve.append((total, norm))
    return [float(loss) for loss, _ in curve], [float(norm) for _, norm in curve]


def train_ours(trainer, folder, tokens, work, steps, peak, device):
    job_dir = work / "job"
    job_dir.mkdir()
    frame = {
        "type": "config",
        "job": {
            "model": {"path": str(folder), "dtype": "bfloat16", "aux_loss": "AUX_LOSS_HF",
                      "activation_memory": "ACTIVATION_MEMORY_LEAN"},
            "data": {"shuffle": False, "packing": "PACKING_BEST_FIT"},
            "batch": {"global_batch_size": ROWS_PER_STEP, "local_batch_size": ROWS_PER_MICROBATCH,
                      "max_steps": str(steps), "num_epochs": 1},
            "optimizer": {"kind": "OPTIMIZER_KIND_ADAMW", "lr": peak, "beta1": BETAS[0],
                          "beta2": BETAS[1], "eps": EPS, "weight_decay": WEIGHT_DECAY,
                          "max_grad_norm": MAX_NORM, "moment_dtype": "float32"},
            "lr_schedule": {"decay": "LR_DECAY_COSINE", "warmup_steps": str(WARMUP),
                            "decay_steps": str(steps), "min_lr": peak / 10, "init_lr": 0.0},
            "parallel": {"num_ranks": 1, "ep_size": 1, "cpu_only": device == "cpu",
                         "threads_per_rank": 1},
            "checkpoint": {}, "seed": 42},
        "job_name": "projects/default/jobs/parity", "job_uid": "parity", "attempt": 1, "rank": 0,
        "world_size": 1, "local_rank": 0, "master_address": "127.0.0.1", "master_port": 0,
        "device": device, "threads": 1, "job_dir": str(job_dir), "resume_from": "",
        "train_tokens": str(tokens), "validation_tokens": []}
    config = work / "config.json"
    config.write_text(json.dumps(frame))
    done = subprocess.run([trainer, "--config", config], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=300)
    if done.returncode != 0:
        sys.exit(f"{trainer} exited {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    frames = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    taken = [frame for frame in frames if frame["type"] == "step"]
    return [f["loss"] for f in taken], [f["grad_norm"] for f in taken]


def apart(one, other):
    """(difference of the means of the last 10 losses, largest of any step), relative."""
    last = abs(np.mean(one[-10:]) - np.mean(other[-10:])) / np.mean(other[-10:])
    return last, max(abs(a - b) / b for a, b in zip(one, other))


def compare(arguments, work):
    peak = 5e-3 if arguments.tiny else 3e-4
    needed = arguments.steps * ROWS_PER_STEP
    if arguments.tiny:
        random = np.random.default_rng(3)
        rows = []
        for _ in range(needed):  # counts up from a random id: something to learn
            ids = (random.integers(0, 512) + 3 * np.arange(random.integers(8, 24))) % 512
            rows.append([(ids, np.r_[0, np.ones(len(ids) - 1)].astype("u1"))])
    else:
        rows = read_token_file(arguments.tokens)
        order = np.random.default_rng(3).permutation(len(rows))
        rows = [rows[i] for i in np.resize(order, needed)]  # again from the front when they run out
    write_token_file(work / "shuffled.tok", rows)

    clock = time.time()

    def lap(what):
        nonlocal clock
        print(f"# {what}: {time.time() - clock:.1f} s", flush=True)
        clock = time.time()

    parameters = make_model(TINY if arguments.tiny else FULL, work / "model", arguments.device)
    lap(f"model of {parameters / 1e6:.0f} M parameters")
    if "cuda" in arguments.device:
        torch.cuda.empty_cache()
    with concurrent.futures.ProcessPoolExecutor(
            2, mp_context=multiprocessing.get_context("spawn")) as pool:
        references = [
            pool.submit(train_reference, work / "model", rows, arguments.steps, peak,
                        arguments.device, reverse) for reverse in (False, True)]
        curves = {"switchyard": train_ours(arguments.trainer, work / "model", work / "shuffled.tok",
                                           work, arguments.steps, peak, arguments.device)}
        lap("switchyard")
        curves["transformers"], curves["transformers_reordered"] = (r.result() for r in references)
        lap("and then Transformers, twice")
    if arguments.json:
        arguments.json.write_text(json.dumps(
            {"parameters": parameters, "steps": arguments.steps,
             "loss": {k: v[0] for k, v in curves.items()},
             "grad_norm": {k: v[1] for k, v in curves.items()}}))

    ours, reference, other = (curves[k][0] for k in
                              ("switchyard", "transformers", "transformers_reordered"))
    print("step  switchyard  transformers  reordered")
    for step in sorted({0, 1, 2, 4, 9, 19, 49, 99, 149, len(ours) - 1} & set(range(len(ours)))):
        print(f"{step + 1:4d}  {ours[step]:10.5f}  {reference[step]:12.5f}  {other[step]:9.5f}")
    last, most = apart(ours, reference)
    noise_last, noise_most = apart(other, reference)
    print(f"last 10 steps: ours {last:.2e} from Transformers, the two Transformers runs {noise_last:.2e}")
    print(f"any step:      ours {most:.2e} from Transformers, the two Transformers runs {noise_most:.2e}")
    if len(ours) != arguments.steps or not reference[-1] < 0.9 * reference[0]:
        sys.exit("too few steps, or the reference did not learn: the comparison would mean little")
    if last > LIMIT:
        sys.exit(f"final losses {last:.2e} apart")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("trainer")
    parser.add_argument("tokens", nargs="?", help="not with --tiny")
    parser.add_argument("--work", type=pathlib.Path, help="kept; else a temporary folder")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="a toy model and random tokens")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    if "cuda" in arguments.device and not torch.cuda.is_available():
        print("loss parity: no CUDA device here")
        sys.exit(77)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if arguments.work:
        arguments.work.mkdir(parents=True)
        compare(arguments, arguments.work.resolve())
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(arguments, pathlib.Path(folder))


if __name__ == "__main__":
    main()
