"""Three machines on one: network namespaces with addresses, file systems and processes of their own, and an S3 server.

A sweep is submitted by ``ray job submit`` with a token. Its data, network and results lie in S3, behind a proxy that
answers some requests with 503. While it scores, one machine is cut off and comes back later, and another one dies. All
that time a reader opens every file of the run. The tables must be those of an undisturbed run on this machine, each
file that was read must have been whole, and local paths must be refused. Linux, as root, with iproute2; moto's server
comes with ``pip install 'moto[s3,server]'``.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image
from pyarrow import fs as pafs

from benchmarks.chaos import APART, SIZE, SWEEP, differences, prepared, whole_run
from cxr_ray.storage import unsealed

NET = "10.77.0"
BRIDGE, S3_PORT, PROXY_PORT = f"{NET}.254", 5000, 5001
PREFIX = "s3://cxr"
QUERY = f"?endpoint_override={BRIDGE}:{PROXY_PORT}&scheme=http&region=us-east-1&allow_bucket_creation=true"
INSIDE = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
HEAD = f"{NET}.1"
LONGEST = 1800.0  # seconds of a job
HOP_BY_HOP = ("connection", "content-length", "expect", "transfer-encoding")  # headers of one connection alone
CHANGES: dict[str, Any] = {  # of the sweep of benchmarks.chaos: nothing is trained, and there is more to score
    "variants": {},
    "verdicts": None,
    "perturb": {"grids": ["7"], "fills": ["mean", "noise"], "levels": [0.2, 0.4, 0.6, 0.8]},
    "regions": {"names": ["border", "corners"], "draws": 1, "donors": 4, "edits": ["paste_marker"]},
}


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command that must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True, **options)


@dataclass
class Machine:
    """A machine of its own: address, /tmp/ray, shared memory, processes.

    Attributes:
        number: its address is 10.77.0.number.
        env: of all that it runs.
        init: its first process; all others end with it.
    """

    number: int
    env: dict[str, str]
    init: subprocess.Popen[bytes] = field(init=False)
    ray: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Its address."""
        return f"{NET}.{self.number}"

    def start(self) -> None:
        """Switch it on, and connect it."""
        self.init = subprocess.Popen([*INSIDE, "sleep", "infinity"], env=self.env)
        while not (children := self._children()):
            time.sleep(0.05)
        self.pid = children[0]
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        run("ip", "link", "set", self.link, "master", "bridge0", "up")
        self.call(
            "bash",
            "-c",
            f"hostname machine{self.number}; ip link set lo up; ip link set eth0 up; "
            f"ip addr add {self.address}/24 dev eth0; "
            "mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mkdir /tmp/ray/own; "
            "mount -t tmpfs -o size=1g tmpfs /dev/shm",
        )

    def _children(self) -> list[int]:
        listed = subprocess.run(["pgrep", "-P", str(self.init.pid)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in listed.stdout.split()]

    @property
    def link(self) -> str:
        """The other end of its cable."""
        return f"veth{self.number}"

    def command(self, *arguments: str) -> list[str]:
        """A command as this machine runs it."""
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-u", "-p", "--", *arguments]

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command on it."""
        return run(*self.command(*arguments), env=self.env)

    def join(self) -> None:
        """Start Ray on it: the head on the first machine."""
        role = (
            ["--head", "--port=6379", "--dashboard-host=0.0.0.0"]
            if self.address == HEAD
            else [f"--address={HEAD}:6379"]
        )
        cpus = f"--num-cpus={2 if self.address == HEAD else 1}"
        self.ray = subprocess.Popen(
            self.command(*RAY, "start", "--block", f"--node-ip-address={self.address}", cpus, *role),
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def cut(self) -> None:
        """Pull its cable."""
        run("ip", "link", "set", self.link, "down")

    def mend(self) -> None:
        """Put the cable back. Its Ray was given up meanwhile and ends; start it again, as a supervisor does."""
        run("ip", "link", "set", self.link, "up")
        if self.ray is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.ray.wait(60)
        subprocess.run(self.command(*RAY, "stop", "--force"), env=self.env, capture_output=True, check=False)
        self.join()

    def die(self) -> None:
        """Switch it off."""
        self.init.kill()
        self.init.wait()


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on to the S3 server, and answers some of them with 503 instead."""

    protocol_version = "HTTP/1.1"
    rng: ClassVar = random.Random(0)
    share: ClassVar = 0.0
    counts: ClassVar = {"passed": 0, "refused": 0}
    guard: ClassVar = threading.Lock()

    def handle_all(self) -> None:
        """One request."""
        body = self._body()
        with self.guard:
            refused = self.rng.random() < self.share
            self.counts["refused" if refused else "passed"] += 1
        if refused:
            slow = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>slow down</Message></Error>"
            self._answer(503, {"Content-Type": "application/xml"}, b"" if self.command == "HEAD" else slow, len(slow))
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
        upstream = http.client.HTTPConnection("127.0.0.1", S3_PORT, timeout=60)
        with contextlib.closing(upstream):
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
            length = int(answer.getheader("Content-Length") or len(data))
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in HOP_BY_HOP}
            self._answer(answer.status, kept, data, length)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":  # as parts of an upload are sent
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def _answer(self, status: int, headers: dict[str, str], data: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_all

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _check(path: str, data: bytes) -> None:
    """Raise ValueError or ArrowException where a file of a run is not whole."""
    if path.endswith(".parquet"):
        pq.read_table(io.BytesIO(data))
    elif path.endswith(".json"):
        json.loads(data)
    elif "/.work/maps/" in path:
        pa.ipc.open_file(data).read_all()
    elif path.endswith(".arrow"):
        unsealed(data)


@dataclass
class Reader:
    """Reads all files of a run, again and again, while it is written."""

    store: pafs.FileSystem
    root: str
    files: int = 0
    torn: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        """Until ``done``."""
        while not self.done.wait(1):
            with contextlib.suppress(OSError):  # the proxy's 503, and files that are gone meanwhile
                infos = self.store.get_file_info(pafs.FileSelector(self.root, recursive=True, allow_not_found=True))
                for info in [i for i in infos if i.is_file]:
                    self._one(info.path)

    def _one(self, path: str) -> None:
        try:
            data = self.store.open_input_stream(path).read()
        except OSError:
            return
        self.files += 1
        try:
            _check(path, data)
        except (OSError, ValueError, pa.ArrowException) as e:
            self.torn.append(f"{path}: {e}")


@contextlib.contextmanager
def s3(share: float, seed: int) -> Iterator[None]:
    """The S3 server, and the proxy before it."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(S3_PORT)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    Proxy.share, Proxy.rng = share, random.Random(seed)
    proxy = ThreadingHTTPServer((BRIDGE, PROXY_PORT), Proxy)
    proxy.handle_error = lambda *_: None  # type: ignore[method-assign]  # a connection that its other end cut
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                http.client.HTTPConnection("127.0.0.1", S3_PORT, timeout=1).connect()
                break
            time.sleep(0.2)
        yield
    finally:
        proxy.shutdown()
        server.kill()


def images(folder: Path, n_test: int) -> Path:
    """Phantoms as files in Kaggle's layout."""
    from cxr_ray.data.phantoms import render

    for split, n in (("train", 12), ("test", n_test // 2)):
        for label, name in enumerate(("NORMAL", "PNEUMONIA")):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(render(1000 * n + 10 * i + label, label, SIZE).image).save(
                    folder / split / name / f"{name}-{i}.png"
                )
    return folder


def submitted(work: Path, env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """A job on the cluster."""
    command = [*RAY, "job", "submit", "--address", f"http://{HEAD}:8265", "--working-dir", str(work), "--"]
    return subprocess.Popen(
        [*command, sys.executable, "-m", "cxr_ray.sweep", *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(condition: Any, job: subprocess.Popen[str], what: str) -> None:
    """Wait for a condition while the job runs.

    Raises:
        SystemExit: it ended before.
    """
    ends = time.monotonic() + LONGEST
    while not condition():
        if job.poll() is not None or time.monotonic() > ends:
            job.kill()
            raise SystemExit(f"the job ended before {what}: {job.communicate()[0][-3000:]}")
        time.sleep(0.5)


def inside(args: argparse.Namespace) -> int:
    """In a namespace of its own: build the machines, run, disturb, compare."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "bridge0", "type", "bridge")
    run("ip", "addr", "add", f"{BRIDGE}/24", "dev", "bridge0")
    run("ip", "link", "set", "bridge0", "up")
    env = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
        "AWS_EC2_METADATA_DISABLED": "true",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "TMPDIR": "/tmp/ray/own",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    os.environ.update({k: v for k, v in env.items() if k.startswith("AWS_")})
    with tempfile.TemporaryDirectory() as name, s3(args.refused, args.seed):
        folder = Path(name)
        return compared(folder, env, args)


def compared(folder: Path, env: dict[str, str], args: argparse.Namespace) -> int:
    """Run undisturbed and disturbed; 1 where anything is wrong."""
    work = folder / "work"
    work.mkdir()
    file = prepared(
        folder,
        **CHANGES,
        data={
            **SWEEP["data"],
            "source": "folder",
            "path": str(images(folder / "data", args.images)),
            "patient": "file",
        },
    )
    whole = whole_run(folder, file)
    store, root = pafs.FileSystem.from_uri(f"{PREFIX}/run{QUERY}")
    pafs.copy_files(str(folder / "data"), "cxr/data", destination_filesystem=store)
    pafs.copy_files(str(folder / "model.safetensors"), "cxr/model.safetensors", destination_filesystem=store)
    content = yaml.safe_load(file.read_text())
    content["checkpoints"]["given"]["path"] = f"{PREFIX}/model.safetensors{QUERY}"
    content["data"] |= {"path": f"{PREFIX}/data{QUERY}"}
    (work / "sweep.yaml").write_text(yaml.safe_dump(content))
    out = f"{PREFIX}/run{QUERY}"
    machines = [Machine(n, env) for n in (1, 2, 3)]
    for machine in machines:
        machine.start()
        machine.join()
    wrong = []
    try:
        ready(env)
        wrong += refused(work, env)
        job = submitted(work, env, "sweep.yaml", "--out", out, "--resume", "--set", "resources.workers=3")
        reader = Reader(store, root)
        reading = threading.Thread(target=reader.read, daemon=True)
        reading.start()
        disturb(job, machines, store, root, args)
        printed, _ = job.communicate(timeout=LONGEST)
        reader.done.set()
        reading.join(60)
        if job.returncode:
            return told([*wrong, f"the job ended with {job.returncode}: {printed[-3000:]}"])
        print(f"  the job ended; {reader.files} files read meanwhile; S3: {Proxy.counts}", flush=True)
        wrong += [f"torn: {line}" for line in reader.torn]
        Proxy.share = 0.0
        wrong += differences(whole, out, apart=APART | {"trials": [*APART["trials"], "checkpoint"]})
    finally:
        for machine in machines:
            machine.die()
    return told(wrong)


def ready(env: dict[str, str]) -> None:
    """Wait for the three machines to be there."""
    for _ in range(120):
        listed = subprocess.run(
            [*RAY, "list", "nodes", "--address", f"http://{HEAD}:8265", "--format", "json"],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        with contextlib.suppress(ValueError):
            if sum(node["state"] == "ALIVE" for node in json.loads(listed.stdout)) == 3:
                return
        time.sleep(1)
    raise SystemExit(f"the machines did not come together: {listed.stderr[-2000:]}")


def refused(work: Path, env: dict[str, str]) -> list[str]:
    """A folder of one machine as --out must be refused."""
    job = submitted(work, env, "sweep.yaml", "--out", "/tmp/ray/own/run")
    printed, _ = job.communicate(timeout=LONGEST)
    if "machines of the cluster do not see" in printed:
        print("  local --out: refused", flush=True)
        return []
    return [f"a local --out was not refused: {printed[-2000:]}"]


def disturb(
    job: subprocess.Popen[str], machines: list[Machine], store: pafs.FileSystem, root: str, args: argparse.Namespace
) -> None:
    """Cut off the second machine while shards are scored, bring it back, and switch off the third."""

    def scored() -> int:
        with contextlib.suppress(OSError):
            infos = store.get_file_info(pafs.FileSelector(f"{root}/.work/shards", recursive=True, allow_not_found=True))
            return sum(".test." in i.path and i.path.endswith(".arrow") for i in infos)
        return 0

    until(lambda: scored() >= 1, job, "a shard was scored")
    machines[1].cut()
    print(f"  {machines[1].address} cut off, {scored()} shards scored", flush=True)
    ends = time.monotonic() + args.cut
    while time.monotonic() < ends and job.poll() is None:
        time.sleep(1)
    machines[1].mend()
    print(f"  {machines[1].address} back, {scored()} shards scored", flush=True)
    machines[2].die()
    print(f"  {machines[2].address} dead, {scored()} shards scored", flush=True)


def told(wrong: list[str]) -> int:
    """Print what is wrong; 1 if anything is."""
    print("\n".join(["WRONG", *wrong]) if wrong else "equal tables", flush=True)
    return 1 if wrong else 0


def main() -> int:
    """Begin in a namespace of its own, which takes all of it along when it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48, help="of the test split")
    parser.add_argument("--cut", type=float, default=45, help="seconds that a machine is cut off")
    parser.add_argument("--refused", type=float, default=0.02, help="share of requests that S3 answers with 503")
    parser.add_argument("--seed", type=int, default=0, help="of these")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return inside(args)
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("ip"):
        parser.error(
            "got a user or a machine that may not make network namespaces; expected root on Linux, with iproute2"
        )
    os.execvp("unshare", [*INSIDE, sys.executable, "-m", "benchmarks.hosts", *sys.argv[1:], "--inside"])


if __name__ == "__main__":
    sys.exit(main())
