"""Our safetensors against the Python library's: the same bytes, the same verdicts."""

import os
import pathlib
import struct
import subprocess
import tempfile
import unittest

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

TOOL = pathlib.Path(os.environ["SY_BUILD_DIR"]) / "test" / "roundtrip_tool"

# What the reference (0.4 and later) says -> the name of its error.
NAMES = [
    ("header too small", "HeaderTooSmall"),
    ("header too large", "HeaderTooLarge"),
    ("invalid header length", "InvalidHeaderLength"),
    ("invalid UTF-8", "InvalidHeader"),
    ("invalid JSON in header", "InvalidHeaderDeserialization"),
    ("invalid offset for tensor", "InvalidOffset"),
    ("overflow computing", "ValidationOverflow"),
    ("slicing for subbytes", "MisalignedSlice"),
    ("invalid shape, data type, or offset", "TensorInvalidInfo"),
    ("incomplete metadata", "MetadataIncompleteBuffer"),
    ("file not fully covered", "MetadataIncompleteBuffer"),
]


def tool(*args):
    return subprocess.run([TOOL, *map(str, args)], capture_output=True, text=True)


def reference_verdict(path):
    try:
        with safe_open(path, "pt"):
            return "ok"
    except SafetensorError as error:
        for text, name in NAMES:
            if text in str(error):
                return name
        raise AssertionError(f"unknown message of the reference: {error}")


class SafetensorsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def test_writes_the_same_bytes(self):
        torch.manual_seed(1)
        dtypes = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16,
                  torch.int32, torch.float32, torch.float64, torch.int64, torch.float8_e4m3fn,
                  torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64]
        mixed = {f"t{i}": torch.randint(0, 2, (i % 4 + 1, 3)).to(dtype)
                 for i, dtype in enumerate(dtypes * 2)}
        odd_names = ["ü", "日本.weight", "a b", 'quo"te', "back\\slash", "tab\t", "\x01", "\x7f",
                     "emoji😀", "/", "B", "a", "_"]
        cases = {
            "one": {"w": torch.randn(3, 4)},
            "mixed": mixed,
            "scalar": {"s": torch.tensor(3.5), "v": torch.randn(2)},
            "empty dim": {"e": torch.zeros(0, 4), "f": torch.zeros(3, 0, dtype=torch.int64),
                          "v": torch.randn(1)},
            "no tensors": {},
            "names": {name: torch.full((i + 1,), i, dtype=torch.uint8)
                      for i, name in enumerate(odd_names)},
            "layers": {f"model.layers.{i}.w": torch.randn(2).bfloat16() for i in range(12)},
        }
        for case, tensors in cases.items():
            for metadata in (None, {"format": "pt"}, {"ke\"y": "välue\n"}):
                with self.subTest(case=case, metadata=metadata):
                    theirs, ours = self.folder / "theirs", self.folder / "ours"
                    save_file(tensors, theirs, metadata=metadata)
                    result = tool("rewrite", theirs, ours)
                    self.assertEqual(result.returncode, 0, result.stderr)
                    self.assertEqual(ours.read_bytes(), theirs.read_bytes())
                    self.assertEqual(set(load_file(ours)), set(tensors))

    def test_judges_broken_files_as_the_reference(self):
        good = '"dtype":"F32","shape":[1],"data_offsets":[0,4]'

        def entry(name, dtype, shape, begin, end):
            return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'

        corpus = {  # header, bytes of data
            "good": ("{" + entry("a", "F32", [1], 0, 4) + "}", 4),
            "no tensors": ("{}", 0),
            "truncated JSON": ('{"a":{', 0),
            "trailing comma": ('{"a":{' + good + "},}", 4),
            "missing dtype": ('{"a":{"shape":[1],"data_offsets":[0,4]}}', 4),
            "missing shape": ('{"a":{"dtype":"F32","data_offsets":[0,4]}}', 4),
            "missing offsets": ('{"a":{"dtype":"F32","shape":[1]}}', 4),
            "unknown dtype": ("{" + entry("a", "F33", [1], 0, 4) + "}", 4),
            "lower-case dtype": ("{" + entry("a", "f32", [1], 0, 4) + "}", 4),
            "negative dim": ("{" + entry("a", "F32", [-1], 0, 4) + "}", 4),
            "float dim": ("{" + entry("a", "F32", [1.0], 0, 4) + "}", 4),
            "three offsets": ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}', 4),
            "metadata not strings": ('{"__metadata__":{"a":1}}', 0),
            "tensor is a list": ('{"a":[]}', 0),
            "hole": ("{" + entry("a", "F32", [1], 0, 4) + "," + entry("b", "F32", [1], 5, 9) + "}",
                     9),
            "overlap": ("{" + entry("a", "F32", [1], 0, 4) + "," + entry("b", "F32", [1], 2, 6)
                        + "}", 6),
            "end before begin": ("{" + entry("a", "F32", [1], 0, 4) + ","
                                 + entry("b", "F32", [1], 4, 0) + "}", 4),
            "late start": ("{" + entry("a", "F32", [1], 4, 8) + "}", 8),
            "dims overflow": ("{" + entry("a", "F32", [2**32, 2**32], 0, 4) + "}", 4),
            "bits overflow": ("{" + entry("a", "F64", [2**62], 0, 4) + "}", 4),
            "half a byte": ("{" + entry("a", "F4", [1], 0, 1) + "}", 1),
            "wrong size": ("{" + entry("a", "F32", [2], 0, 4) + "}", 4),
            "data too short": ("{" + entry("a", "F32", [1], 0, 4) + "}", 3),
            "data too long": ("{" + entry("a", "F32", [1], 0, 4) + "}", 5),
            "data without tensors": ("{}", 1),
        }
        files = {name: struct.pack("<Q", len(header.encode())) + header.encode() + b"x" * size
                 for name, (header, size) in corpus.items()}
        header = ("{" + entry("a", "F32", [1], 0, 4) + "}").encode()
        files["empty"] = b""
        files["seven bytes"] = b"1234567"
        files["length beyond the file"] = struct.pack("<Q", 100) + header
        files["length 100,000,001"] = struct.pack("<Q", 100_000_001) + header
        files["length 2^64 - 1"] = struct.pack("<Q", 2**64 - 1) + header
        files["not UTF-8"] = struct.pack("<Q", 3) + b'{"\xff'
        seen = set()
        for name, data in files.items():
            with self.subTest(name):
                path = self.folder / "file"
                path.write_bytes(data)
                ours = tool("check", path).stdout.strip()
                if data:  # the library cannot map an empty file and says so in its own words
                    self.assertEqual(ours, reference_verdict(path))
                else:
                    self.assertEqual(ours, "HeaderTooSmall")
                seen.add(ours)
        self.assertEqual(seen, {name for _, name in NAMES} | {"ok"})

    def test_refuses_duplicate_names_which_the_reference_lets_pass(self):
        one = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
        header = ("{" + one + "," + one + "}").encode()
        path = self.folder / "file"
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"0123")
        self.assertEqual(tool("check", path).stdout.strip(), "InvalidHeaderDeserialization")


if __name__ == "__main__":
    unittest.main()
