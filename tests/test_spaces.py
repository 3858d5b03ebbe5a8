"""The package `spaces` as on ZeroGPU, with a local server in place of the service that lends GPUs."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from styleengine.ui import gpu

if importlib.util.find_spec("spaces") is None:
    pytest.skip("the package spaces is not installed: pip install -r requirements-dev.txt", allow_module_level=True)

ROOT = Path(__file__).parents[1]
LENT = {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "none", "allowToken": "token of the loan"}


def call(tmp_path: Path, status: int) -> tuple[dict[str, Any], list[tuple[str, dict[str, list[str]]]]]:
    """What `on_spaces.py` prints where the service answers with that status, and the requests to the service."""
    asked = list[tuple[str, dict[str, list[str]]]]()

    class Lender(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            address = urlsplit(self.path)
            asked.append((address.path, parse_qs(address.query)))
            body = json.dumps(LENT).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Lender)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "cgroup").write_text("0::/app\n")
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_port}",
        "ZEROGPU_OFFLOAD_DIR": str(tmp_path / "tensors"),
        "ZEROGPU_PROC_SELF_CGROUP_PATH": str(tmp_path / "cgroup"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(ROOT / "tests" / "on_spaces.py")]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1]), asked


def test_a_call_asks_for_its_time_with_the_visitors_token_and_shares_the_networks(tmp_path: Path) -> None:
    found, asked = call(tmp_path, 200)
    assert found["device"] == "cuda:0"
    assert found["packed"] >= 0.95 * found["expected"] > 0  # tied weights are stored once
    assert (found["forked"], found["disk"], found["parallel"]) == (True, True, 10)
    assert [path for path, _ in asked] == ["/schedule", "/allow", "/release"]
    assert asked[0][1]["durationSeconds"] == [str(gpu.START_SECONDS + 31)]
    assert asked[0][1]["token"] == ["a.e30.b"]
    assert asked[2][1]["fail"] in (["false"], ["False"])


def test_an_expired_token_of_the_visitor_is_told_with_what_to_do(tmp_path: Path) -> None:
    found, _ = call(tmp_path, 401)
    assert "Reload the page" in found["refusal"]
