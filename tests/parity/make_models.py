"""Makes tiny random Qwen3-MoE models and what Transformers computes with them.

usage: make_models.py OUT

For every case OUT/<case>/ holds
  model/               config.json and model.safetensors, as save_pretrained writes them
  batch.safetensors    tokens, targets, positions [T] and cu_seqlens, int64: the documents back to
                       back, as our trainer sees them (no padding)
  expected.safetensors logits [T, vocab], ce_sum, loss, aux (float64), and grad.<published name>
  settings.json        {"supervised": n, "aux_coef": c}
Everything is fp32 on the CPU, with eager attention and eager experts. The names in OUT/cases.txt.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.utils import logging

BASE = dict(
    vocab_size=131, hidden_size=48, intermediate_size=80, moe_intermediate_size=20,
    num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
    num_experts=8, num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=1,
    mlp_only_layers=[], output_router_logits=False, router_aux_loss_coef=0.01,
    max_position_embeddings=256, rope_parameters={"rope_theta": 1e4, "rope_type": "default"},
    pad_token_id=None, bos_token_id=None, eos_token_id=None)

# name -> (changes to BASE, layout of the batch). Layouts: "rows" two rows of 23 tokens; "padded"
# the second row holds 14 tokens and padding; "packed" one row with documents of 9, 1, 17 and 5.
CASES = {
    "norm_topk": ({}, "rows"),
    "no_norm_topk": (dict(norm_topk_prob=False), "padded"),
    "aux_loss": (dict(output_router_logits=True), "padded"),
    "mlp_only_layers": (dict(mlp_only_layers=[1], output_router_logits=True), "rows"),
    "sparse_step": (dict(decoder_sparse_step=2, num_hidden_layers=4), "rows"),
    "tied": (dict(tie_word_embeddings=True), "padded"),
    "gqa_1": (dict(num_key_value_heads=6), "rows"),
    "gqa_4": (dict(num_attention_heads=8, num_key_value_heads=2), "padded"),
    "attention_bias": (dict(attention_bias=True), "rows"),
    "rope_linear": (dict(rope_parameters={"rope_theta": 1e4, "rope_type": "linear",
                                          "factor": 2.5}), "rows"),
    "rope_yarn": (dict(rope_parameters={"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0,
                                        "original_max_position_embeddings": 64}), "rows"),
    "rope_yarn_scales": (dict(rope_parameters={
        "rope_theta": 5e4, "rope_type": "yarn", "factor": 8.0, "mscale": 1.0,
        "mscale_all_dim": 0.7, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False,
        "original_max_position_embeddings": 32}), "packed"),
    "rope_llama3": (dict(rope_parameters={
        "rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32}), "rows"),
    "wide_heads": (dict(head_dim=24, num_attention_heads=5, num_key_value_heads=1), "rows"),
    "sliding_window": (dict(use_sliding_window=True, sliding_window=5), "rows"),
    "padding_row": (dict(pad_token_id=7), "rows"),
    "packed": (dict(output_router_logits=True, mlp_only_layers=[0]), "packed"),
}


def make_model(changes, seed):
    torch.manual_seed(seed)
    model = Qwen3MoeForCausalLM._from_config(
        Qwen3MoeConfig(**{**BASE, **changes}), attn_implementation="eager",
        experts_implementation="eager", dtype=torch.float32)
    # HF's initial values hide bugs: biases of 0, norms of 1, all of one size.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.1 * noise if name.endswith("norm.weight") else 0.05 * noise)
            if name.endswith("gate.weight"):  # spread the router's scores
                parameter.mul_(8)
            if name.endswith("embed_tokens.weight"):
                parameter.mul_(10)
    return model.eval()


def make_documents(layout, generator):
    lengths = {"rows": [23, 23], "padded": [23, 14], "packed": [9, 1, 17, 5]}[layout]
    documents = []
    for length in lengths:
        tokens = torch.randint(0, BASE["vocab_size"], (length,), generator=generator)
        tokens[length // 2] = 7  # the padding id of one case, in the middle of a document
        supervised = torch.rand(length, generator=generator) < 0.7
        supervised[0] = False  # nothing predicts a document's first token
        supervised[-1] = length > 1
        documents.append((tokens, torch.where(supervised, tokens, -100)))
    return documents


def hf_inputs(layout, documents):
    """Inputs of the HF model and, per token of the documents, its place (row, column) there."""
    places = []
    if layout == "packed":
        # Transformers finds the documents by their restarting positions.
        inputs = dict(
            input_ids=torch.cat([d[0] for d in documents])[None],
            labels=torch.cat([d[1] for d in documents])[None],
            position_ids=torch.cat([torch.arange(len(d[0])) for d in documents])[None])
        places = [(0, i) for i in range(inputs["input_ids"].shape[1])]
        return inputs, places
    width = max(len(d[0]) for d in documents)
    ids = torch.zeros(len(documents), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, (tokens, targets) in enumerate(documents):
        ids[row, :len(tokens)] = tokens
        labels[row, :len(tokens)] = targets
        mask[row, :len(tokens)] = 1
        places += [(row, i) for i in range(len(tokens))]
    inputs = dict(input_ids=ids, labels=labels)
    if layout == "padded":
        inputs["attention_mask"] = mask
    return inputs, places


def published_gradients(model):
    """Gradients under the names and shapes of the checkpoint: one matrix per expert."""
    out = {}
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if name.endswith("experts.gate_up_proj"):
            prefix = name.removesuffix("gate_up_proj")
            for e, both in enumerate(gradient):
                gate, up = both.chunk(2)
                out[f"{prefix}{e}.gate_proj.weight"] = gate.clone()
                out[f"{prefix}{e}.up_proj.weight"] = up.clone()
        elif name.endswith("experts.down_proj"):
            for e, down in enumerate(gradient):
                out[f"{name.removesuffix('down_proj')}{e}.down_proj.weight"] = down.clone()
        else:
            out[name] = gradient.clone()
    return out


def our_batch(documents):
    tokens, targets, positions, ends = [], [], [], [0]
    for ids, labels in documents:
        tokens.append(ids)
        targets.append(torch.cat([labels[1:], torch.tensor([-100])]))
        positions.append(torch.arange(len(ids)))
        ends.append(ends[-1] + len(ids))
    return dict(tokens=torch.cat(tokens), targets=torch.cat(targets),
                positions=torch.cat(positions), cu_seqlens=torch.tensor(ends))


def make_case(folder, changes, layout, seed):
    model = make_model(changes, seed)
    documents = make_documents(layout, torch.Generator().manual_seed(1000 + seed))
    inputs, places = hf_inputs(layout, documents)
    output = model(**inputs, use_cache=False)  # with a cache it would not look for documents
    output.loss.backward()
    logits = torch.stack([output.logits[row, column] for row, column in places]).detach()
    if layout == "packed":  # the oracle itself must not mix documents
        alone = torch.cat([model(input_ids=d[0][None]).logits[0] for d in documents])
        assert torch.allclose(alone, logits, atol=1e-5), "Transformers mixed packed documents"

    batch = our_batch(documents)
    supervised = int((batch["targets"] != -100).sum())
    with_aux = bool(model.config.output_router_logits)
    coefficient = model.config.router_aux_loss_coef if with_aux else 0.0
    aux = output.aux_loss.item() if with_aux else 0.0
    expected = {"grad." + name: g for name, g in published_gradients(model).items()}
    expected["logits"] = logits
    expected["loss"] = torch.tensor([output.loss.item()], dtype=torch.float64)
    expected["aux"] = torch.tensor([aux], dtype=torch.float64)
    model.save_pretrained(folder / "model")
    save_file(batch, folder / "batch.safetensors")
    save_file(expected, folder / "expected.safetensors")
    (folder / "settings.json").write_text(
        json.dumps({"supervised": supervised, "aux_coef": coefficient}))


def main():
    out = pathlib.Path(sys.argv[1])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    for seed, (name, (changes, layout)) in enumerate(CASES.items()):
        (out / name).mkdir(parents=True, exist_ok=True)
        make_case(out / name, changes, layout, seed)
    (out / "cases.txt").write_text("\n".join(CASES) + "\n")


if __name__ == "__main__":
    main()
