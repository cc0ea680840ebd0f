"""What must hold after any fault, read from the database and the artifact tree once all programs have ended.

Nothing acknowledged is lost, nothing runs twice, history has no gaps, published checkpoints are whole and hold
exactly the steps that they say. Every function here yields sentences; no sentence, no fault.
"""

import collections
import json
import pathlib
import shutil
import sqlite3
import struct
import tempfile

# Numbers of server/job_state.h.
JOB_FINAL = {7: "SUCCEEDED", 8: "FAILED", 9: "CANCELLED"}
ATTEMPT_SUCCEEDED, ATTEMPT_FINAL = 6, 6
CHECKPOINT_COMMITTING, CHECKPOINT_COMMITTED, CHECKPOINT_DELETING = 1, 2, 5


def _table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = _table()


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def model_after(steps):
    """The fake worker's model after so many steps, each done once."""
    state = 0
    for step in range(1, steps + 1):
        state = crc32c(struct.pack("<q", step), state)
    return state


Line = collections.namedtuple("Line", "nanos wall attempt pid what step")


def read_trace(path):
    lines = []
    for text in path.read_text().splitlines():
        fields = text.split()
        if len(fields) == 6:  # a full disk may cut a line
            nanos, wall, attempt, pid, what, step = fields
            lines.append(Line(int(nanos), int(wall), int(attempt), int(pid), what, int(step)))
    return lines


def open_copy(state_dir, folder):
    """The database, opened as a copy: nobody but the coordinator opens the real one."""
    for name in ("switchyard.db", "switchyard.db-wal"):
        source = pathlib.Path(state_dir) / name
        if source.exists():
            shutil.copy(source, folder)
    return sqlite3.connect(pathlib.Path(folder) / "switchyard.db")


def check_database(db, acknowledged, unfinished_ok=(), renumbered=False):
    for (answer,) in db.execute("PRAGMA integrity_check"):
        if answer != "ok":
            yield f"integrity_check: {answer}"
    for row in db.execute("PRAGMA foreign_key_check"):
        yield f"foreign_key_check: {row}"
    states = dict(db.execute("SELECT name, state FROM jobs"))
    for name in acknowledged:
        if name not in states:
            yield f"LOST: {name} was acknowledged and is not in the database"
        elif states[name] not in JOB_FINAL and name not in unfinished_ok:
            yield f"LOST: {name} never ended, state {states[name]}"
    for name, count, last in db.execute("SELECT job, count(*), max(job_seq) FROM events GROUP BY job"):
        if count != last:
            yield f"{name}: {count} events, the last has number {last}"
    for name, count in db.execute("SELECT job, count(*) FROM events WHERE kind = 'STATE' AND state IN (7, 8, 9) "
                                  "GROUP BY job"):
        if count != 1:
            yield f"{name}: {count} events tell of a final state"
    for name, count, last in db.execute("SELECT job, count(*), max(number) FROM attempts GROUP BY job"):
        if count != last and not renumbered:
            yield f"{name}: {count} attempts, the last has number {last}"
    for name, number, state in db.execute("SELECT job, number, state FROM attempts"):
        if states.get(name) in JOB_FINAL and state < ATTEMPT_FINAL:
            yield f"{name} has ended, its attempt {number} has not: state {state}"
    for name, count in db.execute("SELECT job, count(*) FROM attempts WHERE state = 6 GROUP BY job"):
        if count > 1:
            yield f"TWICE: {name} succeeded {count} times"
    for row in db.execute("SELECT r.node, r.device, r.job, r.attempt FROM reservations r JOIN jobs j ON j.name = r.job "
                          "WHERE j.state IN (7, 8, 9)"):
        yield f"a device is still reserved for a job that ended: {row}"


def check_traces(job_dir, name, end_wall, frozen=False, lossy=False):
    """One attempt at a time, each process once, each step after the one before.

    frozen: whole nodes were frozen past their lease, so that a late process may wake up beside the next attempt
    (service.md 2.4); then only fencing counts, which check_checkpoints shows.
    lossy: the traces were on a disk that was full for a while, which has cost lines.
    """
    for path in sorted((job_dir / "trace").glob("rank-*.log")):
        lines = read_trace(path)
        attempts = {}
        for line in lines:
            attempts.setdefault(line.attempt, []).append(line)
        previous = None
        for number in sorted(attempts):
            mine = attempts[number]
            if len({line.pid for line in mine}) > 1:
                yield f"TWICE: {name} {path.name}: attempt {number} ran in processes {sorted({l.pid for l in mine})}"
            if any(line.what == "overlap" for line in mine) and not frozen:
                yield f"TWICE: {name} {path.name}: attempt {number} began while another one lived"
            if previous and mine[0].nanos <= attempts[previous][-1].nanos and not frozen:
                yield f"TWICE: {name} {path.name}: attempts {previous} and {number} overlap"
            steps = [line.step for line in mine if line.what == "step"]
            # "overlap" comes before the checkpoint is read; a full disk may have lost "begin".
            first = [line.step for line in mine if line.what == "begin"] or [step - 1 for step in steps[:1]]
            breaks = [pair for pair in zip([*first[:1], *steps], steps)
                      if (pair[1] <= pair[0] if lossy else pair[1] != pair[0] + 1)]
            if breaks:
                yield f"{name} {path.name}: attempt {number} went from step to step like this: {breaks[:5]}"
            previous = number
        if end_wall and not frozen and any(line.what == "step" and line.wall > end_wall for line in lines):
            yield f"TWICE: {name} {path.name}: a step after the job had ended"


def check_checkpoint(folder, row):
    try:
        manifest = json.loads((folder / "switchyard/manifest.json").read_text())
        state = json.loads((folder / "switchyard/state.json").read_text())
    except (OSError, ValueError) as error:
        yield f"{folder}: {error}"
        return
    for file in manifest["files"]:
        data = (folder / file["name"]).read_bytes()
        if len(data) != file["size"] or f"{crc32c(data):08x}" != file["crc32c"]:
            yield f"{folder}/{file['name']} is not what its manifest says"
    if state["step"] != row["step"] or state["state"] != model_after(row["step"]):
        yield f"TWICE or LOST: {folder}: its model is not that of {row['step']} steps done once"
    if manifest["attempt"] != row["attempt"]:
        yield f"{folder}: of attempt {manifest['attempt']}, the database says {row['attempt']}"


def check_checkpoints(db, job_dir, name, state, damaged=()):
    committed, deleting = {}, set()
    for step, attempt, number, final in db.execute(
            "SELECT step, attempt, state, final FROM checkpoints WHERE job = ?", (name,)):
        if number == CHECKPOINT_COMMITTED:
            committed[step] = {"step": step, "attempt": attempt, "final": final}
        elif number == CHECKPOINT_COMMITTING and state in JOB_FINAL:
            yield f"{name}: the checkpoint of step {step} is COMMITTING for ever"
        elif number == CHECKPOINT_DELETING:
            deleting.add(step)  # its files go when the coordinator runs again
    for step, row in committed.items():
        folder = job_dir / f"checkpoints/step-{step}"
        if str(folder) not in damaged:
            yield from check_checkpoint(folder, row)
    for folder in (job_dir / "checkpoints").glob("step-*"):
        if int(folder.name[5:]) not in committed.keys() | deleting:
            yield f"{folder} is published, but no row tells of it"
    if state == 7 and not any(row["final"] for row in committed.values()):
        yield f"{name} succeeded without a final checkpoint"


def check_history(db, state_dir, job_dir, name, lossy=False):
    """An attempt that succeeded has each step's metrics and each byte of its logs, once."""
    project, job = name.split("/")[1], name.split("/")[3]
    succeeded = {n for (n,) in db.execute("SELECT number FROM attempts WHERE job = ? AND state = 6", (name,))}
    metrics = {}
    for number, step in db.execute("SELECT attempt, step FROM step_metrics WHERE job = ? ORDER BY step", (name,)):
        metrics.setdefault(number, []).append(step)
    for path in sorted((job_dir / "trace").glob("rank-*.log")):
        rank = path.name[5:-4]
        for number, lines in group_by_attempt(read_trace(path)).items():
            steps = [line.step for line in lines if line.what == "step"]
            stored = metrics.get(number, [])
            if lossy and steps and number in succeeded:  # whole, from the first to the last that anybody saw
                seen = sorted({*steps, *stored})
                steps = list(range(seen[0], seen[-1] + 1))
            log = state_dir / f"logs/{project}/{job}/{number}/rank-{rank}.stdout"
            text = log.read_bytes() if log.exists() else b""
            want = b"".join(b"attempt %d rank %s step %d state %08x\n" % (number, rank.encode(), s, model_after(s))
                            for s in steps)
            if number in succeeded and text != want:
                yield f"{name}: log of attempt {number} rank {rank} has {len(text)} bytes, not the {len(want)} written"
            elif not (want + b"attempt").startswith(text[:len(want)]):
                yield f"{name}: log of attempt {number} rank {rank} differs from what was written"
            if rank == "0" and number in succeeded and stored != steps:
                yield f"{name}: metrics of attempt {number} are of steps {stored[:20]}, not {steps[:20]}"


def group_by_attempt(lines):
    groups = {}
    for line in lines:
        groups.setdefault(line.attempt, []).append(line)
    return groups


def check(cluster, frozen=False, damaged=(), unfinished_ok=(), history=True, wall=True, renumbered=False,
          lossy=False):
    """All faults found. The coordinator and agents must have ended, or at least be quiet."""
    faults = []
    with tempfile.TemporaryDirectory(prefix="sy-faults-db-") as folder:
        db = open_copy(cluster.state_dir, folder)
        faults += check_database(db, cluster.acknowledged, unfinished_ok, renumbered)
        for name, state, end in db.execute("SELECT name, state, end_time FROM jobs").fetchall():
            job_dir = cluster.artifacts / name.split("/")[1] / name.split("/")[3]
            faults += check_traces(job_dir, name, end if wall else None, frozen, lossy)
            faults += check_checkpoints(db, job_dir, name, state, damaged)
            if history:
                faults += check_history(db, cluster.state_dir, job_dir, name, lossy)
        db.close()
    return faults
