"""``detrkit serve`` under load: against the runtime alone, and servers that one would write in an afternoon.

``python -m benchmarks.serving my-bundle --images FOLDER`` takes under three minutes and prints Markdown.
``--peers-python PATH`` names a Python with litserve for the comparison; ``--overload 300`` and ``--soak 100000``
are the long proofs. Everything is measured in turn, on the same pictures, by clients in this process, whose time
counts against the servers.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from detrkit.machine import this_machine, usable_cpus
from detrkit.runtimes.bundle import read_bundle
from detrkit.runtimes.predictor import load
from detrkit.runtimes.verify import load_verified

PEERS = Path(__file__).with_name("serving_peers.py")
RECOVERY_S = 5.0
_WARM_UP = 0.2  # share of a run after which memory has to stay as it is


@dataclasses.dataclass
class Answers:
    """What clients saw.

    Args:
        statuses: Answers by status; 0 for none.
        latencies: Seconds of each that was answered well.
        wrong: Answers that were well but not what the runtime finds.
        seconds: Time of all.
        cpu_s: Processor time of the server's processes.
        at: Moments at which they came, and their statuses.
    """

    statuses: Counter[int] = dataclasses.field(default_factory=Counter)
    latencies: list[float] = dataclasses.field(default_factory=list)
    wrong: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    at: list[tuple[float, int]] = dataclasses.field(default_factory=list)

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.statuses[200] / self.seconds if self.seconds else 0.0

    def quantile(self, share: float) -> float:
        """Milliseconds within which that share of the good answers came."""
        return 1000 * float(np.quantile(self.latencies, share)) if self.latencies else float("nan")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request as bytes, and what has to stand in its answer."""

    request: bytes
    expected: bytes = b""


class _EndedError(OSError):
    """A connection ended."""


class _EndedIdleError(Exception):
    """A connection ended before the first byte of an answer."""


class Connection:
    """A connection that is kept, of as little work as can be: the clients share the processors with the server."""

    def __init__(self, port: int):
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self, content: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body; status 0 where the connection ended."""
        is_kept = self._socket is not None
        try:
            return self._ask(content)
        except _EndedIdleError:
            self.close()
            # a server may end a connection that nothing came over for a while; every client then opens another
            return self.ask(content) if is_kept else (0, b"")
        except (OSError, ValueError):
            self.close()
            return 0, b""

    def _ask(self, content: bytes) -> tuple[int, bytes]:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=120)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._socket.sendall(content)
            answer = bytearray(self._read())
        except (ConnectionError, _EndedError) as error:
            raise _EndedIdleError from error
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._read()
        head = bytes(answer[:end]).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        while len(answer) < end + 4 + length:
            answer += self._read()
        if b"connection: close" in head:
            self.close()
        return int(head.split(b" ", 2)[1]), bytes(answer[end + 4 :])

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _read(self) -> bytes:
        assert self._socket is not None
        piece = self._socket.recv(1 << 16)
        if not piece:
            raise _EndedError
        return piece


def ask_all(port: int, asked: Sequence[Asked], clients: int, turns: Iterator[float | None]) -> Answers:
    """Ask in turn with so many clients at once.

    Args:
        port: Where the server listens.
        asked: Requests, one after the other and again.
        clients: Connections.
        turns: For each request, the moment before which it is not sent; None for at once. Its end is the end.
    """
    answers, lock = Answers(), threading.Lock()
    numbers = enumerate(turns)

    def client() -> None:
        connection = Connection(port)
        while True:
            with lock:
                number, moment = next(numbers, (-1, None))
            if number < 0:
                break
            if moment is not None and (wait := moment - time.perf_counter()) > 0:
                time.sleep(wait)
            one = asked[number % len(asked)]
            start = time.perf_counter()
            status, body = connection.ask(one.request)
            end = time.perf_counter()
            with lock:
                answers.statuses[status] += 1
                answers.at.append((end, status))
                if status == 200:
                    answers.latencies.append(end - start)
                    answers.wrong += one.expected not in body
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.seconds = time.perf_counter() - start
    return answers


def for_seconds(seconds: float) -> Iterator[float | None]:
    """Turns at once, for some time."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield None


def at_rate(rate: float, seconds: float) -> Iterator[float | None]:
    """Turns at a steady rate, whether or not what was asked before is answered."""
    start = time.perf_counter()
    for number in range(int(rate * seconds)):
        yield start + number / rate


def own_throughput(
    bundle: str, files: Sequence[str], threads: int | None, seconds: float
) -> dict[str, tuple[float, float]]:
    """Images a second of the runtime alone in every way that the server may choose, and processor time of each.

    Decoding is counted.
    """
    found = {}
    count = threads or usable_cpus()
    ways = [(1, 1), (4, 1), (8, 1)] + ([(1, count), (4, count), (8, count)] if count > 1 else [])
    for batch, streams in ways:
        predictor = load(bundle, threads=count, streams=streams)
        predictor.predict(list(files[: max(2, batch)]), batch_size=batch)
        images, start, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds / len(ways):
            predictor.predict(list(files) * max(1, 16 // len(files)), batch_size=batch)
            images += len(files) * max(1, 16 // len(files))
        rate = images / (time.perf_counter() - start)
        found[f"batches of {batch}, {streams} at once"] = rate, (time.process_time() - cpu) / images
    return found


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process, whose threads end with it."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


@contextlib.contextmanager
def started(command: Sequence[str], port: int, ready: bytes, **environment: str) -> Iterator[psutil.Process]:
    """A server, once it answers, with the processes that it makes; all are ended."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
        try:
            end = time.monotonic() + 120
            while (answer := Connection(port).ask(ready))[0] != 200:
                if process.poll() is not None or time.monotonic() > end or answer[0] in (404, 422, 500):
                    log.seek(0)
                    said = log.read()[-3000:].decode(errors="replace")
                    raise SystemExit(f"{command} does not answer: {answer}\n{said}")
                time.sleep(0.2)
            yield psutil.Process(process.pid)
        finally:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.terminate()
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def post(path: str, body: bytes, content_type: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {content_type}")
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def form_of(contents: Sequence[bytes]) -> bytes:
    """A request of several pictures."""
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="a"; filename="image"\r\n\r\n' + content + b"\r\n"
        for content in contents
    ]
    return post("/v1/detect", b"".join(parts) + b"--b--\r\n", "multipart/form-data; boundary=b")


def expected_of(bundle: Path, files: Sequence[Path]) -> list[bytes]:
    """What has to stand in the answer of each picture, to the last digit."""
    predictor = load(bundle)
    names = predictor.class_map.names
    expected = []
    for file in files:
        found: Any = predictor.predict(file)
        rows = [
            {"box_xyxy": box, "score": score, "class_id": number, "class_name": names[number]}
            for box, score, number in zip(
                found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist(), strict=True
            )
        ]
        expected.append(b'"detections":' + _encoded(rows))
    return expected


def _encoded(value: object) -> bytes:
    import msgspec

    return msgspec.json.encode(value)


class Memory:
    """Memory of processes, once a second, in a thread."""

    def __init__(self, process: psutil.Process):
        self.samples: list[float] = []
        self._process = process
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def growth(self) -> float:
        """Stop, and return how much more it was at the end than after the warm-up, as a share."""
        self._stopped.set()
        self._thread.join()
        after = self.samples[int(len(self.samples) * _WARM_UP) :]
        part = max(1, len(after) // 5)
        return statistics.median(after[-part:]) / statistics.median(after[:part]) - 1 if after else 0.0

    def _watch(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(psutil.Error):
                processes = [self._process, *self._process.children(recursive=True)]
                self.samples.append(sum(one.memory_info().rss for one in processes))
            self._stopped.wait(0.5)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A server to measure: its command, and how it is asked."""

    name: str
    command: list[str]
    port: int
    asked: list[Asked]
    images: int = 1
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def candidates(bundle: Path, files: Sequence[Path], options: argparse.Namespace, graph: Path) -> list[Candidate]:
    """Our server, asked for one picture and for eight, and the peers."""
    contents = [file.read_bytes() for file in files]
    expected = expected_of(bundle, files)
    ours = []
    for images in (1, 8):
        port = free_port()
        command = [sys.executable, "-m", "detrkit", "serve", str(bundle), "--port", str(port)]
        command += ["--deadline", str(options.deadline)]
        command += ["--threads", str(options.threads)] if options.threads else []
        asked = [
            Asked(post("/v1/detect", content, "application/octet-stream"), one)
            for content, one in zip(contents, expected, strict=True)
        ]
        if images > 1:
            rows = range(len(contents))
            asked = [Asked(form_of([contents[(row + i) % len(contents)] for i in range(images)])) for row in rows]
        name = "detrkit serve" + (f", {images} pictures a request" if images > 1 else "")
        ours.append(Candidate(name, command, port, asked, images))
    record = read_bundle(bundle)
    rule = record.manifest.preprocessing
    told = {"graph": str(graph), "eval_size": rule.eval_size, "max_size": rule.max_size}
    peer = {"PEER": json.dumps({**told, "classes": record.class_map.names})}
    plain = [Asked(post("/predict", content, "application/octet-stream")) for content in contents]
    port = free_port()
    found = [
        Candidate(
            "plain FastAPI and ONNX Runtime",
            [options.peers_python or sys.executable, str(PEERS), "fastapi", str(port)],
            port,
            plain,
            environment=peer,
        )
    ]
    if options.peers_python:
        texts = [json.dumps({"image": base64.b64encode(content).decode()}).encode() for content in contents]
        asked = [Asked(post("/predict", text, "application/json")) for text in texts]
        for title, batch, workers in (("batches of 8", 8, 1), ("2 workers", 1, 2)):
            port = free_port()
            command = [options.peers_python, str(PEERS), "litserve", str(port), str(batch), str(workers)]
            found.append(Candidate(f"LitServe, {title}", command, port, asked, environment=peer))
    return [*ours, *found]


def saturate(candidate: Candidate, clients: int, seconds: float) -> Answers:
    """Ask a server as much as it can answer, after a warm-up."""
    at_once = clients if candidate.images == 1 else max(2, clients // candidate.images)
    with started(
        candidate.command, candidate.port, candidate.asked[0].request, **candidate.environment
    ) as process:
        ask_all(candidate.port, candidate.asked, at_once, for_seconds(min(2.0, seconds / 3)))
        before = cpu_seconds(process)
        answers = ask_all(candidate.port, candidate.asked, at_once, for_seconds(seconds))
        answers.cpu_s = cpu_seconds(process) - before
        return answers


def cpu_seconds(process: psutil.Process) -> float:
    """Return the processor time of a process and its children, which says more where others use the machine."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def overload(candidate: Candidate, rate: float, seconds: float, deadline_s: float) -> list[str]:
    """Ask for twice what can be answered, then see how soon everything is answered again."""
    with started(candidate.command, candidate.port, candidate.asked[0].request) as process:
        ask_all(candidate.port, candidate.asked, 16, for_seconds(2.0))
        memory = Memory(process)
        answers = ask_all(candidate.port, candidate.asked, 160, at_rate(2 * rate, seconds))
        growth = memory.growth()
        end = time.perf_counter()
        after = ask_all(candidate.port, candidate.asked, 8, at_rate(rate / 2, RECOVERY_S + 3))
        bad = [moment - end for moment, status in after.at if status != 200]
    others = {status: count for status, count in answers.statuses.items() if status not in (200, 429, 504)}
    return [
        f"| offered, answered a second | {2 * rate:.1f}, {answers.rate:.1f} |",
        f"| statuses | {dict(sorted(answers.statuses.items()))} |",
        f"| other errors than 429 and 504 | {others or 'none'} |",
        f"| wrong answers | {answers.wrong} |",
        f"| p50, p99 of what was answered | {answers.quantile(0.5):.0f} ms, {answers.quantile(0.99):.0f} ms "
        f"(deadline {1000 * deadline_s:.0f} ms) |",
        f"| memory after warm-up | {100 * growth:+.1f} % |",
        f"| everything is answered again after | {max(bad, default=0.0):.1f} s |",
    ]


def soak(candidate: Candidate, requests: int, clients: int) -> list[str]:
    """Ask so many times, and compare every answer."""
    with started(candidate.command, candidate.port, candidate.asked[0].request) as process:
        memory = Memory(process)
        turns: Iterator[float | None] = iter([None] * requests)
        answers = ask_all(candidate.port, candidate.asked, clients, turns)
        growth = memory.growth()
    return [
        f"| requests, answered well | {requests:,}, {answers.statuses[200]:,} |",
        f"| lost | {requests - sum(answers.statuses.values()) + answers.statuses[0]} |",
        f"| wrong | {answers.wrong} |",
        f"| memory after warm-up | {100 * growth:+.1f} % |",
        f"| answered a second | {answers.rate:.1f} |",
    ]


def write_pictures(bundle: Path, images: Path | None, count: int, folder: Path) -> list[Path]:
    """Return files to ask for: those of a folder, or else the bundle's golden pictures as JPEG."""
    if images is not None:
        files = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not files:
            raise SystemExit(f"{images} holds no JPEG or PNG")
        return files[:count]
    from PIL import Image

    record, files = read_bundle(bundle), []
    for number, golden in enumerate(record.manifest.golden[:count]):
        files.append(folder / f"{number}.jpg")
        Image.fromarray(record.picture(golden.file)).save(files[-1], quality=90)
    return files


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, help="folder of pictures; the golden ones if not given")
    parser.add_argument("--count", type=int, default=16, help="pictures of it")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each, in turn")
    parser.add_argument("--clients", type=int, default=16, help="at once, for saturation")
    parser.add_argument("--threads", type=int, help="of the runtime")
    parser.add_argument("--overload", type=float, default=15.0, help="seconds at twice what can be answered")
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds that a request may wait")
    parser.add_argument("--soak", type=int, default=0, help="requests, each answer compared")
    parser.add_argument("--peers-python", help="Python with litserve, fastapi, onnxruntime and pillow")
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        benchmark(options, Path(folder))


def benchmark(options: argparse.Namespace, folder: Path) -> None:
    bundle: Path = options.bundle
    files = write_pictures(bundle, options.images, options.count, folder)
    graph = folder / "graph.onnx"
    graph.write_bytes(load_verified(bundle).bundle.read_graph())
    servers = candidates(bundle, files, options, graph)
    if options.no_peers:
        servers = [one for one in servers if one.name.startswith("detrkit")]
    name = read_bundle(bundle).manifest.name
    print(f"### {name}, {len(files)} pictures, {options.clients} clients\n\n{this_machine()}\n", flush=True)
    # the runtime alone and every server, in turn, so that drift of the machine hits all alike
    own: dict[str, list[tuple[float, float]]] = {}
    results: dict[str, list[Answers]] = {}
    for _ in range(options.rounds):
        paths = [str(file) for file in files]
        measured = in_process(own_throughput, str(bundle), paths, options.threads, 2 * options.seconds)
        for way, run in measured.items():
            own.setdefault(way, []).append(run)
        for server in servers:
            results.setdefault(server.name, []).append(saturate(server, options.clients, options.seconds))
    medians = {way: statistics.median(rate for rate, _ in runs) for way, runs in own.items()}
    best = max(medians, key=medians.__getitem__)
    print("| at saturation | images a second | of the runtime's own | CPU an image | p50 | p99 | errors | wrong |")
    print("|---|---|---|---|---|---|---|---|")
    for way, rate in medians.items():
        mark = " (the best)" if way == best else ""
        cpu = 1000 * statistics.median(seconds for _, seconds in own[way])
        print(f"| runtime alone, {way}{mark} | {rate:.1f} | {rate / medians[best]:.2f} | {cpu:.1f} ms | | | | |")
    for server in servers:
        runs = results[server.name]
        rate = statistics.median(run.rate * server.images for run in runs)
        p50, p99 = (statistics.median(run.quantile(share) for run in runs) for share in (0.5, 0.99))
        errors = sum(sum(run.statuses.values()) - run.statuses[200] for run in runs)
        wrong = sum(run.wrong for run in runs)
        share = rate / medians[best]
        cpu = statistics.median(
            1000 * run.cpu_s / max(1, sum(run.statuses.values())) / server.images for run in runs
        )
        figures = f"{rate:.1f} | {share:.2f} | {cpu:.1f} ms | {p50:.0f} ms | {p99:.0f} ms | {errors} | {wrong}"
        print(f"| {server.name} | {figures} |")
    if options.overload:
        rate = statistics.median(run.rate for run in results[servers[0].name])
        lines = overload(servers[0], rate, options.overload, options.deadline)
        print(f"\n| twice that for {options.overload:g} s | |\n|---|---|", *lines, sep="\n", flush=True)
    if options.soak:
        lines = soak(servers[0], options.soak, options.clients)
        print("\n| soak | |\n|---|---|", *lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
