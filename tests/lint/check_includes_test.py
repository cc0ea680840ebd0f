#!/usr/bin/env python3
"""The include check finds what it must: planted faults of each kind, and nothing in good files."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

CHECK = pathlib.Path(__file__).with_name("check_includes")

BAD = {
    "base/x.h": ['#include "server/config.h"', "#include <grpcpp/grpcpp.h>"],
    "kernels/k/k.cu": ['#include "base/log.h"', "#include <ATen/ATen.h>"],
    "server/scheduler/policy.cc": ['#include "server/store/store.h"', "#include <sqlite3.h>"],
    "server/api/job_service.cc": ["#include <sqlite3.h>"],
    "worker/agent/agent.cc": ['#include "worker/trainer/trainer.h"', "#include <ATen/ATen.h>"],
    "worker/trainer/trainer.cc": ["#include <grpcpp/grpcpp.h>", '#include "switchyard/v1/job.pb.h"'],
    "worker/trainer/parallel/fsdp.cc": ['#include "worker/trainer/models/decoder.h"'],
    "worker/prep/main.cc": ['#include "worker/trainer/trainer.h"'],
    "client/main.cc": ['#include "server/config.h"'],
    "worker/link/frame.cc": ['#include "absl/log/log.h"'],
}
GOOD = {
    "base/y.h": ['#include "absl/status/status.h"', "#include <vector>"],
    "server/scheduler/loop.cc": ['#include "server/store/store.h"'],
    "worker/trainer/models/decoder.cc": ['#include "worker/trainer/parallel/comm.h"'],
    "worker/trainer/parallel/fsdp_test.cc": ['#include "worker/trainer/models/decoder.h"'],
}


class CheckIncludesTest(unittest.TestCase):
    def run_on(self, files):
        with tempfile.TemporaryDirectory() as root:
            for name, lines in files.items():
                path = pathlib.Path(root, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join(lines) + "\n")
            return subprocess.run([sys.executable, CHECK, "--root", root], capture_output=True, text=True)

    def test_every_planted_fault_is_named(self):
        result = self.run_on(BAD)
        self.assertEqual(result.returncode, 1)
        for name, lines in BAD.items():
            for number in range(1, len(lines) + 1):
                self.assertIn(f"{name}:{number}:", result.stdout)

    def test_good_files_pass(self):
        result = self.run_on(GOOD)
        self.assertEqual(result.returncode, 0, result.stdout)


if __name__ == "__main__":
    unittest.main()
