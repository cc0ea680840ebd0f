#!/usr/bin/env python3
"""Submits a fine-tune job over gRPC and watches it to its end: all that a Python client needs.

  client/python/example_submit.py --server 127.0.0.1:7070 --spec spec.json

spec.json is a JobSpec (proto/switchyard/v1/job.proto) in protobuf's JSON; `switchyard validate recipe.yaml
-o json` prints one under "spec". Needs grpcio, grpcio-tools and protobuf from PyPI. The exit code is that of
`switchyard watch`: 0 succeeded, 10 failed, 11 cancelled.
"""

import argparse
import importlib
import json
import pathlib
import sys
import tempfile
import time
import uuid

import grpc
from google.protobuf import json_format
from grpc_tools import protoc

PROTOS = pathlib.Path(__file__).resolve().parents[2] / "proto"
EXIT_CODES = {"SUCCEEDED": 0, "FAILED": 10, "CANCELLED": 11}


def load_stubs():
    """Generates the stubs into a temporary folder and imports them. A package would do it once, when it is built."""
    with tempfile.TemporaryDirectory() as folder:
        files = ["switchyard/v1/job.proto", "switchyard/v1/job_service.proto"]
        code = protoc.main(["protoc", f"-I{PROTOS}", f"-I{pathlib.Path(protoc.__file__).parent / '_proto'}",
                            f"--python_out={folder}", f"--grpc_python_out={folder}", *files])
        if code != 0:
            raise RuntimeError(f"protoc failed with {code} on {files} in {PROTOS}")
        sys.path.insert(0, folder)
        try:
            return tuple(importlib.import_module(f"switchyard.v1.{name}")
                         for name in ("job_pb2", "job_service_pb2", "job_service_pb2_grpc"))
        finally:
            sys.path.remove(folder)


job_pb2, service_pb2, service_grpc = load_stubs()


def submit(jobs, spec, project="default", job_id="", request_id=None, tries=5):
    """Creates the job. The same request_id makes a repeated call safe, so it may be tried again."""
    request = service_pb2.CreateJobRequest(
        parent=f"projects/{project}", job_id=job_id, request_id=request_id or str(uuid.uuid4()),
        job=job_pb2.Job(spec=json_format.ParseDict(spec, job_pb2.JobSpec())))
    for attempt in range(tries):
        try:
            return jobs.CreateJob(request, timeout=30).job
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or attempt + 1 == tries:
                raise
            time.sleep(0.2 * 2 ** attempt)


def watch(jobs, name, patience=600):
    """Yields events and step metrics until the job is final, across restarts of the coordinator. Then returns the job.

    The end of the stream is not the end of the job: only a final state is.
    """
    position = {"after_sequence": 0, "after_step": 0}
    lost = None
    while True:
        try:
            stream = jobs.WatchJob(service_pb2.WatchJobRequest(name=name, include_metrics=True, **position))
            for update in stream:
                lost = None
                kind = update.WhichOneof("item")
                if kind == "event":
                    position["after_sequence"] = update.event.sequence
                    yield update.event
                elif kind == "metrics":
                    position["after_step"] = update.metrics.step
                    yield update.metrics
            job = jobs.GetJob(service_pb2.GetJobRequest(name=name), timeout=30).job
            if job_pb2.Job.State.Name(job.state) in EXIT_CODES:
                return job
        except grpc.RpcError as error:
            lasting = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT,
                       grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED)
            lost = lost or time.monotonic()
            if error.code() in lasting or time.monotonic() - lost > patience:
                raise
        time.sleep(0.3)


def show(update):
    if isinstance(update, job_pb2.StepMetrics):
        print(f"step {update.step}/{update.total_steps} loss {update.loss:.4f} lr {update.learning_rate:.3e} "
              f"tokens/s {update.tokens_per_second:.0f}", flush=True)
    else:
        print(f"{update.kind} {job_pb2.Job.State.Name(update.state)} {update.message}".rstrip(), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="127.0.0.1:7070")
    parser.add_argument("--spec", required=True, help="JobSpec as JSON")
    parser.add_argument("--project", default="default")
    parser.add_argument("--name", default="", help="job id; empty: the server chooses")
    arguments = parser.parse_args()
    spec = json.loads(pathlib.Path(arguments.spec).read_text())

    with grpc.insecure_channel(arguments.server, options=[("grpc.max_reconnect_backoff_ms", 1000)]) as channel:
        jobs = service_grpc.JobServiceStub(channel)
        try:
            job = submit(jobs, spec, arguments.project, arguments.name)
            print(f"submitted {job.name}", flush=True)
            updates = watch(jobs, job.name)
            while True:
                try:
                    show(next(updates))
                except StopIteration as end:
                    job = end.value
                    break
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            return 6 if error.code() == grpc.StatusCode.UNAVAILABLE else 1
    state = job_pb2.Job.State.Name(job.state)
    print(f"{job.name}: {state}")
    if state == "FAILED":
        print(f"{job_pb2.FailureReason.Name(job.failure.reason)}: {job.failure.message}", *job.failure.last_lines,
              sep="\n  ", file=sys.stderr)
    return EXIT_CODES[state]


if __name__ == "__main__":
    sys.exit(main())
