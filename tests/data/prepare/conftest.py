"""A server on the loopback address that gives official files, whole or from a byte on, and breaks off on request."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Server:
    """What the server gives, what it was asked for, and after how many bytes it breaks off."""

    def __init__(self):
        self.files, self.asked, self.break_after, self.takes_ranges = {}, [], None, True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name, begin = self.path.lstrip("/"), 0
                asked = self.headers.get("Range")
                outer.asked.append((name, asked))
                if name not in outer.files:
                    self.send_error(404)
                    return
                content = outer.files[name]
                if asked and outer.takes_ranges:
                    begin = int(asked.removeprefix("bytes=").removesuffix("-"))
                    if begin >= len(content):
                        self.send_error(416)
                        return
                self.send_response(206 if begin else 200)
                self.send_header("Content-Length", str(len(content) - begin))
                self.end_headers()
                end = None if outer.break_after is None else begin + outer.break_after
                self.wfile.write(content[begin:end])

            def log_message(self, *args): ...

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        threading.Thread(target=self.httpd.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.httpd.shutdown()
    made.httpd.server_close()
