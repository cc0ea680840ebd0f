"""Trains a tiny Qwen3-MoE for 20 steps with Transformers and torch.optim, and writes down how.

usage: make_trajectory.py OUT

AdamW, clipping by global norm, warm-up and cosine, two micro-batches a step, auxiliary loss, packed
rows. OUT holds
  model/         the initial model
  train.tok      the data, in the order of training (shuffle: false)
  config.json    the config frame for switchyard-trainer --config: the same run
  expected.json  [{"step", "loss", "aux_loss", "grad_norm", "learning_rate"}], one per step
"""

import json
import math
import pathlib
import sys

import torch
from make_models import make_model
from token_file import write_token_file
from transformers.utils import logging

STEPS = 20
ROWS_PER_STEP = 4
ROWS_PER_MICROBATCH = 2
MICROBATCHES = ROWS_PER_STEP // ROWS_PER_MICROBATCH
LR, INIT_LR, MIN_LR, WARMUP = 4e-3, 4e-4, 4e-4, 5
BETAS, EPS, WEIGHT_DECAY, MAX_NORM = (0.9, 0.95), 1e-8, 0.1, 1.0
AUX_COEF = 0.01
MODEL = dict(norm_topk_prob=True, mlp_only_layers=[1], output_router_logits=True,
             router_aux_loss_coef=AUX_COEF)


def learning_rate(step):
    """The rule of worker/trainer/optim/lr_schedule.h; step counts from 0."""
    if step <= WARMUP:
        return INIT_LR + (LR - INIT_LR) * step / WARMUP
    return MIN_LR + (LR - MIN_LR) * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2


def make_rows():
    """Rows of one to three documents; each counts up from a random id, so there is something to
    learn. About two thirds of the tokens are targets."""
    generator = torch.Generator().manual_seed(77)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    rows = []
    for _ in range(STEPS * ROWS_PER_STEP):
        row = []
        for _ in range(draw(1, 4)):
            length = draw(2, 12)
            tokens = (draw(0, 131) + 3 * torch.arange(length)) % 131
            supervised = torch.rand(length, generator=generator) < 0.67
            supervised[0] = False
            supervised[-1] = True
            row.append((tokens, supervised))
        rows.append(row)
    return rows


def microbatch(rows):
    documents = [d for row in rows for d in row]
    tokens = torch.cat([d[0] for d in documents])
    positions = torch.cat([torch.arange(len(d[0])) for d in documents])
    targets = torch.cat([
        torch.cat([torch.where(d[1], d[0], -100)[1:], torch.tensor([-100])]) for d in documents])
    return tokens, positions, targets


def train(model, rows):
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, eps=EPS,
                                  weight_decay=WEIGHT_DECAY)
    trace = []
    for step in range(STEPS):
        of_step = rows[step * ROWS_PER_STEP:(step + 1) * ROWS_PER_STEP]
        batches = [microbatch(of_step[i:i + ROWS_PER_MICROBATCH])
                   for i in range(0, ROWS_PER_STEP, ROWS_PER_MICROBATCH)]
        supervised = sum(int((targets != -100).sum()) for _, _, targets in batches)
        loss_sum = aux_sum = 0.0
        for tokens, positions, targets in batches:
            output = model(input_ids=tokens[None], position_ids=positions[None], use_cache=False)
            loss = torch.nn.functional.cross_entropy(
                output.logits[0].float(), targets, reduction="sum") / supervised
            aux = AUX_COEF * output.aux_loss / MICROBATCHES
            (loss + aux).backward()
            loss_sum += loss.item()
            aux_sum += aux.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item()
        rate = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        trace.append(dict(step=step + 1, loss=loss_sum, aux_loss=aux_sum, grad_norm=norm,
                          learning_rate=rate))
    return trace


def config_frame(out):
    """Members that are absent have proto3's meaning of unset."""
    job = {
        "model": {"path": str(out / "model"), "dtype": "float32", "aux_loss": "AUX_LOSS_HF",
                  "activation_memory": "ACTIVATION_MEMORY_LEAN"},
        "data": {"shuffle": False, "packing": "PACKING_SEQUENTIAL"},
        "batch": {"global_batch_size": ROWS_PER_STEP, "local_batch_size": ROWS_PER_MICROBATCH,
                  "max_steps": str(STEPS), "num_epochs": 1},
        "optimizer": {"kind": "OPTIMIZER_KIND_ADAMW", "lr": LR, "beta1": BETAS[0],
                      "beta2": BETAS[1], "eps": EPS, "weight_decay": WEIGHT_DECAY,
                      "max_grad_norm": MAX_NORM, "moment_dtype": "float32"},
        "lr_schedule": {"decay": "LR_DECAY_COSINE", "warmup_steps": str(WARMUP),
                        "decay_steps": str(STEPS), "min_lr": MIN_LR, "init_lr": INIT_LR},
        "parallel": {"num_ranks": 1, "ep_size": 1, "cpu_only": True, "threads_per_rank": 1},
        "checkpoint": {},
        "seed": 42, "deterministic": True,
    }
    return {"type": "config", "job": job, "job_name": "projects/default/jobs/trajectory",
            "job_uid": "trajectory", "attempt": 1, "rank": 0, "world_size": 1, "local_rank": 0,
            "master_address": "127.0.0.1", "master_port": 0, "device": "cpu", "threads": 1,
            "job_dir": str(out / "job"), "resume_from": "",
            "train_tokens": str(out / "train.tok"), "validation_tokens": []}


def main():
    out = pathlib.Path(sys.argv[1]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    model = make_model(MODEL, seed=123)
    model.save_pretrained(out / "model")
    rows = make_rows()
    write_token_file(out / "train.tok", rows)
    (out / "config.json").write_text(json.dumps(config_frame(out), indent=2))
    (out / "expected.json").write_text(json.dumps(train(model, rows), indent=1))


if __name__ == "__main__":
    main()
