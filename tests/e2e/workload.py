"""A tiny model, data and recipe for the end-to-end tests."""

import json
import pathlib
import random

import cluster

WORDS = ("the expert router sends every token to a small part of the network where one matrix waits for it and "
         "then the answer comes back in the order in which it left").split()


def write_chats(path, rows, seed=7):
    draw = random.Random(seed)
    with open(path, "w") as out:
        for _ in range(rows):
            start = draw.randrange(len(WORDS) - 8)
            question = " ".join(WORDS[start:start + 3])
            answer = " ".join(WORDS[start + 3:start + 3 + draw.randrange(2, 6)])
            out.write(json.dumps({"messages": [{"role": "user", "content": f"What follows: {question}?"},
                                               {"role": "assistant", "content": answer}]}) + "\n")
    return path


def make_workload(folder, rows=400):
    """Writes data and model below `folder`; returns their paths."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    train = write_chats(folder / "train.jsonl", rows)
    validation = write_chats(folder / "validation.jsonl", 40, seed=8)
    cluster.prep("init-model", "--output", folder / "model", "--corpus", train, "--vocab-size", 320,
                 "--hidden-size", 32, "--intermediate-size", 48, "--moe-intermediate-size", 24, "--num-layers", 2,
                 "--num-heads", 4, "--num-kv-heads", 2, "--head-dim", 16, "--num-experts", 4, "--top-k", 2, "--seed", 3)
    return {"train": train, "validation": validation, "model": folder / "model"}


def recipe(work, **changes):
    """A recipe as a nested dict; `changes` are sections whose keys are merged in."""
    value = {
        "seed": 5,
        "step_scheduler": {"global_batch_size": 4, "local_batch_size": 1, "max_steps": 12, "ckpt_every_steps": 6,
                           "val_every_steps": 6},
        "model": {"pretrained_model_name_or_path": str(work["model"]), "torch_dtype": "float32"},
        "distributed": {"ep_size": 2},
        "resources": {"num_ranks": 2, "cpu_only": True, "threads_per_rank": 1},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.003, "weight_decay": 0.01},
        "lr_scheduler": {"lr_decay_style": "cosine", "lr_warmup_steps": 2},
        "dataset": {"_target_": "nemo_automodel.components.datasets.llm.chat_dataset.ChatDataset",
                    "path_or_dataset_id": str(work["train"]), "seq_length": 64},
        "validation_dataset": {"_target_": "nemo_automodel.components.datasets.llm.chat_dataset.ChatDataset",
                               "path_or_dataset_id": str(work["validation"]), "seq_length": 64},
        "packed_sequence": {"packed_sequence_size": 128},
    }
    for section, keys in changes.items():
        if isinstance(keys, dict):
            value.setdefault(section, {}).update(keys)
        else:
            value[section] = keys
    return value


def write_recipe(path, value):
    """JSON is YAML."""
    pathlib.Path(path).write_text(json.dumps(value, indent=1))
    return path
