#!/usr/bin/env python3
"""A job on one GPU or several, through the real programs: coordinator, agent, prep, trainer, CLI.

usage: run.py [--data CHATS.jsonl] [--steps N] [--gpus N] [--cpu]     (SY_BUILD_DIR/bin holds the programs)

Submits a bf16 recipe without `cpu_only`, the experts spread over all ranks, watches /metrics of coordinator
and agent, kills the last rank's trainer with SIGKILL once, waits for the end of the second attempt, loads the final checkpoint with
Transformers and compares the loss over the validation rows, and resumes an earlier checkpoint on the
GPU and on a CPU rank. Prints a table; exits 1 when something is not as it should be, 77 without a GPU.
--cpu tries this script itself: a smaller model on CPU ranks only.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import sys
import time

HERE = pathlib.Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2] / "e2e"), str(HERE.parents[2] / "parity")]

import cluster
import workload

LAYERS, ROW = 4, 512
# Sizes that the kernels take, large enough for a step of some milliseconds.
MODEL = ["--vocab-size", 4096, "--hidden-size", 512, "--intermediate-size", 1024, "--moe-intermediate-size", 256,
         "--num-layers", LAYERS, "--num-heads", 8, "--num-kv-heads", 2, "--head-dim", 128, "--num-experts", 16,
         "--top-k", 4, "--seed", 3]
SMALL_MODEL = ["--vocab-size", 512, "--hidden-size", 32, "--intermediate-size", 64, "--moe-intermediate-size", 32,
               "--num-layers", 2, "--num-heads", 2, "--num-kv-heads", 1, "--head-dim", 16, "--num-experts", 4,
               "--top-k", 2, "--seed", 3]
METRICS = {"agent": ("step", "loss", "tokens_per_second", "memory_bytes"),
           "coordinator": ("step", "loss", "tokens_per_second", "memory_bytes", "mfu_ratio")}


class Failure(Exception):
    pass


class Table:
    """Prints each row as it is known."""

    def append(self, row):
        print(f"{row[0]:40} {row[1]}", flush=True)


def check(condition, what):
    if not condition:
        raise Failure(what)


def make_work(folder, data, model):
    folder.mkdir()
    train, validation = folder / "train.jsonl", folder / "validation.jsonl"
    if data:
        rows = data.read_text().splitlines()
        train.write_text("\n".join(rows[:-60]) + "\n")
        validation.write_text("\n".join(rows[-60:]) + "\n")
    else:
        workload.write_chats(train, 4000)
        workload.write_chats(validation, 200, seed=8)
    cluster.prep("init-model", "--output", folder / "model", "--corpus", train, *model)
    return {"train": train, "validation": validation, "model": folder / "model"}


def period(steps):
    """Between checkpoints: two on the way, the second a few steps before the end."""
    return (steps - 4) // 2


def write_recipe(path, work, steps, ranks, dtype="bfloat16", **changes):
    value = workload.recipe(
        work, step_scheduler={"global_batch_size": 8, "local_batch_size": max(1, min(4, 8 // ranks)), "max_steps": steps,
                              "ckpt_every_steps": period(steps), "val_every_steps": period(steps)},
        model={"torch_dtype": dtype}, distributed={"ep_size": ranks},
        optimizer={"lr": 0.001, "exp_avg_dtype": dtype, "exp_avg_sq_dtype": dtype},
        dataset={"seq_length": ROW}, validation_dataset={"seq_length": ROW},
        packed_sequence={"packed_sequence_size": ROW, "packing_strategy": "best_fit"}, job={"max_retries": 2})
    value["resources"] = {"num_ranks": ranks}
    for section, keys in changes.items():
        value.setdefault(section, {}).update(keys)
    return workload.write_recipe(path, value)


def read_metrics(daemon, job):
    """{metric: value} of the job's gauges, by the last words of their names."""
    found = {}
    for line in daemon.metrics().splitlines():
        match = re.match(r"^\w*?job_(\w+)\{[^}]*" + job + r"[^}]*\} ([0-9.e+-]+)$", line)
        if match:
            found[match[1]] = float(match[2])
    return found


def watch_metrics(made, job, until_step):
    """Scrapes both programs until the job has done so many steps; returns the largest values."""
    seen = {"coordinator": {}, "agent": {}}
    def reached():
        for name, daemon in (("coordinator", made.coordinator), ("agent", made.agents[0])):
            for metric, value in read_metrics(daemon, job).items():
                seen[name][metric] = max(value, seen[name].get(metric, 0))
        return seen["coordinator"].get("step", 0) >= until_step
    cluster.wait_until(f"{job} to reach step {until_step}", reached, 90, 0.1)
    return seen


def command_of(pid):
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def trainers(made):
    """Process ids of this cluster's trainers: their shim works in a folder of it. Others may run here too."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and command_of(entry.name)[0].endswith(b"switchyard-trainer"):
                parent = re.search(r"^PPid:\s*(\d+)", (entry / "status").read_text(), re.MULTILINE)[1]
                if any(word.startswith(str(made.folder).encode()) for word in command_of(parent)[1:]):
                    found.append(int(entry.name))
        except OSError:  # it has just ended
            pass
    return found


def checkpoints(made, job):
    listed = json.loads(made.cli("checkpoints", job, "-o", "json", check=0).stdout)
    return {int(c["step"]): pathlib.Path(c["path"]) for c in listed.get("checkpoints", listed)}


def validation_loss(made, job, steps):
    """Of the last step, as the checkpoint's manifest states it."""
    manifest = json.loads((checkpoints(made, job)[steps] / "switchyard/manifest.json").read_text())
    return float(manifest["validation_loss"])


def transformers_loss(folder, tokens, device):
    """Mean cross entropy over the supervised tokens of a token file, document by document."""
    import torch
    import transformers
    from token_file import read_token_file
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in read_token_file(tokens):
            for ids, supervised in row:
                ids = torch.tensor(ids, dtype=torch.long, device=device)
                wanted = torch.tensor(supervised, dtype=torch.bool, device=device)[1:]
                logits = model(input_ids=ids[None]).logits[0, :-1].float()
                losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
                total += losses[wanted].double().sum().item()
                count += int(wanted.sum())
    return total / count


def run(made, work, steps, ranks, table, cpu):
    gpu_agent = made.agents[0]
    dtype = "float32" if cpu else "bfloat16"
    device = "cpu" if cpu else "cuda"
    device_names = {"cpu"} if cpu else {f"cuda:{r}" for r in range(ranks)}
    path = write_recipe(made.folder / "gpu.yaml", work, steps, ranks, dtype)
    begin = time.monotonic()
    made.cli("submit", path, "--name", "gpu", check=0)
    half = period(steps)
    watch_metrics(made, "gpu", half + 3)
    pids = trainers(made)
    check(len(pids) == ranks, f"{ranks} trainers expected, found {pids}: {made.job('gpu')}")
    configs = list((gpu_agent.folder / "agent-node0.state/attempts").rglob("*.json"))
    devices = {d for c in configs for d in re.findall(r'"device":\s*"([^"]+)"', c.read_text())}
    table.append(("devices of the ranks", ", ".join(sorted(devices)) or "?"))
    os.kill(max(pids), signal.SIGKILL)
    check(devices == device_names, f"the ranks ran on {devices}")
    table.append(("SIGKILL at step", f"about {half + 3} of {steps}"))
    seen = watch_metrics(made, "gpu", steps)
    state = made.wait_state("gpu", "SUCCEEDED", "FAILED")
    job = made.job("gpu").get("job", made.job("gpu"))
    check(state == "SUCCEEDED", f"the job is {state}: {job}")
    check(int(job["current_attempt"]) == 2, f"attempt {job['current_attempt']}, 2 expected")
    table.append(("job", f"{state}, attempt {job['current_attempt']}, {time.monotonic() - begin:.1f} s"))
    for name, values in seen.items():
        table.append((f"/metrics of the {name}", ", ".join(f"{m} {values.get(m, 0):.6g}" for m in METRICS[name])))
        for metric in METRICS[name]:
            if cpu and metric == "mfu_ratio":
                continue
            check(values.get(metric, 0) > 0, f"{name}: no {metric} in /metrics: {values}")

    ours = validation_loss(made, "gpu", steps)
    tokens = next((gpu_agent.folder / "agent-node0.state/tokens").rglob("validation-*.tok"))
    theirs = transformers_loss(checkpoints(made, "gpu")[steps], tokens, device)
    table.append(("validation loss: trainer, Transformers", f"{ours:.5f} {theirs:.5f}"))
    check(abs(ours - theirs) < 0.01 * theirs, f"validation loss {ours}, Transformers' {theirs}")

    start = checkpoints(made, "gpu")[2 * half]
    made.start_agent("cpunode", 1)
    for name, count, resources in (("again", ranks, {}),
                                   ("cpu", 1, {"cpu_only": True, "threads_per_rank": 4})):
        path = write_recipe(made.folder / f"{name}.yaml", work, steps, count, dtype,
                            checkpoint={"restore_from": str(start)}, resources=resources)
        begin = time.monotonic()
        made.cli("submit", path, "--name", name, "--watch", check=0)
        resumed = validation_loss(made, name, steps)
        table.append((f"step {2 * half} resumed: {name}", f"validation loss {resumed:.5f}, "
                      f"{time.monotonic() - begin:.1f} s"))
        check(abs(resumed - ours) < 0.01 * ours, f"{name}: {resumed}, whole run {ours}")
    for log in gpu_agent.folder.rglob("rank-0.stderr"):
        for line in log.read_text(errors="replace").splitlines():
            if "device memory" in line or "loaded" in line:
                table.append(("log", line[-180:]))


def num_gpus():
    import torch
    return torch.cuda.device_count()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=84)
    parser.add_argument("--gpus", type=int, default=1, help="ranks, each on a GPU of its own")
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    if not arguments.cpu and num_gpus() < arguments.gpus:
        print("no GPU here" if num_gpus() == 0 else f"{num_gpus()} GPUs here, {arguments.gpus} needed")
        return 77
    table, fault = Table(), None
    with cluster.cluster(cpu_ranks=(arguments.gpus if arguments.cpu else None,), coordinator_flags=["--retry-backoff", "500ms"]) as made:
        try:
            model = SMALL_MODEL if arguments.cpu else MODEL
            run(made, make_work(made.folder / "work", arguments.data, model), arguments.steps, arguments.gpus,
                table, arguments.cpu)
        except Failure as e:
            fault = e
            for daemon in [made.coordinator, *made.agents]:
                print(f"--- {daemon.name}\n{daemon.tail(15)}")
            for log in made.folder.rglob("rank-0.stderr"):
                print(f"--- {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]))
    print(f"FAILED: {fault}" if fault else "OK")
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
