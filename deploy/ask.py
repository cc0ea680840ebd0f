#!/usr/bin/env python3
"""Loads a Hugging Face checkpoint with Transformers and prints its answers to some questions.

Usage: ask.py CHECKPOINT QUESTION...

Exits 1 when Transformers reports a missing, unexpected or mismatched tensor.
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers

transformers.utils.logging.disable_progress_bar()


def main():
    if len(sys.argv) < 3:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    folder, questions = sys.argv[1], sys.argv[2:]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True)
    faults = {key: sorted(value) for key, value in report.items() if value}
    if faults:
        print(f"{folder}: Transformers reports {faults}", file=sys.stderr)
        return 1
    model.eval()
    for question in questions:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40,
                                 do_sample=False, repetition_penalty=1.3)
        answer = tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True).strip()
        print(f"  {question}\n    -> {answer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
