"""A stand-in for the hub on this machine: it serves the folder ROOT/owner/name/files as data sets.

Data sets whose name begins with "gated" refuse their files. Run as a script it writes the rows that it is asked for:
`python hub.py ROOT CACHE SOURCE ...`; a source "down:SOURCE" is read after the server has stopped.
"""

import contextlib
import hashlib
import http.server
import json
import os
import re
import sys
import threading
import time
import urllib.parse
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def handler(root):
    class Hub(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def reply(self, code, body=b"", **headers):
            if not isinstance(body, bytes):
                body = json.dumps(body).encode()
                headers["Content-Type"] = "application/json"
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")  # else an open connection lives on when the server has stopped
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def entry(self, file, base):
            content = file.read_bytes()
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return {"type": "file", "path": file.relative_to(base).as_posix(), "size": len(content), "oid": oid}

        def answer(self):
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            found = re.match(r"/(?:api/)?datasets/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.*))?)?)?$", path)
            if found is None or not (root / found[1]).is_dir():
                return self.reply(404, {"error": "no"}, X_Error_Code="RepoNotFound")
            name, action, _, rest = found.groups()
            base = root / name
            files = sorted(f for f in base.rglob("*") if f.is_file())
            entries = [self.entry(f, base) for f in files]
            if action == "resolve":
                if name.split("/")[1].startswith("gated"):
                    return self.reply(403, {"error": "gated"}, X_Error_Code="GatedRepo")
                if not (base / rest).is_file():
                    return self.reply(404, X_Error_Code="EntryNotFound")
                oid = self.entry(base / rest, base)["oid"]
                own = {"ETag": f'"{oid}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
                return self.reply(200, (base / rest).read_bytes(), **own)
            if action == "tree":
                return self.reply(200, [e for e in entries if not rest or e["path"].startswith(f"{rest}/")])
            if action == "paths-info":
                as_json = "json" in self.headers.get("Content-Type", "")
                wanted = json.loads(sent)["paths"] if as_json else urllib.parse.parse_qs(sent.decode()).get("paths", [])
                return self.reply(200, [e for e in entries if e["path"] in wanted])
            about = {"id": name, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": []}
            return self.reply(200, {**about, "siblings": [{"rfilename": e["path"]} for e in entries]})

        do_GET = do_HEAD = do_POST = answer  # noqa: N815

    return Hub


def main(root, cache, *sources):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(Path(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ.update(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HOME=cache, HF_HUB_DISABLE_XET="1")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.pop(name, None)
    from uftlab.errors import InputError
    from uftlab.rows.sources import load_table

    found = []
    for source in sources:
        if source.startswith("down:"):
            server.shutdown()
            server.server_close()
        begin = time.monotonic()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                table, said = load_table(source.removeprefix("down:"))
            found.append({"rows": table.to_list(), "said": said})
        except InputError as error:
            found.append({"error": str(error)})
        found[-1]["seconds"] = time.monotonic() - begin
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
