"""An HTTP proxy before an OpenAI-compatible server that fails some first tries, and counts what each sample cost."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlparse

Fault = str | None
"""An HTTP status ("429"), "close" (the connection is cut), "stall" (no answer for `stall_s`), "html",
"abort" (half of an answer, called given up), or none."""


class FaultyProxy:
    """Forwards to `upstream`; `fault(sample, tries)` says what happens instead (sample counted by first sight)."""

    def __init__(self, upstream: str, fault: Callable[[int, int], Fault] = lambda *_: None, delay_s: float = 0.0):
        self.upstream, self.fault, self.delay_s, self.stall_s = urlparse(upstream), fault, delay_s, 3.0
        self.tries: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, object]] = []
        self.together = self.most_together = 0
        self._order: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                proxy._handle(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        request = json.loads(body)
        sample = json.dumps([request["messages"][-1]["content"], request.get("seed")])
        with self._lock:
            self.bodies.append(request)
            self.tries[sample] += 1
            tries, number = self.tries[sample], self._order.setdefault(sample, len(self._order))
            self.together += 1
            self.most_together = max(self.most_together, self.together)
        time.sleep(self.delay_s)
        fault = self.fault(number, tries)
        if fault in (None, "abort"):
            status, kind, answer = self._forward(body)
            if fault:
                made = json.loads(answer)
                made["choices"][0]["finish_reason"] = fault
                answer = json.dumps(made).encode()
            with self._lock:
                self.answered[sample] += status == 200 and not fault
        else:
            status, kind, answer = self._fail(fault, handler)
        with self._lock:
            self.together -= 1
        if status:
            handler.send_response(status)
            handler.send_header("content-type", kind)
            handler.send_header("content-length", str(len(answer)))
            if status == 429:
                handler.send_header("retry-after-ms", "20")
            handler.end_headers()
            handler.wfile.write(answer)

    def _fail(self, fault: str, handler: BaseHTTPRequestHandler) -> tuple[int, str, bytes]:
        if fault in ("close", "stall"):
            time.sleep(self.stall_s if fault == "stall" else 0)
            handler.close_connection = True
            return 0, "", b""
        if fault == "html":
            return 200, "text/html", b"<html>\nwelcome</html>"
        said = f"you sent\n{handler.headers.get('authorization')}"
        return int(fault), "application/json", json.dumps({"error": {"message": said}}).encode()

    def _forward(self, body: bytes) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(self.upstream.hostname or "", self.upstream.port, timeout=60)
        try:
            connection.request(
                "POST", "/v1/chat/completions", body, {"content-type": "application/json", "connection": "close"}
            )
            response = connection.getresponse()
            return response.status, response.headers["content-type"], response.read()
        finally:
            connection.close()
