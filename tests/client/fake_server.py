"""A JobService in Python for tests of clients: one job whose steps and events a test writes."""

import concurrent.futures
import pathlib
import sys
import threading

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "client/python"))
import example_submit  # noqa: E402  (the stubs)

job_pb2, pb, rpc = example_submit.job_pb2, example_submit.service_pb2, example_submit.service_grpc
State = job_pb2.Job.State


class FakeJobService(rpc.JobServiceServicer):
    """Keeps events and metrics; WatchJob replays from the asked position, then follows."""

    def __init__(self):
        self.changed = threading.Condition()
        self.created, self.watched = [], []
        self.job = job_pb2.Job(name="projects/default/jobs/j1", state=State.Value("QUEUED"))
        self.items = []  # (kind, position, message), in order
        self.refuse_creates = 0

    def event(self, state, kind="STATE", message=""):
        with self.changed:
            self.job.state = State.Value(state)
            sequence = sum(kind == "event" for kind, _, _ in self.items) + 1
            self.items.append(("event", sequence, job_pb2.Event(sequence=sequence, kind=kind, state=State.Value(state),
                                                                message=message)))
            self.changed.notify_all()

    def step(self, step, loss):
        with self.changed:
            self.items.append(("metrics", step, job_pb2.StepMetrics(step=step, total_steps=4, loss=loss,
                                                                    step_seconds=1, attempt=1)))
            self.changed.notify_all()

    def CreateJob(self, request, context):
        with self.changed:
            self.created.append(request)
            if self.refuse_creates > 0:
                self.refuse_creates -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
            self.job.spec.CopyFrom(request.job.spec)
            return pb.CreateJobResponse(job=self.job)

    def GetJob(self, request, context):
        with self.changed:
            if request.name != self.job.name:
                context.abort(grpc.StatusCode.NOT_FOUND, f"no {request.name}")
            return pb.GetJobResponse(job=self.job)

    def WatchJob(self, request, context):
        with self.changed:
            self.watched.append(request)
            self.changed.notify_all()
        context.add_callback(self.wake)
        sent = 0
        while context.is_active():
            with self.changed:
                final = self.job.state in (State.Value("SUCCEEDED"), State.Value("FAILED"), State.Value("CANCELLED"))
                new = self.items[sent:]
                if not new and not final:
                    self.changed.wait(1)
            if not new and final:
                return
            sent += len(new)
            for kind, position, message in new:
                if position > (request.after_sequence if kind == "event" else request.after_step):
                    yield pb.WatchJobResponse(**{kind: message, "job": self.job})

    def wake(self):
        with self.changed:
            self.changed.notify_all()

    def wait_for(self, predicate, seconds=20):
        with self.changed:
            if not self.changed.wait_for(predicate, seconds):
                raise AssertionError(f"waited {seconds} s; watched {self.watched}")


class Server:
    def __init__(self, service):
        self.service, self.port = service, 0
        self.start()

    def start(self):
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
        rpc.add_JobServiceServicer_to_server(self.service, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        assert self.port != 0
        self.server.start()

    def stop(self):
        self.server.stop(0).wait(10)

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"
