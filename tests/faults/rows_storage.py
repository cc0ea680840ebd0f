"""Disks: full, failing, gone, damaged; backups and what follows a restore. Small ext4 file systems on loop devices."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time

import check
import cluster
import grpc
from cluster import BIN, kill, wait_until
from loop_disk import fill, loop_disk, power_loss, remount
from row import row
from rows_kills import verify


@contextlib.contextmanager
def on_disk(what, mebibytes=64, **options):
    """A cluster of which one part is on a small disk of its own: state_dir or artifacts. Yields it and the disk."""
    with cluster.tempfile.TemporaryDirectory(prefix="sy-faults-disk-") as outer:
        outer = pathlib.Path(outer)
        with loop_disk(outer, mebibytes) as point:
            with cluster.cluster(**{what: point / "data"}, **options) as made:
                yield made, outer


@row("14", "disks full: database, artifacts", "a small ext4 is filled while jobs run, then emptied",
     needs=("root", "mkfs.ext4"))
def disk_full(run):
    # The database: the ballast keeps running jobs recorded, new ones are refused, and it heals by itself.
    with on_disk("state_dir", nodes=1, ranks=1) as (made, outer):
        name = made.submit("running", steps=300, step_ms=10, every=50)
        made.wait_step(name, 10)
        filler = fill(outer / "disk")
        refused = None
        end = time.monotonic() + 20
        while refused is None and time.monotonic() < end:
            try:
                made.submit(f"more-{time.monotonic_ns()}", tries=1, steps=1)
            except grpc.RpcError as error:
                refused = error
            time.sleep(0.01)
        assert refused is not None, "the disk is full, and jobs are accepted"
        assert "STORAGE_READ_ONLY" in str(refused.trailing_metadata()), refused.trailing_metadata()
        made.wait_final([name], seconds=30)
        made.expect(name, "SUCCEEDED", attempts=1)
        filler.unlink()
        def accepted():
            with contextlib.suppress(grpc.RpcError):
                return made.submit("after", tries=1, steps=3)
        wait_until("jobs to be accepted again", accepted, 20, 0.2)
        made.wait_final()
        made.expect("projects/default/jobs/after", "SUCCEEDED")
        run.add()
        verify(made)
    # Artifacts: the job says DISK_FULL and goes on when there is room.
    with on_disk("artifacts", nodes=1, ranks=1) as (made, outer):
        name = made.submit("job", steps=200, step_ms=10, every=20, plan={"pad_bytes": 200_000}, no_progress_limit=1000)
        made.wait_step(name, 30)
        filler = fill(outer / "disk")
        wait_until("a failed attempt", lambda: len(made.get(name).attempts) > 1, 30)
        filler.unlink()
        made.wait_final()
        made.expect(name, "SUCCEEDED", "DISK_FULL")
        run.add()
        verify(made, lossy=True)


@row("15", "writes fail: EIO and power loss",
     "store.before_commit=error(EIO) and the ext4 shutdown ioctl without log flush, on the database and on artifacts",
     needs=("root", "mkfs.ext4"))
def disk_fails(run):
    with cluster.cluster(nodes=1, ranks=1, ttl=12.0) as made:
        names = [made.submit("before", steps=100, step_ms=10, every=20)]
        made.coordinator.kill(signal.SIGTERM)
        made.start_coordinator(environment={"SWITCHYARD_FAILPOINTS": "store.before_commit=error(EIO)@20"})
        assert made.coordinator.process.wait(30) == 70, made.coordinator.process.returncode
        assert "storage failed" in made.coordinator.tail(), made.coordinator.tail()
        made.start_coordinator()
        made.wait_final()
        made.expect(names[0], "SUCCEEDED", attempts=1)
        run.add()
        verify(made)
    for _ in range(1 if run.fast else 5):
        with on_disk("state_dir", nodes=1, ranks=2, ttl=12.0) as (made, outer):
            for index in range(12):
                made.submit(f"job-{index}", steps=20, step_ms=5, every=5)
            time.sleep(run.random.uniform(0, 0.3))
            power_loss(outer / "disk")
            with contextlib.suppress(grpc.RpcError):
                made.submit("in the dark", tries=1, steps=1)
            wait_until("the coordinator to stop", lambda: made.coordinator.process.poll() is not None, 30)
            assert made.coordinator.process.returncode == 70, made.coordinator.tail()
            remount(outer)
            made.start_coordinator()
            made.wait_final()
            for name in made.acknowledged:
                made.expect(name, "SUCCEEDED")
            run.add()
            # Logs are files: what was not synced may be gone, rows of the database may not.
            verify(made, history=False)
    for _ in range(1 if run.fast else 5):
        with on_disk("artifacts", nodes=1, ranks=1) as (made, outer):
            name = made.submit("job", steps=150, step_ms=8, every=5, no_progress_limit=1000)
            made.wait_step(name, 30)
            time.sleep(run.random.uniform(0, 0.1))
            power_loss(outer / "disk")
            made.coordinator.kill()
            kill(made.shims() + made.trainers())
            remount(outer)
            made.start_coordinator()
            made.wait_final()
            made.expect(name, "SUCCEEDED")
            run.add()
            verify(made)


@row("16", "a torn, truncated or bit-flipped checkpoint", "the newest one is damaged, then the gang is killed", fast=True)
def damaged_checkpoint(run):
    for damage in ("truncate", "no manifest", "flip"):
        with cluster.cluster(nodes=1, ranks=1, flags=["--verify-checksums", "true"]) as made:
            # Steps long enough that the next checkpoint is not there before the damage is done.
            name = made.submit("job", steps=60, step_ms=50, every=10)
            made.wait_step(name, 21)
            newest = made.job_dir(name) / "checkpoints/step-20"
            wait_until("the checkpoint", newest.exists, 5)
            model = newest / "model.safetensors"
            if damage == "truncate":
                os.truncate(model, 3)
            elif damage == "flip":
                data = bytearray(model.read_bytes())
                data[-2] ^= 1
                model.write_bytes(data)
            else:
                (newest / "switchyard/manifest.json").unlink()
            kill(made.trainers())
            made.wait_final()
            made.expect(name, "SUCCEEDED", attempts=2)
            begins = [line.step for line in check.read_trace(made.job_dir(name) / "trace/rank-0.log")
                      if line.what == "begin"]
            assert begins[1] == 10, f"{damage}: attempts began at {begins}"
            run.add()
            verify(made)


def maintenance(*arguments):
    return subprocess.run([BIN / "switchyardd", *map(str, arguments)], capture_output=True, text=True, timeout=120)


def damage_page(path, page):
    with open(path, "r+b") as file:
        file.seek(4096 * page)
        file.write(b"\x5a" * 4096)


@row("17", "a damaged database", "a page overwritten, the log cut or deleted, -shm deleted; then check, restore, recover",
     fast=True)
def damaged_database(run):
    with cluster.cluster(nodes=1, ranks=2) as made:
        for index in range(30 if run.fast else 150):
            made.submit(f"job-{index}", steps=3, step_ms=1, every=1)
        made.wait_final(seconds=120)
        backup = made.folder / "backup.db"
        done = maintenance("backup", "--state-dir", made.state_dir, "--to", backup)
        assert done.returncode == 0, done.stderr
        made.coordinator.kill(signal.SIGKILL)
        database = made.state_dir / "switchyard.db"
        # The log and the index of it, cut off in the middle of a write: the start reads what is whole.
        (made.state_dir / "switchyard.db-shm").unlink(missing_ok=True)
        with open(made.state_dir / "switchyard.db-wal", "ab") as file:
            file.write(b"\x00half a frame")
        made.start_coordinator()
        run.add()
        made.coordinator.kill(signal.SIGTERM)
        (made.state_dir / "switchyard.db-wal").unlink(missing_ok=True)
        (made.state_dir / "switchyard.db-shm").unlink(missing_ok=True)
        pages = database.stat().st_size // 4096
        damage_page(database, pages // 2)
        assert maintenance("check", "--state-dir", made.state_dir).returncode == 1
        made.start_coordinator(wait=False)
        if made.coordinator.process.wait(30) != 1:
            raise AssertionError(f"started on a damaged database: {made.coordinator.tail()}")
        assert "switchyardd restore" in made.coordinator.tail(), made.coordinator.tail()
        recovered = maintenance("recover", "--state-dir", made.state_dir, "--artifact-root", made.artifacts)
        assert recovered.returncode == 0, recovered.stderr
        assert maintenance("check", "--state-dir", made.state_dir).returncode == 0
        run.note("jobs recovered %", int(100 * count_jobs(made) / len(made.acknowledged)))
        run.add()
        restored = maintenance("restore", "--state-dir", made.state_dir, "--from", backup, "--artifact-root",
                               made.artifacts)
        assert restored.returncode == 0, restored.stderr
        assert count_jobs(made) == len(made.acknowledged)
        made.start_coordinator()
        for name in made.acknowledged:
            made.expect(name, "SUCCEEDED")
        run.add()
        verify(made)


def count_jobs(made):
    with cluster.tempfile.TemporaryDirectory() as folder:
        db = check.open_copy(made.state_dir, folder)
        (count,) = db.execute("SELECT count(*) FROM jobs").fetchone()
        db.close()
    return count


@row("31", "an old backup is restored while newer attempts run",
     "backup; jobs go on, fail and run again; kill, restore, start: the newer attempts are fenced, nothing runs twice")
def old_backup(run):
    for _ in range(1 if run.fast else 3):
        with cluster.cluster(nodes=2, ranks=1, ttl=3.0) as made:
            names = [made.submit(f"job-{i}", steps=500, step_ms=10, every=10) for i in range(3)]
            made.wait_step(names[0], 15)
            backup = made.folder / "backup.db"
            assert maintenance("backup", "--state-dir", made.state_dir, "--to", backup).returncode == 0
            kill(made.trainers())  # attempt 2, of which the backup knows nothing
            wait_until("attempt 2", lambda: len(made.get(names[0]).attempts) == 2, 10)
            made.wait_step(names[0], 40)
            made.coordinator.kill()
            done = maintenance("restore", "--state-dir", made.state_dir, "--from", backup, "--artifact-root",
                               made.artifacts)
            assert done.returncode == 0, done.stderr
            assert "taken over" in done.stdout, done.stdout
            made.start_coordinator()
            made.wait_final(seconds=120)
            for name in names:
                made.expect(name, "SUCCEEDED")
            run.add()
            verify(made, renumbered=True)
