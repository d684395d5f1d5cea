#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Runs the tests: those of this kernel one after the other, the guests of the kernel matrix beside them.

`make test`, `make host-test` and `make vm-test` call it; tests/README.md says what runs where, and why.

A suite is one of
    lint       formatting, clippy, shellcheck
    bpf        every BPF program compiled for both architectures
    unit       the unit tests, on this kernel
    host       the host tests, on this kernel, beside tests/noise.py
    5.10 ...   what a kernel can change of both, in a guest of that kernel (tests/vm)

What a suite printed is in target/tests/SUITE.log. How long each test took is kept in target/tests/times.json, for the next run's
estimate. Exit status: 0 all passed, 1 something failed, 2 wrong usage.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
HEARTBEAT = 60
# What a guest runs of the unit tests, since only src/kernel talks to the kernel, and what it leaves out of the host tests.
UNIT_IN_GUEST = "kernel::"
HOST_NOT_IN_GUEST = "text::"
# Guests take what the tests of this kernel leave of the processors. What runs beside them and is short comes before them; of them the newer
# kernels get more, since their verifiers take longer: so that all are ready at the same time, and none is left to one processor alone.
BESIDE_NICE = 9
GUEST_NICE = {"7": 10, "5.10": 12}
GUEST_NICE_ELSE = 11
RESULT = re.compile(r"^test (\S+)(?: - .*)? \.\.\. ?(.*)$")
SECTION = re.compile(r"^---- (\S+) stdout ----$")
VERDICTS = re.compile(r"\d+ passed, \d+ failed, \d+ skipped")


class Suite:
    """One line of the report."""

    def __init__(self, name, steps, tests=(), where=None, env=None, nice=0):
        self.name = name
        # Command lines, one after the other. All run, whatever the ones before say.
        self.steps = steps
        # The names of its tests, with how often each runs.
        self.tests = list(tests)
        self.where = where
        self.env = env or {}
        self.nice = nice
        self.begin = self.seconds = None
        self.done = 0
        self.passed = self.failed = self.ignored = 0
        self.skips = {}
        self.failures = {}
        self.tail = []
        self.ok = None
        self.notes = []

    def unavailable(self):
        """Whether its kernel can't be had, which is said among the notes at the end."""
        return any(note.startswith("SKIP kernel") for note in self.notes)

    def state(self):
        return f"{self.name} {self.done}/{len(self.tests)}" if self.tests else self.name


class Reader:
    """Reads what libtest prints, a line at a time."""

    def __init__(self, suite, times):
        self.suite = suite
        self.times = times
        self.current = None
        self.section = None
        self.names = False
        self.clock = time.monotonic()

    def line(self, line):
        suite = self.suite
        suite.tail = (suite.tail + [line])[-40:]
        result = RESULT.match(line)
        if result:
            self.current, self.section, self.names = result.group(1), None, False
            suite.done += 1
            now = time.monotonic()
            self.times[self.current] = round(now - self.clock, 2)
            self.clock = now
            rest = result.group(2)
            if rest.startswith("SKIP"):
                suite.skips[self.current] = rest
            if rest.endswith("FAILED"):
                suite.failures.setdefault(self.current, [])
            return
        if line.startswith("running ") and line.endswith((" tests", " test")):
            self.clock = time.monotonic()
        elif SECTION.match(line):
            self.section, self.names = SECTION.match(line).group(1), False
            return
        elif line in ("failures:", "successes:"):
            self.section, self.names = None, line == "failures:"
        elif line.startswith("test result: "):
            for number, word in re.findall(r"(\d+) (passed|failed|ignored)", line):
                setattr(suite, word, getattr(suite, word) + int(number))
            self.section, self.names = None, False
        elif self.names and line.strip() in suite.tests and re.fullmatch(r"    \S+", line):
            suite.failures.setdefault(line.strip(), [])
        if line.startswith("SKIP ") and (self.section or self.current):
            suite.skips[self.section or self.current] = line
        elif line == "FAILED" and self.current:
            suite.failures.setdefault(self.current, [])
        if self.section:
            self.kept(line)

    def kept(self, line):
        """Output of a test; whether it failed is known by now, since libtest prints it at the end."""
        if self.section in self.suite.failures:
            self.suite.failures[self.section].append(line)


class Report:
    """What people see meanwhile: a line a suite, and how far the whole is."""

    def __init__(self, suites, history):
        self.suites = suites
        self.history = history
        self.lock = threading.Lock()
        self.begin = time.monotonic()
        self.live = sys.stdout.isatty()
        self.last = self.begin

    def left(self):
        """Seconds until the end, as far as the last run tells; None if nothing is known."""
        known = sum(len(times) for times in self.history.values())
        longest = {}
        for suite in self.suites:
            if suite.ok is not None or not suite.tests:
                continue
            times = self.history.get(suite.name, {})
            if known:
                usual = sum(times.values()) / max(len(times), 1)
                whole = sum(times.get(test, usual) for test in suite.tests)
            elif suite.done:
                whole = (time.monotonic() - suite.begin) / suite.done * len(suite.tests)
            else:
                return None
            part = whole * (1 - min(suite.done / len(suite.tests), 1))
            # Suites of this kernel run one after the other.
            lane = suite.where or "here"
            longest[lane] = longest.get(lane, 0) + part
        return max(longest.values(), default=0)

    def progress(self):
        tests = sum(len(suite.tests) for suite in self.suites)
        done = sum(min(suite.done, len(suite.tests)) for suite in self.suites)
        left = self.left()
        text = f"{done} of {tests} tests"
        if left is not None and done < tests:
            minutes = round(left / 60)
            text += f", about {minutes} min left" if minutes else ", less than a minute left"
        return text

    def clear(self):
        if self.live:
            sys.stdout.write("\r\x1b[K")

    def tick(self):
        """Once a second."""
        with self.lock:
            running = [suite.state() for suite in self.suites if suite.begin and suite.ok is None]
            if self.live:
                width = os.get_terminal_size().columns
                text = f"{self.progress()} ({', '.join(running)})"
                sys.stdout.write(f"\r\x1b[K{text[: width - 1]}")
                sys.stdout.flush()
            elif time.monotonic() - self.last >= HEARTBEAT:
                self.last = time.monotonic()
                print(f"    {self.progress()} ({', '.join(running)})", flush=True)

    def finished(self, suite):
        with self.lock:
            self.clear()
            ended = sum(other.ok is not None for other in self.suites)
            verdict = "not run" if suite.unavailable() else "ok" if suite.ok else "FAILED"
            counts = f" {counted(suite)}" if verdict != "not run" and (suite.tests or suite.passed + suite.failed) else ""
            print(
                f"[{ended} of {len(self.suites)}] {suite.name}: {verdict}{counts} ({duration(suite.seconds)}); "
                f"{self.progress()}",
                flush=True,
            )
            self.last = time.monotonic()


def counted(suite):
    return f"{suite.passed - len(suite.skips)} passed, {suite.failed} failed, {len(suite.skips) + suite.ignored} skipped"


def duration(seconds):
    return f"{int(seconds) // 60} min {int(seconds) % 60:02} s" if seconds >= 60 else f"{seconds:.0f} s"


def listed(binary, names, exact):
    """The tests of a binary that these names pick: parts of names, or whole ones."""
    if not binary:
        return []
    output = subprocess.run([binary, "--list", "--format", "terse"], stdout=subprocess.PIPE, check=True, text=True)
    tests = [line[: -len(": test")] for line in output.stdout.splitlines() if line.endswith(": test")]
    if not names:
        return tests
    return [test for test in tests if any(name == test if exact else name in test for name in names)]


class Runner:
    def __init__(self, options):
        self.options = options
        self.logs = os.path.join(os.environ.get("CARGO_TARGET_DIR") or "target", "tests")
        os.makedirs(self.logs, exist_ok=True)
        self.processes = set()
        # A signal's handler may come while its thread has it.
        self.lock = threading.RLock()
        self.stopping = False
        self.times = {}
        self.history = {}
        try:
            with open(os.path.join(self.logs, "times.json"), encoding="utf-8") as file:
                self.history = json.load(file)
        except (OSError, ValueError):
            pass
        self.suites = self.choose()
        self.report = Report(self.suites, self.history)

    # ---------------------------------------------------------------- what there is to do

    def choose(self):
        options = self.options
        suites = []
        here = "here" in options.on
        unit = listed(options.unit, options.tests, options.exact)
        host = listed(options.host, options.tests, options.exact)
        # With names of tests it is about them alone.
        if not options.tests:
            for step in options.step:
                name, _, line = step.partition("=")
                suites.append(Suite(name, [["sh", "-c", line]], where="beside", nice=BESIDE_NICE))
        # By name: after sudo there may be no PATH with cargo's tools, and the binaries need root, not this script.
        sudo = shlex.split(options.sudo)
        flags = ["--test-threads=1", "--show-output"]
        # What says where servers are, how often to try, and with which seed: sudo would drop it.
        settings = {name: value for name, value in os.environ.items() if name.startswith("BPFTK_")}
        env = dict(settings, BPFTK_BIN=os.path.abspath(options.bpftk))
        for_guests = [f"{name}={settings[name]}" for name in ("BPFTK_SEED", "BPFTK_ROUNDS") if name in settings]
        prefix = [*sudo, "env", *(f"{name}={value}" for name, value in env.items())]
        for name, binary, tests in ("unit", options.unit, unit), ("host", options.host, host):
            if here and tests:
                picked = ["--exact", *tests] if options.tests else []
                suites.append(Suite(name, [[*prefix, os.path.abspath(binary), *flags, *picked]], tests))
        guest_unit = [test for test in unit if test.startswith(UNIT_IN_GUEST)]
        guest_host = [test for test in host if not test.startswith(HOST_NOT_IN_GUEST)]
        for kernel in options.on:
            if kernel == "here" or not guest_unit + guest_host:
                continue
            line = [os.path.join(HERE, "vm", "run.sh"), "--kernels", kernel, "--stream", "--timeout", "4500"]
            line += ["--bpftk", options.bpftk]
            line += [word for setting in for_guests for word in ("--env", setting)]
            left_out = ["--skip", HOST_NOT_IN_GUEST]
            for binary, tests, usual in (options.unit, guest_unit, [UNIT_IN_GUEST]), (options.host, guest_host, left_out):
                if tests:
                    picked = ["--exact", *tests] if options.tests else usual
                    line += ["--tests", binary, "--pick", " ".join(picked)]
            suites.append(Suite(kernel, [line], guest_unit + guest_host, where=kernel,
                                nice=GUEST_NICE.get(kernel, GUEST_NICE_ELSE)))
        return suites

    # ---------------------------------------------------------------- doing it

    def run_suite(self, suite):
        if self.stopping:
            return
        suite.begin = time.monotonic()
        times = self.times.setdefault(suite.name, {})
        statuses = []
        with open(os.path.join(self.logs, f"{suite.name}.log"), "w", encoding="utf-8", errors="replace") as log:
            for step in suite.steps:
                reader = Reader(suite, times)
                statuses.append(self.run_step(suite, step, reader, log))
        suite.seconds = time.monotonic() - suite.begin
        suite.ok = not any(statuses) and not suite.failures and self.ran_all(suite)
        self.report.finished(suite)

    @staticmethod
    def ran_all(suite):
        """Whether each test has a result: a binary that ends early, with whatever status, has not passed."""
        ran = suite.passed + suite.failed + suite.ignored
        if ran == len(suite.tests) or suite.unavailable():
            return True
        suite.tail.append(f"{ran} of {len(suite.tests)} tests have a result")
        return False

    def run_step(self, suite, step, reader, log):
        env = dict(os.environ, **suite.env)
        noise = self.noise() if suite.name == "host" else None
        try:
            process = subprocess.Popen(
                step,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
                preexec_fn=(lambda: os.nice(suite.nice)) if suite.nice else None,
                encoding="utf-8",
                errors="replace",
            )
            with self.lock:
                self.processes.add(process)
            if self.stopping:
                self.end(process)
            with process:
                for line in process.stdout:
                    log.write(line)
                    log.flush()
                    line = line.rstrip("\r\n")
                    if line.startswith(("SKIP kernel", "kernel ")):
                        suite.notes.append(line)
                    reader.line(line)
                status = process.wait()
            with self.lock:
                self.processes.discard(process)
            return status
        finally:
            if noise:
                self.silence(noise, suite)

    def noise(self):
        """Other programs, beside the host tests: they end with this one, however it ends."""
        if not self.options.noise:
            return None
        return subprocess.Popen([os.path.join(HERE, "noise.py"), str(self.options.noise)], stdin=subprocess.PIPE)

    def silence(self, noise, suite):
        if noise.poll() is not None:
            suite.failures["noise.py"] = ["it ended before the tests did"]
        noise.stdin.close()
        try:
            noise.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.end(noise)
            suite.failures["noise.py"] = ["it did not end"]

    def end(self, process):
        try:
            process.terminate()
        except ProcessLookupError:
            pass
        except PermissionError:
            # It is root's.
            subprocess.run([*shlex.split(self.options.sudo), "kill", str(process.pid)], check=False)

    def lane(self, suites):
        for suite in suites:
            self.run_suite(suite)

    def lanes(self):
        """What may run beside what: the suites of this kernel see each other's processes, guests see nothing but themselves."""
        here = [suite for suite in self.suites if suite.where is None]
        beside = [suite for suite in self.suites if suite.where == "beside"]
        guests = [suite for suite in self.suites if suite.where not in (None, "beside")]
        # The ones that took longest are begun first.
        guests.sort(key=lambda suite: -sum(self.history.get(suite.name, {}).values()))
        jobs = max(int(os.environ.get("JOBS") or 1), 1)
        queue = list(guests)

        def work():
            while True:
                with self.lock:
                    if not queue:
                        return
                    suite = queue.pop(0)
                self.run_suite(suite)

        threads = [threading.Thread(target=self.lane, args=(lane,)) for lane in (here, beside) if lane]
        threads += [threading.Thread(target=work) for _ in range(min(jobs, len(guests)))]
        return threads

    def stop(self, *_):
        self.stopping = True
        with self.lock:
            for process in self.processes:
                self.end(process)

    def run(self):
        signal.signal(signal.SIGINT, self.stop)
        signal.signal(signal.SIGTERM, self.stop)
        if not self.suites:
            where = " ".join(self.options.on)
            if not where:
                print("run.py: nothing to run: no kernel was given (series, as 6.1; this one's tests: make host-test)", file=sys.stderr)
            else:
                names = " or ".join(self.options.tests)
                print(f"run.py: nothing to run on {where}: no test is called {names}", file=sys.stderr)
            return 2
        names = ", ".join(suite.state() for suite in self.suites).replace(" 0/", " ")
        print(f"suites and their tests: {names}", flush=True)
        threads = self.lanes()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            self.report.tick()
        self.report.clear()
        if self.stopping:
            print("run.py: interrupted", file=sys.stderr)
            return 1
        return self.account()

    # ---------------------------------------------------------------- at the end

    def account(self):
        if not self.options.tests:
            self.history.update({name: times for name, times in self.times.items() if times})
            with open(os.path.join(self.logs, "times.json"), "w", encoding="utf-8") as file:
                json.dump(self.history, file, indent=0)
        print()
        self.slowest()
        for suite in self.suites:
            reasons = {}
            for reason in suite.skips.values():
                reasons[reason] = reasons.get(reason, 0) + 1
            for reason, times in reasons.items():
                print(f"{suite.name}: {reason}" + (f" ({times} times)" if times > 1 else ""))
        for suite in self.suites:
            for note in suite.notes:
                print(note)
        broken = [suite for suite in self.suites if not suite.ok]
        for suite in broken:
            for test, output in suite.failures.items():
                print(f"\n==== {suite.name}: {test}")
                print("\n".join(output))
                print(f"again: {self.again(suite, test)}")
            if not suite.failures:
                print(f"\n==== {suite.name}: the last lines")
                print("\n".join(suite.tail))
                print(f"again: {self.again(suite, None)}")
            print(f"all of it: {os.path.join(self.logs, suite.name)}.log")
        if broken:
            print("\nFAILED: " + ", ".join(suite.name for suite in broken))
        passed = sum(suite.passed - len(suite.skips) for suite in self.suites)
        failed = sum(max(suite.failed, len(suite.failures)) for suite in self.suites)
        failed += sum(not suite.failures and not suite.failed for suite in broken)
        skipped = sum(len(suite.skips) + suite.ignored for suite in self.suites)
        print(f"{duration(time.monotonic() - self.report.begin)}")
        print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
        return 1 if broken else 0

    def slowest(self):
        """Where the time went, for whoever wants it shorter."""
        rows = [(seconds, name, test) for name, times in self.times.items() for test, seconds in times.items()]
        for seconds, name, test in sorted(rows, reverse=True)[: self.options.slowest]:
            print(f"{seconds:7.1f} s  {name}: {test}")

    def again(self, suite, test):
        if suite.where == "beside":
            return f"make {'lint' if suite.name == 'lint' else 'check-' + suite.name}"
        kernel = suite.where or "here"
        return f"make test KERNELS={kernel}" + (f" TESTS={test}" if test else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bpftk", required=True, help="the static bpftk")
    parser.add_argument("--unit", help="the binary of the unit tests")
    parser.add_argument("--host", help="the binary of the host tests")
    parser.add_argument("--on", default="here", help="`here` and series of kernels, separated by spaces or commas")
    parser.add_argument("--step", action="append", default=[], metavar="NAME=LINE", help="a suite that is a shell line")
    parser.add_argument("--sudo", default="", help="how to become root")
    parser.add_argument("--noise", type=float, default=10, help="noise.py's rate beside the host tests (0: none)")
    parser.add_argument("--slowest", type=int, default=0, metavar="N", help="show the N tests that took longest")
    parser.add_argument("--exact", action="store_true", help="the names of tests are whole names")
    parser.add_argument("tests", nargs="*", help="parts of the names of tests; without, all")
    options = parser.parse_args()
    options.on = options.on.replace(",", " ").split()
    sys.exit(Runner(options).run())


main()
