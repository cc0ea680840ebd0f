"""Hugging Face folder -> our load -> our save -> the same model, for Transformers."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

TOOL = pathlib.Path(os.environ["SY_BUILD_DIR"]) / "test" / "roundtrip_tool"
INDEX = "model.safetensors.index.json"


def tool(*args):
    return subprocess.run([TOOL, *map(str, args)], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def make_model(seed=0, **changes):
    config = Qwen3MoeConfig(**{
        **dict(vocab_size=96, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
               num_attention_heads=4, num_key_value_heads=2, head_dim=8, moe_intermediate_size=12,
               num_experts=4, num_experts_per_tok=2, mlp_only_layers=[1], attention_bias=True,
               tie_word_embeddings=False), **changes})
    torch.manual_seed(seed)
    model = Qwen3MoeForCausalLM(config)
    for parameter in model.parameters():  # biases and norms too
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def tensors_of(folder):
    """All tensors of a folder, by name, as a reader that follows the index finds them."""
    folder = pathlib.Path(folder)
    if (folder / INDEX).exists():
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        files = {name: load_file(folder / name) for name in set(weight_map.values())}
        return {key: files[name][key] for key, name in weight_map.items()}
    return load_file(folder / "model.safetensors")


class RoundtripTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.source, self.out = self.root / "source", self.root / "out"

    def save_source(self, model, **kwargs):
        shutil.rmtree(self.source, ignore_errors=True)
        model.save_pretrained(self.source, **kwargs)

    def convert(self, *args, source=None, out=None):
        out = out or self.out
        result = tool("model", source or self.source, out, *args)
        self.assertEqual(result.returncode, 0, result.stderr)
        return out

    def assert_same_tensors(self, got, wanted):
        self.assertEqual(set(got), set(wanted))
        for name, tensor in wanted.items():
            self.assertEqual(got[name].dtype, tensor.dtype, name)
            self.assertTrue(torch.equal(got[name], tensor), name)

    def assert_transformers_loads(self, folder, model):
        loaded, info = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, dtype="auto")
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            self.assertFalse(info.get(problem), f"{problem}: {info.get(problem)}")
        self.assertEqual(loaded.dtype, model.dtype)
        self.assert_same_tensors(dict(loaded.named_parameters()), dict(model.named_parameters()))

    def test_keeps_every_tensor(self):
        gangs = [[], ["--ranks", 2], ["--ranks", 2, "--ep", 2],
                 ["--ranks", 4, "--ep", 2, "--replicas", 2]]
        for tied in (False, True):
            for dtype in (torch.float32, torch.bfloat16):
                model = make_model(tie_word_embeddings=tied).to(dtype)
                for number, shard_size in enumerate(("5GB", "20KB")):
                    self.save_source(model, max_shard_size=shard_size)
                    self.assertEqual((self.source / INDEX).exists(), shard_size == "20KB")
                    gang = gangs[(2 * number + tied) % len(gangs)]
                    for train_dtype in ("float32", "bfloat16"):
                        with self.subTest(tied=tied, dtype=dtype, shards=shard_size, gang=gang,
                                          train=train_dtype):
                            self.convert("--dtype", train_dtype, "--max-shard-bytes", 20_000,
                                         *gang)
                            self.assertTrue((self.out / INDEX).exists())
                            self.assert_same_tensors(tensors_of(self.out), tensors_of(self.source))
                            self.assert_transformers_loads(self.out, model)

    def test_single_file_is_byte_identical(self):
        self.save_source(make_model().to(torch.bfloat16))
        self.convert("--ranks", 2, "--ep", 2)
        for name in ("model.safetensors", "config.json", "generation_config.json"):
            self.assertEqual((self.out / name).read_bytes(), (self.source / name).read_bytes(),
                             name)
        self.assertFalse((self.out / INDEX).exists())

    def test_index_is_what_transformers_would_write(self):
        self.save_source(make_model())
        self.convert("--max-shard-bytes", 20_000)
        index = json.loads((self.out / INDEX).read_text())
        names = sorted({name for name in index["weight_map"].values()})
        count = len(names)
        self.assertGreater(count, 2)
        self.assertEqual(names, [f"model-{i + 1:05}-of-{count:05}.safetensors"
                                 for i in range(count)])
        for name in names:
            with safe_open(self.out / name, "pt") as file:
                self.assertEqual(file.metadata(), {"format": "pt"})
                for key in file.keys():
                    self.assertEqual(index["weight_map"][key], name)
        tensors = tensors_of(self.out)
        self.assertEqual(index["metadata"], {
            "total_parameters": sum(t.numel() for t in tensors.values()),
            "total_size": sum(t.nbytes for t in tensors.values())})
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        self.assertEqual((self.out / INDEX).read_text(), text)

    def test_fused_experts_are_read_and_written_one_by_one(self):
        model = make_model().to(torch.bfloat16)
        self.save_source(model)
        apart = tensors_of(self.source)
        fused = {name: t for name, t in apart.items() if ".experts." not in name}
        for layer in (0, 2):
            prefix = f"model.layers.{layer}.mlp.experts."
            fused[prefix + "gate_up_proj"] = torch.stack([
                torch.cat([apart[f"{prefix}{e}.gate_proj.weight"],
                           apart[f"{prefix}{e}.up_proj.weight"]]) for e in range(4)])
            fused[prefix + "down_proj"] = torch.stack([
                apart[f"{prefix}{e}.down_proj.weight"] for e in range(4)])
        save_file(fused, self.source / "model.safetensors", metadata={"format": "pt"})
        self.convert("--ranks", 4, "--ep", 4)
        self.assert_same_tensors(tensors_of(self.out), apart)
        self.assert_transformers_loads(self.out, model)

    def test_float16_becomes_the_dtype_of_training(self):
        self.save_source(make_model().to(torch.float16))
        for dtype in ("float32", "bfloat16"):
            self.convert("--dtype", dtype)
            wanted = {name: t.to(getattr(torch, dtype))
                      for name, t in tensors_of(self.source).items()}
            got = tensors_of(self.out)
            if dtype == "float32":
                self.assert_same_tensors(got, wanted)
            else:  # halves are rounded away from zero, not to even: within one step
                for name, tensor in wanted.items():
                    steps = got[name].view(torch.int16).int() - tensor.view(torch.int16).int()
                    self.assertLessEqual(steps.abs().max().item(), 1, name)
            self.assertEqual(json.loads((self.out / "config.json").read_text())["dtype"], dtype)

    def test_config_keeps_its_spelling(self):
        self.save_source(make_model().to(torch.float16))
        v5 = json.loads((self.source / "config.json").read_text())
        self.assertEqual(v5["dtype"], "float16")
        v4 = {**v5, "torch_dtype": "float16", "rope_theta": 10000.0, "rope_scaling": None,
              "transformers_version": "4.51.0", "x-unknown": [1e-06, {"dtype": "float16"}]}
        for key in ("dtype", "rope_parameters"):
            v4.pop(key, None)
        texts = {
            "v5": json.dumps(v5, indent=2, sort_keys=True) + "\n",
            "v4": json.dumps(v4, indent=4),
            "odd spaces": json.dumps(v4, separators=(" ,", " :\t")) + "\r\n\n",
        }
        for name, text in texts.items():
            with self.subTest(name):
                (self.source / "config.json").write_bytes(text.encode())
                self.convert("--dtype", "bfloat16")
                key = '"dtype"' if name == "v5" else '"torch_dtype"'
                start = text.index('"float16"', text.index(key))
                wanted = text[:start] + '"bfloat16"' + text[start + len('"float16"'):]
                self.assertEqual((self.out / "config.json").read_bytes(), wanted.encode())
                AutoModelForCausalLM.from_pretrained(self.out)

    def test_side_files_come_along_and_stale_ones_do_not(self):
        self.save_source(make_model())
        for name, text in {"tokenizer.json": "{}", "merges.txt": "a b", "README.md": "other",
                           "optimizer.pt": "x", "chat_template.jinja": "{{ x }}"}.items():
            (self.source / name).write_text(text)
        self.out.mkdir()
        (self.out / "model-00001-of-00002.safetensors").write_text("stale")
        self.convert()
        self.assertEqual(sorted(p.name for p in self.out.iterdir()),
                         ["chat_template.jinja", "config.json", "generation_config.json",
                          "merges.txt", "model.safetensors", "switchyard", "tokenizer.json"])

    def test_optimizer_state_is_plain_safetensors_and_survives_resharding(self):
        self.save_source(make_model().to(torch.bfloat16))
        common = ["--dtype", "bfloat16", "--max-shard-bytes", 20_000]
        first = self.convert("--ranks", 2, "--ep", 2, *common)
        weights = tensors_of(first)
        state = {}
        for file in (first / "switchyard").glob("optimizer-*.safetensors"):
            state.update(load_file(file))
        self.assertEqual(len(state), 3 * len(weights))
        for name, weight in weights.items():
            self.assertTrue(torch.equal(state[name + ".exp_avg"], weight.float() * 0.3), name)
            self.assertTrue(torch.equal(state[name + ".exp_avg_sq"], weight.float().square()), name)
            self.assertEqual(state[name + ".remainder"].dtype, torch.int16)
            self.assertFalse(state[name + ".remainder"].any(), name)
        folder = first
        for number, gang in enumerate((["--ranks", 4, "--ep", 4], ["--ranks", 1],
                                       ["--ranks", 4, "--ep", 2, "--replicas", 2])):
            folder = self.convert("--resume", *common, *gang, source=folder,
                                  out=self.root / f"resumed-{number}")
        # Also the same files: what is where does not depend on how often a job was resumed.
        names = [p.relative_to(first) for p in first.rglob("*") if p.is_file()]
        self.assertEqual(sorted(names),
                         sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()))
        for name in names:
            if name.name != "manifest.json":
                self.assertEqual((folder / name).read_bytes(), (first / name).read_bytes(), name)

    def refused(self, *needles):
        result = tool("model", self.source, self.out, "--ranks", 2)
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        for needle in needles:
            self.assertIn(needle, result.stderr)

    def test_refuses_damaged_models_by_name(self):
        name = "model.layers.2.mlp.experts.3.up_proj.weight"

        def renamed(tensors):
            tensors[name + "s"] = tensors.pop(name)

        def reshaped(tensors):
            tensors[name] = tensors[name].T.contiguous()

        def other_dtype(tensors):
            tensors[name] = tensors[name].to(torch.int32)

        edits = {
            "removed": (lambda tensors: tensors.pop(name), [name, "missing"]),
            "renamed": (renamed, [f"'{name}'", f"'{name}s'", "missing", "unexpected"]),
            "reshaped": (reshaped, [name, "[24, 12]", "[12, 24]"]),
            "dtype": (other_dtype, [name, "I32"]),
            "added": (lambda tensors: tensors.update(x=torch.zeros(1)), ["'x'", "unexpected"]),
        }
        for case, (edit, needles) in edits.items():
            with self.subTest(case):
                self.save_source(make_model())
                tensors = tensors_of(self.source)
                edit(tensors)
                save_file(tensors, self.source / "model.safetensors", metadata={"format": "pt"})
                self.refused(str(self.source), *needles)

    def test_refuses_damaged_shards_by_name(self):
        name = "model.layers.2.mlp.experts.3.up_proj.weight"
        for case in ("truncated", "file missing", "tensor missing"):
            with self.subTest(case):
                self.save_source(make_model(), max_shard_size="20KB")
                index = json.loads((self.source / INDEX).read_text())
                file = self.source / index["weight_map"][name]
                if case == "truncated":
                    file.write_bytes(file.read_bytes()[:-1])
                    self.refused(file.name, "MetadataIncompleteBuffer")
                elif case == "file missing":
                    file.unlink()
                    self.refused(file.name, "missing")
                else:
                    tensors = load_file(file)
                    del tensors[name]
                    save_file(tensors, file, metadata={"format": "pt"})
                    self.refused(file.name, name)

    def test_a_changed_dtype_in_the_header_is_found(self):
        self.save_source(make_model())
        file = self.source / "model.safetensors"
        data = file.read_bytes()
        start = data.index(b'"model.norm.weight"')
        at = data.index(b'"F32"', start)
        file.write_bytes(data[:at] + b'"I16"' + data[at + 5:])
        self.refused("model.norm.weight", "TensorInvalidInfo")


if __name__ == "__main__":
    unittest.main()
