"""What the sections of scripts/bench-peers have in common: the two sides, alternately, and what is kept of them."""
import json
import os
import platform
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from report import PEERS, cell, ratio

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOME = Path(os.environ["IMPROMPT_HOME"])
# Models, tables and repositories: gigabytes, made once.
CACHE = HOME / "bench-models"
IMPROMPT = Path(os.environ.get("IMPROMPT", ROOT / "target/release/imprompt"))
CORES = len(os.sched_getaffinity(0))
STARTED = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - STARTED:4.0f}s] {text}", file=sys.stderr, flush=True)


class Failed(Exception):
    """A peer or our own command did not do what it was asked."""


class OverLimit(Failed):
    """A peer took longer than the section may take."""


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine():
    """The machine, as the raw results keep it."""
    lscpu = dict(line.split(":", 1) for line in output("lscpu").splitlines() if ":" in line)
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    keys = ("Model name", "Vendor ID", "CPU family", "Model", "CPU(s)", "Thread(s) per core", "L1d cache", "L2 cache", "L3 cache")
    flags = lscpu.get("Flags", "").split()
    told = [flag for flag in flags if flag in ("avx2", "avx_vnni") or flag.startswith(("avx512", "amx"))]
    return {"lscpu": {key: lscpu.get(key, "").strip() for key in keys}, "vector_flags": told,
            "memory_kib": int(memory.split()[1]), "kernel": platform.release(), "glibc": platform.libc_ver()[1],
            "load_before": os.getloadavg()[0]}


def memory():
    """Bytes that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident():
    """Bytes in memory of this process and of all that it started; pages that two of them share count twice."""
    parents, pages = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            told = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(folder.name)], pages[int(folder.name)] = int(told[1]), int(told[21])
    total = 0
    for process in pages:
        above = process
        while above in parents and above != os.getpid():
            above = parents[above]
        total += pages[process] if above == os.getpid() else 0
    return total * os.sysconf("SC_PAGE_SIZE")


class MemoryWatch:
    """The most that both sides together had in memory, looked up every two seconds."""

    def __init__(self):
        self.most, self.ended = 0, threading.Event()
        threading.Thread(target=self.look, daemon=True).start()

    def look(self):
        while not self.ended.wait(2):
            self.most = max(self.most, resident())

    def may_go_on(self):
        """Benchmarks of a machine that swaps say nothing: three quarters of the memory are the limit."""
        if self.most > 0.75 * memory():
            raise Failed(f"{self.most / 2**30:.1f} GiB were in memory, of {0.75 * memory() / 2**30:.1f} that may be")


def is_amd():
    return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()


class Worker:
    """A peer's process: bench/peers/worker.py, plain or with MKL's eyes covered."""

    def __init__(self, name, python, preload=None):
        self.name = name
        environment = os.environ | {"PEER_THREADS": str(CORES), "OMP_NUM_THREADS": str(CORES), "TOKENIZERS_PARALLELISM": "false"}
        if preload:
            environment["LD_PRELOAD"] = str(preload)
        log = open(CACHE / f"peer-{name}.log", "w")
        self.process = subprocess.Popen([python, HERE / "worker.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=log, text=True, env=environment)

    def ask(self, seconds, do, **arguments):
        """The answer, in at most so many seconds: a peer that takes longer is ended."""
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], max(seconds, 1))[0]:
            self.close()
            raise OverLimit(f"{self.name}: no answer to `{do}` in {seconds:.0f} s")
        answer = self.process.stdout.readline()
        if not answer:
            raise Failed(f"{self.name}: ended during `{do}`; see {CACHE}/peer-{self.name}.log")
        answer = json.loads(answer)
        if "error" in answer:
            raise Failed(f"{self.name}: `{do}`: {answer['error']}")
        return answer

    def close(self):
        self.process.kill()
        self.process.wait()


class Bench:
    """One run of one section."""

    def __init__(self, arguments, section):
        self.quick, self.whole, self.python, self.section = arguments.quick, arguments.whole, arguments.python, section
        # Quick: every line once, with the smaller models.
        self.rounds = arguments.rounds or (1 if self.quick else 3)
        self.limit = arguments.limit or (300 if self.quick else 1800)
        self.deadline = time.monotonic() + self.limit
        self.workers, self.rows, self.raw, self.checks = {}, [], [], []
        self.watch = MemoryWatch()
        CACHE.mkdir(parents=True, exist_ok=True)

    # The two sides

    def peers(self):
        """The peers' processes by name, started when they are first needed."""
        if not self.workers:
            self.workers["stock"] = Worker("stock", self.python)
            if is_amd():
                self.workers["tuned"] = Worker("tuned", self.python, compiled("mkl_as_intel", "-shared", "-fPIC", "-O1"))
        return self.workers

    def ours(self, part, *flags, repository=None):
        """One `imprompt bench`."""
        command = [IMPROMPT, "bench", *map(str, flags), "--part", part, "--json"]
        if repository:
            command += ["--repo", repository]
        return json.loads(self.run(command).splitlines()[-1])

    def run(self, command):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{' '.join(map(str, command))[:400]}\n{done.stderr.strip()}")
        return done.stdout

    def forget(self):
        """The peers let go of their models."""
        for worker in self.workers.values():
            worker.ask(60, "forget")

    def alternate(self, ours, peers, rounds=None, only=()):
        """Both sides by turns: `ours` by name (functions of nothing), `peers` a function of (ask). What each gave, by
        name, a list with an entry a round. A peer that passes the limit is left out of the later rounds. `only`: the
        peers that take part, else all."""
        taking_part = {name: worker for name, worker in self.peers().items() if name in only or not only}
        found = {name: [] for name in [*ours, *taking_part]}
        over = set()
        for number in range(rounds or self.rounds):
            if number and time.monotonic() > self.deadline:
                say(f"{self.section}: the limit of {self.limit} s ends it after {number} rounds")
                break
            for name, call in ours.items():
                self.watch.may_go_on()
                found[name].append(call())
            for name, worker in taking_part.items():
                if name in over:
                    continue
                try:
                    left = self.deadline - time.monotonic() + 60
                    self.watch.may_go_on()
                    found[name].append(peers(lambda do, **more: worker.ask(left, do, **more)))
                except OverLimit as error:
                    say(f"{error}: left out from here on")
                    over.add(name)
        self.raw.append(found)
        for name in over:
            self.workers.pop(name, None)
        return {name: values for name, values in found.items() if values}

    # What is kept

    def row(self, name, unit, values, better="lower", note="", goal="", work=None):
        """A line of the table: `values` by side, a list each. `work`: the `gflop` of products, or the `gbytes` of
        weights, that one text or one run needs at least."""
        row = {"section": self.section, "name": name, "unit": unit, "better": better, "note": note, "goal": goal, "values": values}
        if work:
            row["work"] = work
        self.rows.append(row)
        print(line(row), flush=True)

    def check(self, what, found):
        """Something that must hold besides speed, with what was found."""
        self.checks.append({"what": what, "found": found})
        print(f"  {what}: {found}", flush=True)

    def result(self, command, versions, peaks):
        return {"section": self.section, "quick": self.quick, "command": command, "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
                "machine": machine() | {"memory_used_kib": self.watch.most >> 10},
                "versions": versions, "peaks": peaks, "rounds": self.rounds, "rows": self.rows,
                "checks": self.checks, "raw": self.raw}

    def close(self):
        self.watch.ended.set()
        for worker in self.workers.values():
            worker.close()
        self.workers = {}


def line(row):
    """A row as the terminal shows it."""
    parts = [f"  {row['name']:<58} {row['unit']:>9}"]
    for side, values in row["values"].items():
        parts.append(f"{side} {cell(values, row['unit'])}")
    for ours in [side for side in row["values"] if side not in PEERS]:
        for peer in PEERS:
            times = ratio(row, ours, peer)
            if times:
                parts.append(f"{ours}: {times:.1f}x {peer}")
    if row["note"]:
        parts.append(f"({row['note']})")
    return "  ".join(parts)


def compiled(name, *flags):
    """The small C program NAME.c of this folder, compiled into the cache."""
    source, made = HERE / f"{name}.c", CACHE / (f"{name}.so" if "-shared" in flags else name)
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["gcc", *flags, "-o", made, source], check=True)
    return made


def peaks(worker):
    """What the machine can do at most: products in GFLOP/s (int8: Gop/s), reading memory in GB/s."""
    program = compiled("memory_read", "-O3", "-march=native", "-fopenmp")
    found = worker.ask(300, "gemm")
    return found | {"memory_gbytes": float(output(str(program)))}


def models(python, *names):
    """Makes the model folders that are missing: their paths."""
    subprocess.run([python, HERE / "models.py", CACHE, *names], check=True)
    return [CACHE / name for name in names]


def precisions(*wanted):
    """Those of `wanted` that this build of imprompt has; float32 always, and first."""
    help = output(str(IMPROMPT), "build", "--help")
    told = help.split("--precision", 1)[1] if "--precision" in help else ""
    return ["f32", *(precision for precision in wanted if precision in told)]


# The demo models, as `repository` takes them.
DEMO = {"clip": ROOT / "models/demo-clip", "captioner": ROOT / "models/demo-blip2", "vocabulary": ROOT / "models/demo-vocabulary"}


def repository(bench, name, precision="f32", clip=None, captioner=None, vocabulary=None, parts=()):
    """A built repository, `precision` of all parts or of some. Label embeddings that are still right are kept from the
    last time."""
    out = CACHE / "repositories" / f"{name}-{precision}"
    command = [IMPROMPT, "build", "--out", out]
    for flag, value in (("--clip", clip), ("--captioner", captioner), ("--vocabulary", vocabulary)):
        if value:
            command += [flag, value]
    if precision != "f32":
        for part in parts:
            command += ["--precision", f"{part}={precision}"]
        if not parts:
            command += ["--precision", precision]
    say(f"building {out.name}")
    started = time.monotonic()
    bench.run(command)
    bench.raw.append({"built": out.name, "seconds": time.monotonic() - started})
    return out
