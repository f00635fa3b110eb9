"""The part of a model hub that the tests need, served from memory on this machine."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


class FakeHub:
    """Repositories as dictionaries: id → file name → bytes. ``log`` keeps what was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.log: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def downloaded(self) -> set[str]:
        """The files that were sent whole."""
        return {line.split()[1] for line in self.log if line.startswith("GET-ALL")}

    def _handler(hub) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the request's
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def _answer(self) -> None:
                path = unquote(urlsplit(self.path).path)
                if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                    self._model(match[1], match[2])
                elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                    self._file(match[1], match[2], match[3])
                else:
                    self._send(404, b"{}")

            def _known(self, repo: str, revision: str | None) -> bool:
                if repo not in hub.repos:
                    self._send(404, b'{"error": "Repository not found"}', code="RepoNotFound")
                elif repo in hub.gated:
                    self._send(403, b'{"error": "Access is restricted"}', code="GatedRepo")
                elif revision not in (None, "main", COMMIT):
                    self._send(404, b'{"error": "Invalid rev"}', code="RevisionNotFound")
                else:
                    return True
                return False

            def _model(self, repo: str, revision: str | None) -> None:
                hub.log.append(f"INFO {repo}")
                if self._known(repo, revision):
                    files = hub.repos[repo].items()
                    siblings = [{"rfilename": name, "size": len(data)} for name, data in files]
                    info = {"id": repo, "sha": COMMIT, "siblings": siblings}
                    self._send(200, json.dumps(info).encode())

            def _file(self, repo: str, revision: str, name: str) -> None:
                if not self._known(repo, revision):
                    return
                data = hub.repos[repo].get(name)
                if data is None:
                    self._send(404, b"", code="EntryNotFound")
                    return
                headers = {
                    "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
                    "X-Repo-Commit": COMMIT,
                    "Accept-Ranges": "bytes",
                }
                wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
                if not wanted:
                    kind = "HEAD" if self.command == "HEAD" else "GET-ALL"
                    hub.log.append(f"{kind} {name}")
                    self._send(200, data, headers)
                    return
                start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
                hub.log.append(f"RANGE {name} {start}-{stop}")
                headers["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
                self._send(206, data[start:stop], headers)

            def _send(
                self,
                status: int,
                body: bytes,
                headers: dict[str, str] | None = None,
                code: str = "",
            ) -> None:
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                if code:
                    self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        return Handler
