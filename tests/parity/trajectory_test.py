"""Our trainer's 20 steps against those that make_trajectory.py took with Transformers.

usage: trajectory_test.py TRAINER FOLDER
"""

import json
import pathlib
import shutil
import subprocess
import sys

TOLERANCE = 1e-4  # relative, of every loss


def run(trainer, folder):
    shutil.rmtree(folder / "job", ignore_errors=True)
    (folder / "job").mkdir()
    done = subprocess.run([trainer, "--config", str(folder / "config.json")], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=240)
    if done.returncode != 0:
        sys.exit(f"{trainer} exited {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    frames = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [frame for frame in frames if frame["type"] == "step"]


def main():
    folder = pathlib.Path(sys.argv[2])
    expected = json.loads((folder / "expected.json").read_text())
    steps = run(sys.argv[1], folder)
    if len(steps) != len(expected):
        sys.exit(f"{len(steps)} steps, expected {len(expected)}")
    worst = 0.0
    print("step        ours  transformers     error       norm     error         lr")
    for ours, want in zip(steps, expected):
        error = abs(ours["loss"] - want["loss"]) / want["loss"]
        norm_error = abs(ours["grad_norm"] - want["grad_norm"]) / want["grad_norm"]
        worst = max(worst, error)
        print(f"{want['step']:4d} {ours['loss']:11.7f}  {want['loss']:11.7f}  {error:8.1e}"
              f"  {want['grad_norm']:9.5f}  {norm_error:8.1e}  {want['learning_rate']:9.2e}")
        if abs(ours["learning_rate"] - want["learning_rate"]) > 1e-9 * want["learning_rate"]:
            sys.exit(f"step {want['step']}: learning rate {ours['learning_rate']}")
        if abs(ours["aux_loss"] - want["aux_loss"]) > TOLERANCE * want["aux_loss"]:
            sys.exit(f"step {want['step']}: aux loss {ours['aux_loss']}, not {want['aux_loss']}")
    if not worst <= TOLERANCE:
        sys.exit(f"losses are up to {worst:.1e} apart, more than {TOLERANCE:.0e}")
    if not expected[-1]["loss"] < 0.9 * expected[0]["loss"]:
        sys.exit("the reference did not learn: the comparison would mean little")


if __name__ == "__main__":
    main()
