"""A real Ray head with its dashboard and token authentication, for the tests that submit jobs, and a browser to look at it with."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.conftest import ROOT, clean_environment, free_port

START_TIMEOUT_S = 90.0
BIN = Path(sys.executable).parent
CHROMIUM = shutil.which("chromium")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Head:
    """One node, its addresses and its token.

    Args:
        num_cpus: that it offers.
    """

    def __init__(self, num_cpus: int) -> None:
        self.token = secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # short: Ray's sockets lie in it
        self.port, dashboard, self.metrics_port = free_port(), free_port(), free_port()
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        command = [
            str(BIN / "ray"),
            "start",
            "--head",
            "--block",
            f"--port={self.port}",
            f"--temp-dir={self.folder}",
            f"--num-cpus={num_cpus}",
        ]
        command += [
            f"--dashboard-port={dashboard}",
            f"--metrics-export-port={self.metrics_port}",
            f"--ray-client-server-port={free_port()}",
        ]
        command += [f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=134217728", "--disable-usage-stats"]
        self.output = (self.folder / "head.out").open("w")
        environment = self.environment | {"RAY_JOB_STOP_WAIT_TIME_S": "60"}  # what a checkpoint may take; Ray's own default is 3 s
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self.output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.get("/api/jobs/")
                (node,) = self.get("/nodes?view=summary")["data"]["summary"]
                self.node = node["ip"]
                return
            except (OSError, ValueError, KeyError):  # nobody listens yet; no node has said yet that it is there
                if self.process.poll() is not None or time.monotonic() > deadline:
                    told = (self.folder / "head.out").read_text()[-3000:]
                    self.close()
                    raise AssertionError(f"no dashboard within {START_TIMEOUT_S} s: {told}") from None
                time.sleep(0.5)

    @property
    def environment(self) -> dict[str, str]:
        """Of a client that knows the token, and of the head itself."""
        known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}
        return clean_environment() | known | {"PATH": f"{BIN}:{os.environ['PATH']}"}

    @property
    def node_address(self) -> str:
        """Of the control store, which a driver or a command on the node joins."""
        return f"{self.node}:{self.port}"

    def get(self, path: str) -> Any:
        """A page of the dashboard's own interface, with the token."""
        request = urllib.request.Request(self.dashboard + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def rethinker(
        self, *words: str, environment: dict[str, str] | None = None, timeout_s: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run the command as a client."""
        command = [sys.executable, "-m", "cluster", *words]
        return subprocess.run(
            command, cwd=ROOT, env=environment or self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def close(self) -> None:
        """End the head, which ends its processes."""
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self.output.close()
            shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def with_token(head: Head) -> Iterator[str]:
    """Put a door in front of the dashboard that adds the token, since a browser on the command line can't; its address."""

    class Door(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            request = urllib.request.Request(head.dashboard + self.path, headers={"Authorization": f"Bearer {head.token}"})
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    self._answer(answer.status, answer.headers.get("Content-Type", ""), answer.read())
            except urllib.error.HTTPError as error:
                self._answer(error.code, "text/plain", error.read())

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            with contextlib.suppress(ConnectionError):  # the browser has seen enough
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """A request is no news."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def look(url: str, profile: Path, *, picture: Path | None = None, wait_s: float = 12.0, height: int = 900) -> str:
    """Open a page in a headless browser.

    Args:
        url: of the page.
        profile: an empty folder for the browser.
        picture: PNG to write; None: none.
        wait_s: of the page's own time, until its requests are answered.
        height: of the window.

    Returns:
        What the page then holds, as HTML; nothing when a picture was asked for.
    """
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", f"--window-size=1600,{height}", f"--virtual-time-budget={wait_s * 1000:.0f}"]
    command += [f"--screenshot={picture}"] if picture else ["--dump-dom"]
    return subprocess.run([*command, url], capture_output=True, text=True, timeout=90, check=True).stdout
