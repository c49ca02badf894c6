"""A real ComfyUI server with the pack installed, and a client for its HTTP interface."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lab.workflows.discovery import ROOT, Host

#: Not the repository's name on purpose: nothing in the pack may depend on it. (A dot would hide the help pages.)
PACK_FOLDER = "ComfyUI-Likeness"


class PromptError(AssertionError):
    """ComfyUI refused a prompt or a node raised; the message holds what the server said."""


@dataclass(frozen=True)
class Run:
    """What a finished prompt left in the history."""

    outputs: dict[str, dict[str, Any]]
    executed: tuple[str, ...]
    seconds: float


class Server:
    """Starts ComfyUI in an empty base directory that holds the pack under another folder name; stops it at the end.

    Args:
        folder: name of the pack's folder. flags: of ComfyUI's command line, beside ``--cpu``.
    """

    def __init__(
        self, host: Host, base: Path, pack: Path = ROOT, flags: Sequence[str] = (), folder: str = PACK_FOLDER
    ):
        self.host, self.base, self.pack, self.flags, self.folder = host, base, pack, flags, folder
        self.log_file = base / "server.log"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        for folder in ("custom_nodes", "input", "output", "temp", "user", "models"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        (self.base / "custom_nodes" / self.folder).symlink_to(self.pack, target_is_directory=True)
        command = [self.host.python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
        command += self.flags
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.host.path, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._wait_until_ready()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _wait_until_ready(self, timeout: float = 600) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.host.name} stopped while starting:\n{self.log()[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        raise TimeoutError(f"{self.host.name} did not answer in {timeout:.0f} s:\n{self.log()[-4000:]}")

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def log(self) -> str:
        """Everything the server wrote so far."""
        return self.log_file.read_text("utf-8", errors="replace")

    def get(self, path: str) -> Any:
        """JSON of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """JSON of a POST request; the answer may be empty."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a prompt in API format and return its id.

        Raises:
            PromptError: the server found the prompt invalid.
        """
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": "likeness-tests"})["prompt_id"]
        except urllib.error.HTTPError as error:
            raise PromptError(error.read().decode()) from error

    def run_prompt(self, prompt: dict[str, Any], timeout: float = 600) -> Run:
        """Queue a prompt and wait for its end.

        Raises:
            PromptError: the prompt is invalid or a node raised.
            TimeoutError: it did not end in ``timeout`` seconds.
        """
        start = time.monotonic()
        entry = self.wait(self.queue(prompt), timeout)
        status = entry["status"]
        if status["status_str"] != "success":
            raise PromptError(_error_text(status))
        cached = {node for kind, data in status["messages"] if kind == "execution_cached" for node in data["nodes"]}
        executed = tuple(node for node in prompt if node not in cached)
        return Run(entry["outputs"], executed, time.monotonic() - start)

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """The history entry of a prompt once it has ended, however it ended."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            if self._process.poll() is not None:
                raise PromptError(f"the server died:\n{self.log()[-4000:]}")
            time.sleep(0.2)
        raise TimeoutError(f"prompt {prompt_id} did not end in {timeout:.0f} s:\n{self.log()[-3000:]}")

    def picture(self, entry: dict[str, str]) -> np.ndarray:
        """An output picture, ``H W C`` uint8, from its entry in ``Run.outputs[...]["images"]``."""
        query = urllib.parse.urlencode({key: entry[key] for key in ("filename", "subfolder", "type")})
        with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=60) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())))

    def pictures(self, run: Run) -> list[np.ndarray]:
        """Every picture of a run, in node order."""
        return [self.picture(entry) for output in run.outputs.values() for entry in output.get("images", [])]


def _error_text(status: dict[str, Any]) -> str:
    for kind, data in status["messages"]:
        if kind == "execution_error":
            trace = "".join(data.get("traceback", []))
            return f"{data['node_type']} ({data['node_id']}): {data['exception_message']}\n{trace}"
    return json.dumps(status)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
