"""Load test of the app: many clients at once, cancelled runs, closed pages, status requests, hostile requests.

python -m benchmarks.load [--random] [--small] [--browser] [--seed 0]

The app runs in a separate process on 127.0.0.1, with a temporary folder for its files and styles. The seed
determines all requests; results also depend on the machine's speed. Exits 1 if any request is lost: no answer
in time, a server error, or an error message that is not fit for users.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from benchmarks.machine import machine

ROOT = Path(__file__).parents[1]
FULL = {"clients": 50, "cancelled": 100, "pages": 30, "watchers": 60, "paintings": 25, "hostile": 200}
START = 180.0  # timeout for the start of the app
PATIENCE = 150.0  # timeout for an answer; a later one counts as lost
SILENCE = 60.0  # timeout for loading the page
PAUSE = 0.1  # seconds between two requests of the page
REHEARSAL = 0.2  # share of all requests, sent as warm-up
QUIET = 4.0  # idle seconds before memory is measured
WATCHED, WATCHED_SMALL = 20.0, 4.0  # seconds of training while its status is requested
AT_ONCE = 8  # concurrent hostile requests, and runs to cancel
QUICK: dict[str, Any] = {"size": 64, "steps": 3}
LONG: dict[str, Any] = {"size": 64, "steps": 40}
LEARN: dict[str, Any] = {"size": 64, "steps": 1, "batch": 1, "views": 1, "patience": 0}
MARKUP = "<img src=x onerror=alert(1)>"
LIMIT_WORDS = re.compile(r"\b(limit|full|too many|already|at most|wait or are being|no more)\b")
UNFIT = re.compile(r"Traceback|NoneType|<class|object at 0x|\b[A-Z]\w*(Error|Exception)\b|'\w+' object")
NOT_IN_SENTENCES = ("/tmp", "/home", "/root", "/usr", "/opt", str(ROOT))
PLAIN_500 = "500: Internal Server Error"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Runs app.py; on a signal it returns unused memory to the system.
SERVE = """
import ctypes, gc, runpy, signal
def tidy(*_):
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except OSError:
        pass
signal.signal(signal.SIGUSR1, tidy)
runpy.run_path("app.py", run_name="__main__")
"""
WRITE_MODEL = """
import pathlib, sys
sys.path.insert(0, "tests")
from models import write_random_model
write_random_model(pathlib.Path(sys.argv[1]))
"""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run or request; `kind` is "finished", "cancelled", "refused" or "lost"."""

    kind: str
    words: str = ""
    data: Any = None


@dataclass
class Phase:
    """A row of the table."""

    title: str
    outcomes: list[Outcome] = field(default_factory=list)
    silence: float = 0.0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def row(self) -> str:
        counts = Counter(outcome.kind for outcome in self.outcomes)
        numbers = [len(self.outcomes), *(counts[kind] for kind in ("finished", "cancelled", "refused", "lost"))]
        return f"| {self.title} | {' | '.join(map(str, numbers))} | {self.silence:.1f} s | {self.seconds:.0f} s |"

    @property
    def lost(self) -> list[str]:
        return [outcome.words for outcome in self.outcomes if outcome.kind == "lost"]


class App:
    """The app in a separate process; `folder` holds its uploads, temporary files, styles and log."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder = folder
        self.temporary, self.uploads, self.styles = folder / "tmp", folder / "uploads", folder / "styles"
        for place in (self.temporary, self.uploads, self.styles):
            place.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        environment = {
            **os.environ,
            "STYLEENGINE_MODEL": model,
            "STYLEENGINE_STYLES": str(self.styles),
            "GRADIO_TEMP_DIR": str(self.uploads),
            "TMPDIR": str(self.temporary),
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_OFFLINE": "1",
        }
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE], cwd=ROOT, env=environment, stdout=self._log, stderr=subprocess.STDOUT
        )
        self.watched = psutil.Process(self._process.pid)

    def wait(self) -> None:
        until = time.monotonic() + START
        while time.monotonic() < until and self.alive:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.address}/config", timeout=SILENCE).status_code == 200:
                    return
            time.sleep(0.3)
        raise SystemExit(f"The app did not start:\n{self.log()[-2000:]}")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def memory(self) -> int:
        """Resident bytes after unused memory is returned."""
        time.sleep(QUIET)
        self._process.send_signal(signal.SIGUSR1)
        time.sleep(1)
        return self.watched.memory_info().rss if self.alive else 0

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class Poller:
    """Requests the page continuously, in a separate process that the clients' work does not delay."""

    def __init__(self, address: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._worst, self._looks, self._asked = context.Value("d", 0), context.Value("i", 0), context.Value("d", 0)
        self._process = context.Process(
            target=_poll, args=(address, self._worst, self._looks, self._asked), daemon=True
        )

    def start(self) -> None:
        self._process.start()
        while not self.looks:
            time.sleep(PAUSE)

    @property
    def looks(self) -> int:
        return self._looks.value

    def taken(self) -> float:
        """The longest response time so far, including a pending request; resets the maximum."""
        with self._worst.get_lock():
            worst, self._worst.value = self._worst.value, 0.0
        return max(worst, time.monotonic() - self._asked.value) if self.looks else worst

    def end(self) -> None:
        self._process.terminate()
        self._process.join()


def _poll(address: str, worst: Any, looks: Any, asked: Any) -> None:
    """Records the longest response time of the page, the number of requests, and the time of the last."""
    with httpx.Client(timeout=SILENCE) as client:
        while True:
            for path in ("/", "/config", "/gradio_api/startup-events"):  # the page is cached; the last is not
                asked.value = time.monotonic()
                with suppress(httpx.HTTPError):
                    client.get(address + path)
                with worst.get_lock():
                    worst.value = max(worst.value, time.monotonic() - asked.value)
                looks.value += 1
            time.sleep(PAUSE)


class Site:
    """The page's config: its functions, their inputs, and the initial values of these."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.config = httpx.get(f"{address}/config", timeout=SILENCE).json()
        self.components = {component["id"]: component for component in self.config["components"]}
        self.functions: dict[str, dict[str, Any]] = {}
        for function in self.config["dependencies"]:
            self.functions.setdefault(str(function["api_name"]), function)
        info = httpx.get(f"{address}/gradio_api/info", timeout=SILENCE).json()
        self.parameters = {name: known["parameters"] for name, known in info["named_endpoints"].items()}

    def number(self, name: str) -> int:
        return self.functions[name]["id"]

    def find(self, *beginnings: str) -> dict[str, Any] | None:
        """The first function whose name has such a prefix; private functions have their Python names."""
        found = (known for start in beginnings for name, known in self.functions.items() if name.startswith(start))
        return next(found, None)

    def of_number(self, number: int) -> dict[str, Any]:
        return next(function for function in self.config["dependencies"] if function["id"] == number)

    def arguments(self, name: str, given: dict[str, Any]) -> list[Any]:
        """The inputs of an endpoint in order, with initial values for those not given."""
        return [given.get(known["parameter_name"], known.get("parameter_default")) for known in self.parameters[name]]

    def on_page(self, function: dict[str, Any], given: Sequence[Any], settings: dict[str, Any]) -> list[Any]:
        """The inputs of a page function: images in order, settings by label."""
        pictures, values = list(given), []
        for number in function["inputs"]:
            component = self.components[number]
            label = str(component["props"].get("label", "")).lower()
            if component["type"] == "image" and pictures:
                values.append(pictures.pop(0))
            else:
                values.append(settings.get(label, component["props"].get("value")))
        return values


class Visitor:
    """A browser session: it joins the queue and receives messages as a page does."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.session = site, name
        self.client = httpx.Client(base_url=f"{site.address}/gradio_api", timeout=PATIENCE)

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        (path,) = self.client.post("/upload", files={"files": (name, content)}).raise_for_status().json()
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def call(self, number: Any, data: Any) -> httpx.Response:
        """A function that does not queue."""
        return self.client.post("/run/predict", json={"fn_index": number, "data": data, "session_hash": self.session})

    def join(self, number: Any, data: Any) -> httpx.Response:
        return self.client.post("/queue/join", json={"fn_index": number, "data": data, "session_hash": self.session})

    def messages(self) -> Iterator[dict[str, Any]]:
        with self.client.stream("GET", "/queue/data", params={"session_hash": self.session}) as response:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))

    def ask(self, number: Any, data: Any) -> Outcome:
        """Joins the queue and waits for the end."""
        try:
            joined = self.join(number, data)
            if joined.status_code != 200:
                return judged_response(joined)
            for message in self.messages():
                if message["msg"] in ("process_completed", "unexpected_error", "server_stopped"):
                    return judged_message(message)
        except httpx.HTTPError as error:
            return Outcome("lost", f"no answer ({type(error).__name__})")
        return Outcome("lost", "no answer (the stream ended)")

    def close(self) -> None:
        self.client.close()


def judged_message(message: dict[str, Any]) -> Outcome:
    output = message.get("output") or {}
    if message["msg"] != "process_completed":
        return Outcome("lost", f"{message['msg']}: {message.get('message')}")
    if message.get("success"):
        return Outcome("finished", data=output.get("data")) if output else Outcome("cancelled")
    return judged_words(output.get("error"))


def judged_words(words: Any) -> Outcome:
    """The outcome of a failed run: cancelled, refused with a proper message, or lost."""
    if words == "Cancelled.":
        return Outcome("cancelled")
    if not isinstance(words, str) or not words.strip():
        return Outcome("lost", f"failed without a message ({words!r})")
    own = re.sub(r"“[^”]*”|'[^']*'", "…", words)  # quoted text comes from the client
    fit = len(words) <= 600 and own.rstrip().endswith(".") and not UNFIT.search(own)
    if not fit or any(f"{place}/" in own for place in NOT_IN_SENTENCES):
        return Outcome("lost", f"a message not fit for users: {words[:200]}")
    return Outcome("refused", words)


def judged_response(response: httpx.Response) -> Outcome:
    if response.status_code < 400:
        return Outcome("finished", data=response.text)
    text = response.text
    if response.status_code < 500:
        return Outcome("lost" if "Traceback" in text else "refused", f"{response.status_code}: {text[:200]}")
    with suppress(ValueError, AttributeError):
        return judged_words(response.json().get("error"))  # Gradio's error format outside the queue
    return Outcome("lost", f"{response.status_code}: {text[:200]}")


@dataclass
class Load:
    """All phases of the load test; `share` scales the numbers of requests."""

    app: App
    site: Site
    poller: Poller
    files: dict[str, bytes]
    seed: int
    share: float

    def count(self, name: str) -> int:
        return max(3, round(FULL[name] * self.share))

    @property
    def watched(self) -> str:
        return f"watched-{self.seed}"

    def chance(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")

    @contextmanager
    def phase(self, title: str) -> Iterator[Phase]:
        phase, began = Phase(title), time.monotonic()
        self.poller.taken()
        yield phase
        phase.seconds, phase.silence = time.monotonic() - began, self.poller.taken()
        print(f"{phase.title}: {phase.seconds:.0f} s", *phase.notes, sep="; ", file=sys.stderr, flush=True)

    def visitor(self, name: str) -> Visitor:
        return Visitor(self.site, f"{name}-{self.seed}")

    def run(self, visitor: Visitor, **settings: Any) -> tuple[int, list[Any]]:
        """Function number and inputs of a run of `/zstar` on uploaded images."""
        pictures = {name: visitor.upload(f"{name}.png", self.files[name]) for name in ("content", "style")}
        return self.site.number("zstar"), self.site.arguments("/zstar", {**pictures, **QUICK, **settings})

    def rehearse(self, names: Sequence[str]) -> None:
        """A warm-up with a share of all phases, so that one-time allocations do not count as growth."""
        visitor = self.visitor("first")
        outcome = visitor.ask(*self.run(visitor))
        if outcome.kind != "finished":
            raise SystemExit(f"A first run did not finish: {outcome}\n{self.app.log()[-3000:]}")
        visitor.close()
        for name in names:
            getattr(self, name)()

    def clients(self) -> Phase:
        """Concurrent clients of gradio_client."""
        count, folder = self.count("clients"), self.app.folder
        pictures = {name: folder / f"{name}.png" for name in ("content", "style")}
        for name, path in pictures.items():
            path.write_bytes(self.files[name])

        def one(number: int) -> Outcome:
            client: Client | None = None
            try:
                client = Client(self.site.address, verbose=False, download_files=str(folder / "downloads"))
                uploads = {name: handle_file(path) for name, path in pictures.items()}
                job = client.submit(**uploads, **QUICK, seed=number, api_name="/zstar")
                file, _ = job.result(timeout=PATIENCE)
                with Image.open(file) as image:
                    return Outcome("finished") if image.format == "PNG" else Outcome("lost", "no PNG came")
            except AppError as error:
                return judged_words(str(error))
            except Exception as error:  # noqa: BLE001 - any error is a result
                return Outcome("lost", f"{type(error).__name__}: {str(error)[:200]}")
            finally:
                if client is not None:
                    client.close()

        with self.phase(f"{count} clients at once") as phase, ThreadPoolExecutor(count) as threads:
            phase.outcomes = list(threads.map(one, range(count)))
        return phase

    def cancelled(self) -> Phase:
        """Long runs, each cancelled at a random time in one of four ways; then another run must start soon."""
        count, chance = self.count("cancelled"), self.chance("cancelled")
        ways = [self._cancel_job, self._cancel_by_name, self._cancel_event, self._drop]
        plan = [(number, ways[number % len(ways)], chance.uniform(0, 2.5)) for number in range(count)]
        chance.shuffle(plan)

        def one(step: tuple[int, Callable[[int, float], Outcome], float]) -> Outcome:
            number, way, seconds = step
            try:
                return way(number, seconds)
            except Exception as error:  # noqa: BLE001 - as above
                return Outcome("lost", f"{way.__name__.strip('_')}: {type(error).__name__}: {str(error)[:200]}")

        with self.phase(f"{count} runs cancelled") as phase:
            with ThreadPoolExecutor(AT_ONCE) as threads:
                phase.outcomes = list(threads.map(one, plan))
            began, visitor = time.monotonic(), self.visitor("after-cancelling")
            phase.outcomes.append(visitor.ask(*self.run(visitor)))
            visitor.close()
            phase.notes.append(f"the next run was ready {time.monotonic() - began:.1f} s after the last was cancelled")
        return phase

    def _cancel_job(self, number: int, seconds: float) -> Outcome:
        client = Client(self.site.address, verbose=False, download_files=str(self.app.folder / "downloads"))
        uploads = {name: handle_file(self.app.folder / f"{name}.png") for name in ("content", "style")}
        job = client.submit(**uploads, **LONG, api_name="/zstar")
        time.sleep(seconds)
        done = job.done()
        job.cancel()
        client.close()
        return Outcome("finished" if done else "cancelled")

    def _joined(self, number: int) -> tuple[Visitor, str]:
        visitor = self.visitor(f"cancels-{number}")
        return visitor, visitor.join(*self.run(visitor, **LONG)).raise_for_status().json()["event_id"]

    def _cancel_by_name(self, number: int, seconds: float) -> Outcome:
        return self._cancelled_by(
            number, seconds, lambda visitor, event: visitor.call(self.site.number("zstar_cancel"), [])
        )

    def _cancel_event(self, number: int, seconds: float) -> Outcome:
        def cancel(visitor: Visitor, event: str) -> httpx.Response:
            body = {"session_hash": visitor.session, "fn_index": self.site.number("zstar"), "event_id": event}
            return visitor.client.post("/cancel", json=body)

        return self._cancelled_by(number, seconds, cancel)

    def _cancelled_by(self, number: int, seconds: float, cancel: Callable[[Visitor, str], httpx.Response]) -> Outcome:
        """Cancels from another thread; the session must receive a final message."""
        visitor, event = self._joined(number)
        timer = threading.Timer(seconds, lambda: cancel(visitor, event))
        timer.start()
        try:
            for message in visitor.messages():
                if message["msg"] in ("process_completed", "unexpected_error", "server_stopped"):
                    return judged_message(message)
            return Outcome("lost", "no answer to a cancelled run (the stream ended)")
        finally:
            timer.join()
            visitor.close()

    def _drop(self, number: int, seconds: float) -> Outcome:
        visitor, _ = self._joined(number)
        until = time.monotonic() + seconds
        self._listen_until(visitor, until)
        return Outcome("cancelled")

    def _listen_until(self, visitor: Visitor, until: float) -> None:
        """Receives messages until then and closes the connection."""
        closing = threading.Timer(max(0.0, until - time.monotonic()), visitor.close)
        closing.start()
        with suppress(httpx.HTTPError, httpx.StreamError, RuntimeError, OSError, ValueError):
            for _ in visitor.messages():
                if time.monotonic() > until:
                    break
        closing.join()

    def pages(self) -> Phase:
        """Pages that are closed during a run; half of them never opened a message stream."""
        count, chance = self.count("pages"), self.chance("pages")
        live = self.site.functions["zstar_live"]
        wait = self.site.of_number(live["trigger_after"])
        plan = [(number, chance.uniform(0, 3.0), chance.random() < 0.5) for number in range(count)]

        def one(step: tuple[int, float, bool]) -> Outcome:
            number, seconds, listens = step
            visitor = self.visitor(f"page-{number}")
            try:
                pictures = [visitor.upload(f"{name}.png", self.files[name]) for name in ("content", "style")]
                began = visitor.call(wait["id"], [])
                if began.status_code != 200:
                    return judged_response(began)
                data = self.site.on_page(live, pictures, LONG)
                data[0] = began.json()["data"][-1]  # the run's ticket
                visitor.join(live["id"], data).raise_for_status()
                with self.heartbeat(visitor.session):
                    until = time.monotonic() + seconds
                    if listens:
                        self._listen_until(visitor, until)
                    time.sleep(max(0.0, until - time.monotonic()))
                return Outcome("cancelled")
            except Exception as error:  # noqa: BLE001 - as above
                return Outcome("lost", f"{type(error).__name__}: {str(error)[:200]}")

        with self.phase(f"{count} pages closed") as phase:
            with ThreadPoolExecutor(count) as threads:
                phase.outcomes = list(threads.map(one, plan))
            began, visitor = time.monotonic(), self.visitor("after-closing")
            phase.outcomes.append(visitor.ask(*self.run(visitor)))
            visitor.close()
            phase.notes.append(f"the next run was ready {time.monotonic() - began:.1f} s after the last page closed")
        return phase

    @contextmanager
    def heartbeat(self, session: str) -> Iterator[None]:
        """The connection that an open page holds; Gradio unloads the page when it ends."""
        client, ended = httpx.Client(timeout=PATIENCE), threading.Event()

        def hold() -> None:
            gone = suppress(httpx.HTTPError, httpx.StreamError, RuntimeError, OSError, ValueError)
            address = f"{self.site.address}/gradio_api/heartbeat/{session}"
            with gone, client.stream("GET", address) as response:
                for _ in response.iter_raw():
                    if ended.is_set():
                        return

        holding = threading.Thread(target=hold, daemon=True)
        holding.start()
        try:
            yield
        finally:
            ended.set()
            client.close()

    def browser(self) -> Phase:
        """Pages in Chromium: clicks an example and closes the page during the run."""
        from playwright.sync_api import sync_playwright

        count, chance = max(2, self.count("pages") // 3), self.chance("browser")
        executable = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
        with self.phase(f"{count} pages closed in Chromium") as phase, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
            for _ in range(count):
                page = browser.new_page()
                try:
                    page.goto(self.site.address, timeout=SILENCE * 1000)
                    page.locator("#examples tbody tr").first.click(timeout=SILENCE * 1000)
                    time.sleep(chance.uniform(0.5, 3))
                    phase.outcomes.append(Outcome("cancelled"))
                except Exception as error:  # noqa: BLE001 - as above
                    phase.outcomes.append(Outcome("lost", str(error).splitlines()[0]))
                page.close()
            browser.close()
        return phase

    def _painting(self, name: str, settings: dict[str, Any]) -> Outcome:
        visitor = self.visitor(f"learns-{name}")
        try:
            given = {"painting": visitor.upload(f"{name}.png", self.files["style"]), "name": name, **settings}
            return visitor.ask(self.site.number("inst_learn"), self.site.arguments("/inst_learn", given))
        except httpx.HTTPError as error:
            return Outcome("lost", f"no answer ({type(error).__name__})")
        finally:
            visitor.close()

    def watchers(self) -> Phase:
        """Many pages request the status of one training until it is stopped; all must receive the end."""
        count, ended = self.count("watchers"), threading.Event()
        watch, seconds = self.site.find("watch", "show_status"), WATCHED if self.share == 1 else WATCHED_SMALL
        with self.phase(f"{count} pages follow one training") as phase, ThreadPoolExecutor(count + 1) as threads:
            learning = threads.submit(self._painting, self.watched, {**LEARN, "steps": 10_000, "check_every": 5})
            time.sleep(1.5)
            if watch is None:
                phase.outcomes.append(Outcome("lost", "no function of the page gives the training status"))
            elif watch["queue"]:
                looks = [threads.submit(self._listener, number, watch["id"]) for number in range(count)]
            else:
                looks = [threads.submit(self._looker, number, watch, ended) for number in range(count)]
            time.sleep(seconds)
            stopper = self.visitor("stops")
            stopped = stopper.ask(self.site.number("inst_stop"), [self.watched])
            phase.outcomes.append(learning.result())
            ended.set()
            phase.outcomes += [look.result() for look in looks] if watch else []
            phase.outcomes += [stopped] if stopped.kind == "lost" else []
            stopper.close()
        return phase

    def _listener(self, number: int, watch: int) -> Outcome:
        visitor = self.visitor(f"watches-{number}")
        outcome = visitor.ask(watch, [self.watched])
        visitor.close()
        return outcome

    def _looker(self, number: int, look: dict[str, Any], ended: threading.Event) -> Outcome:
        """A page that requests the status by its timer while it holds its heartbeat."""
        every = self.site.components[look["targets"][0][0]]["props"]["value"]
        visitor = self.visitor(f"watches-{number}")
        data = self.site.on_page(look, [], {})
        data[0], outcome = self.watched, Outcome("lost", "nothing was shown")
        seen = look["outputs"].index(look["inputs"][1])
        beating = ExitStack()
        beating.enter_context(self.heartbeat(visitor.session))
        try:
            last = False
            time.sleep(self.chance(f"watcher {number}").uniform(0, every))  # pages start at different times
            while not last:
                last = ended.is_set()
                outcome = judged_response(visitor.call(look["id"], data))
                if outcome.kind == "lost":
                    break
                shown = json.loads(outcome.data)["data"][seen]
                data[1] = shown if isinstance(shown, str) else data[1]  # as the page keeps it
                time.sleep(every)
        except httpx.HTTPError as error:
            outcome = Outcome("lost", f"no answer ({type(error).__name__})")
        beating.close()
        visitor.close()
        return outcome

    def paintings(self) -> Phase:
        """Concurrent trainings: each becomes a style or is refused because the queue is full."""
        count = self.count("paintings")

        def one(number: int) -> Outcome:
            outcome = self._painting(f"painting {number}-{self.seed}", LEARN)
            if outcome.kind == "refused" and not LIMIT_WORDS.search(outcome.words):
                return Outcome("lost", f"a painting was lost: {outcome.words}")
            return outcome

        with self.phase(f"{count} paintings submitted") as phase, ThreadPoolExecutor(count) as threads:
            phase.outcomes = list(threads.map(one, range(count)))
            left = [place for place in (self.app.styles / "unfinished").glob("*") if place.name.startswith("painting")]
            phase.notes += [f"{len(left)} of them left unfinished on disk"] if left else []
        return phase

    def hostile(self) -> Phase:
        """Malformed and malicious requests."""
        chance, count = self.chance("hostile"), self.count("hostile")
        kinds = [
            self._server_file, self._server_file_by_address, self._damaged_upload, self._bomb, self._wrong_types,
            self._huge_text, self._markup, self._wrong_function, self._oversized, self._no_json,
        ]  # fmt: skip
        plan = [(kinds[number % len(kinds)], random.Random(chance.random()), number) for number in range(count)]

        def one(step: tuple[Callable[[random.Random, Visitor], Outcome], random.Random, int]) -> Outcome:
            kind, own, number = step
            visitor = self.visitor(f"hostile-{number}")
            try:
                outcome = kind(own, visitor)
            except Exception as error:  # noqa: BLE001 - as above
                outcome = Outcome("lost", f"{type(error).__name__}: {str(error)[:200]}")
            visitor.close()
            where = kind.__name__.strip("_").replace("_", " ")
            if kind in (self._wrong_function, self._no_json) and outcome.words == PLAIN_500:
                outcome = Outcome("refused", PLAIN_500)  # from Gradio's own routes, before any function of the app
            return Outcome(outcome.kind, f"{where}: {outcome.words}", outcome.data)

        with self.phase(f"{count} hostile requests") as phase, ThreadPoolExecutor(AT_ONCE) as threads:
            phase.outcomes = list(threads.map(one, plan))
            raw = sum(MARKUP in str(outcome.words) for outcome in phase.outcomes)
            phase.notes += [f"{raw} messages contain unescaped markup"] if raw else []
            plain = sum(outcome.words.endswith(PLAIN_500) for outcome in phase.outcomes if outcome.kind == "refused")
            phase.notes += [f"Gradio answered {plain} with a bare 500 before the app was reached"] if plain else []
        return phase

    def _server_file(self, chance: random.Random, visitor: Visitor) -> Outcome:
        """A path of a server file that was never uploaded."""
        secret = chance.choice([self.app.folder / "secret.png", "/etc/passwd", ROOT / "README.md", "../../secret.png"])
        given: dict[str, Any] = {"path": str(secret)}
        if chance.random() < 0.3:
            given["meta"] = {"_type": "gradio.FileData"}
        if chance.random() < 0.3:
            given["url"] = chance.choice([f"file://{secret}", f"{self.site.address}/gradio_api/file={secret}"])
        name, field_name = chance.choice(
            [
                ("zstar", "content"),
                ("zstar", "style"),
                ("zstar", "mask"),
                ("h_space", "content"),
                ("inst_upload", "file"),
            ]
        )
        if chance.random() < 0.25:
            outcome = visitor.ask(self.site.number("painter_canvas"), [given])
        elif name == "inst_upload":
            outcome = visitor.ask(self.site.number(name), [given])
        else:
            number, data = self.run(visitor)
            names = [known["parameter_name"] for known in self.site.parameters[f"/{name}"]]
            if name != "zstar":
                pictures = {known: visitor.upload("style.png", self.files["style"]) for known in ("content", "style")}
                number, data = self.site.number(name), self.site.arguments(f"/{name}", {**pictures, **QUICK})
            data[names.index(field_name)] = given
            outcome = visitor.ask(number, data)
        if outcome.kind == "finished" and any(outcome.data or ()):
            return Outcome("lost", f"a file of the server was opened: {Path(secret).name} through /{name}")
        return outcome

    def _server_file_by_address(self, chance: random.Random, visitor: Visitor) -> Outcome:
        secret = chance.choice(
            [str(self.app.folder / "secret.png"), "/etc/passwd", str(ROOT / "app.py"), "/proc/self/environ"]
        )
        form = chance.choice(["/file={}", "/file={}%00.png", "/file=/..{}", "/file/{}", "/file=static/../..{}"])
        response = visitor.client.get(form.format(secret))
        leaked = b"root:" in response.content or b"STYLEENGINE" in response.content or b"\x89PNG" in response.content
        return Outcome("lost", f"{secret} was served") if leaked else judged_response(response)

    def _damaged_upload(self, chance: random.Random, visitor: Visitor) -> Outcome:
        content = self.files["content"]
        damaged = bytearray(content[: chance.randrange(len(content))])
        for _ in range(chance.randrange(4)):
            if damaged:
                damaged[chance.randrange(len(damaged))] ^= chance.randrange(1, 256)
        name = chance.choice(["content.png", "x.webp", "a\nb.png", "../../x.png", "x" * 300 + ".png", "<b>.png"])
        number, data = self.run(visitor)
        data[0] = visitor.upload(name, bytes(damaged))
        return visitor.ask(number, data)

    def _bomb(self, chance: random.Random, visitor: Visitor) -> Outcome:
        side = chance.choice([8_000, 20_000, 60_000])
        number, data = self.run(visitor)
        data[0] = visitor.upload("bomb.png", flat_png(side, side, rows=min(side, 8_000)))
        return visitor.ask(number, data)

    def _wrong_types(self, chance: random.Random, visitor: Visitor) -> Outcome:
        number, data = self.run(visitor)
        wrong = [
            None,
            [],
            {},
            "x",
            -1,
            1e308,
            True,
            [[[[]]]],
            {"path": 3},
            {"path": None},
            {"path": ["a"]},
            "NaN",
            2**62,
        ]
        for place in chance.sample(range(len(data)), 3):
            data[place] = chance.choice(wrong)
        if chance.random() < 0.2:
            data = chance.choice([data[:-2], data + data, [], {}, None, "x"])
        return visitor.ask(number, data)

    def _huge_text(self, chance: random.Random, visitor: Visitor) -> Outcome:
        text = chance.choice(["a ", "星", "🎨", "\0", "::", "|"]) * 200_000
        name, field_name = chance.choice(
            [("qs_attn", "prompt"), ("inst_apply", "prompt"), ("inst_apply", "style"), ("zstar", "mode")]
        )
        given = {"content": visitor.upload("content.png", self.files["content"]), field_name: text, **QUICK}
        if name != "inst_apply":
            given["style"] = given["content"]
        return visitor.ask(self.site.number(name), self.site.arguments(f"/{name}", given))

    def _markup(self, chance: random.Random, visitor: Visitor) -> Outcome:
        """HTML in all text inputs."""
        name = chance.choice(["qs_attn", "inst_apply", "h_space", "zstar", "inst_learn"])
        picture = visitor.upload(f"{MARKUP}.png", self.files["content"])
        given: dict[str, Any] = {**(LEARN if name == "inst_learn" else QUICK)}
        for known in self.site.parameters[f"/{name}"]:
            if known["component"] == "Image":
                given[known["parameter_name"]] = picture if known["parameter_name"] != "mask" else None
            elif known["type"].get("type") == "string" and chance.random() < 0.7:
                given[known["parameter_name"]] = MARKUP
        return visitor.ask(self.site.number(name), self.site.arguments(f"/{name}", given))

    def _wrong_function(self, chance: random.Random, visitor: Visitor) -> Outcome:
        _, data = self.run(visitor)
        number = chance.choice(
            [-1, 99_999, "x", None, 3.5, [], self.site.number("zstar_live"), self.site.number("zstar_cancel")]
        )
        if chance.random() < 0.3:
            return judged_response(visitor.client.post("/call/nothing_of_that_name", json={"data": data}))
        return visitor.ask(number, data)

    def _oversized(self, chance: random.Random, visitor: Visitor) -> Outcome:
        number, data = self.run(visitor)
        body = chance.choice([[0] * 1_000_000, nested(900), {str(i): i for i in range(200_000)}, "x" * 8_000_000])
        data[chance.randrange(len(data))] = body
        return visitor.ask(number, data)

    def _no_json(self, chance: random.Random, visitor: Visitor) -> Outcome:
        path = chance.choice(["/queue/join", "/run/predict", "/call/zstar", "/cancel", "/upload", "/component_server"])
        body = chance.choice([b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"data": NaN}', b"null", os.urandom(1000)])
        kind = chance.choice(["application/json", "text/plain", "multipart/form-data; boundary=x", ""])
        return judged_response(visitor.client.post(path, content=body, headers={"content-type": kind}))


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


def flat_png(width: int, height: int, rows: int) -> bytes:
    """A PNG of zeros with `height` rows in its header and `rows` in its data."""

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(bytes(width + 1)) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def made_pictures(seed: int) -> dict[str, bytes]:
    """Two images of coarse noise."""
    made = {}
    for name in ("content", "style"):
        spots = Image.frombytes("RGB", (12, 9), random.Random(f"{seed} {name}").randbytes(12 * 9 * 3))
        buffer = io.BytesIO()
        spots.resize((120, 90), Image.Resampling.BICUBIC).save(buffer, "PNG")
        made[name] = buffer.getvalue()
    return made


def left_behind(app: App, before: set[Path]) -> list[str]:
    """Files that are never deleted: temporary files, and files in Gradio's cache that are neither upload nor result."""
    new = {path for path in app.temporary.rglob("*") if path.is_file() or not any(path.iterdir())} - before
    left = [f"tmp/{path.relative_to(app.temporary)}" for path in sorted(new)]
    for path in sorted(app.uploads.rglob("*")):
        hidden = path.name.startswith(".")
        empty = path.is_dir() and not any(path.iterdir())
        if (hidden or empty) and path not in before:
            left.append(f"uploads/{path.relative_to(app.uploads)}")
    return left


def tracebacks(log: str) -> str:
    """The number of tracebacks in the log, by exception."""
    ends = Counter(re.findall(r"^Traceback .*\n(?:[ \n].*\n|\s*\n)*([\w.]+).*$", log, re.MULTILINE))
    return f"{ends.total()}" + "".join(f"; {count} {name}" for name, count in ends.most_common())


def everything(app: App) -> set[Path]:
    return {path for folder in (app.temporary, app.uploads) for path in folder.rglob("*")}


def report(load: Load, phases: Sequence[Phase], figures: Sequence[tuple[str, str]], model: str) -> None:
    print(f"\n{machine()}; model {model}; seed {load.seed}\n")
    print("| what | submitted | finished | cancelled | refused with a sentence | lost | longest response | took |")
    print("| --- | --: | --: | --: | --: | --: | --: | --: |")
    for phase in phases:
        print(phase.row())
    print("\n| measured | |\n| --- | --- |")
    for name, value in figures:
        print(f"| {name} | {value} |")
    for phase in phases:
        for note in phase.notes:
            print(f"\n{phase.title}: {note}.")
        for words, count in Counter(phase.lost).most_common(12):
            print(f"\nLost in “{phase.title}”, {count} times: {words}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a tenth of the requests")
    parser.add_argument("--random", action="store_true", help="use a small random model instead of mini")
    parser.add_argument("--browser", action="store_true", help="also close pages in Chromium")
    parser.add_argument("--only", nargs="*", default=[], help="the phases to run, by name")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="styleengine-load-") as name:
        folder, model = Path(name), "mini"
        if arguments.random:
            model = str(folder / "random")
            subprocess.run([sys.executable, "-c", WRITE_MODEL, model], cwd=ROOT, check=True, capture_output=True)
        files = made_pictures(arguments.seed)
        for kind, content in files.items():
            (folder / f"{kind}.png").write_bytes(content)
        (folder / "secret.png").write_bytes(files["style"])
        app = App(folder, model)
        try:
            return measured(app, arguments, files, Path(model).name)
        finally:
            app.end()


def measured(app: App, arguments: argparse.Namespace, files: dict[str, bytes], model: str) -> int:
    app.wait()
    poller = Poller(app.address)
    load = Load(app, Site(app.address), poller, files, arguments.seed, 0.1 if arguments.small else 1.0)
    names = ["clients", "cancelled", "pages", *(["browser"] if arguments.browser else [])]
    names = [
        name for name in [*names, "watchers", "paintings", "hostile"] if name in arguments.only or not arguments.only
    ]
    print("Warm-up:", file=sys.stderr)
    replace(load, seed=arguments.seed + 1, share=REHEARSAL).rehearse(names)
    kept, threads, memory = everything(app), app.watched.num_threads(), app.memory()
    poller.start()
    print("Measured:", file=sys.stderr)
    phases = [getattr(load, name)() for name in names]
    with load.phase("a run at the end") as last:
        visitor = load.visitor("last")
        last.outcomes.append(visitor.ask(*load.run(visitor)))
        visitor.close()
    poller.end()
    after = app.memory()
    left, log = left_behind(app, kept), app.log()
    worst = max(phase.silence for phase in [*phases, last])
    figures = [
        ("longest response time of the page", f"{worst:.1f} s ({poller.looks} requests)"),
        ("resident memory before, after", f"{memory >> 20} MiB, {after >> 20} MiB"),
        ("threads before, after", f"{threads}, {app.watched.num_threads() if app.alive else 0}"),
        ("files left behind", f"{len(left)}" + (f" ({', '.join(left[:6])})" if left else "")),
        ("tracebacks in the app's log", tracebacks(log)),
        ("the app is still running", "yes" if app.alive else "no"),
    ]
    report(load, [*phases, last], figures, model)
    return int(not app.alive or any(phase.lost for phase in [*phases, last]))


if __name__ == "__main__":
    sys.exit(main())
