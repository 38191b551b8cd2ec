"""Runs a linter over the OpenAPI document that a daemon serves, and a property-based client by it.

The client speaks TCP and changes go over the unix socket, so what it sends is passed on to that.

    fuzz_api.py SOCKET SECONDS
"""

import http.client
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading

from openapi_spec_validator import OpenAPIV31SpecValidator


def forward(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def serve(listener, path):
    while True:
        client, _ = listener.accept()
        daemon = socket.socket(socket.AF_UNIX)
        try:
            daemon.connect(path)
        except OSError:
            client.close()
            continue
        for pair in ((client, daemon), (daemon, client)):
            threading.Thread(target=forward, args=pair, daemon=True).start()


def main():
    path, seconds = sys.argv[1], sys.argv[2]
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    port = listener.getsockname()[1]
    threading.Thread(target=serve, args=(listener, path), daemon=True).start()

    ask = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    ask.request("GET", "/api/v1/openapi.json")
    document = json.loads(ask.getresponse().read())
    ask.close()
    wrong = list(OpenAPIV31SpecValidator(document).iter_errors())
    for error in wrong:
        print(f"openapi: {'/'.join(map(str, error.absolute_path))}: {error.message}")
    operations = sum(len(methods) for methods in document["paths"].values())
    print(f"openapi: {operations} operations, {len(wrong)} errors")

    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "openapi.json")
        file.write_text(json.dumps(document))
        ran = subprocess.run(
            [
                pathlib.Path(sys.executable).parent / "schemathesis", "--no-color", "run", file,
                "--url", f"http://127.0.0.1:{port}",
                "--phases", "examples,coverage,fuzzing",
                # A rule of ours that the document can't say is no defect of it, and a body of defaults is
                # right where the document can't say that a field is needed.
                "--exclude-checks", "negative_data_rejection,positive_data_acceptance",
                "--header", "accept: application/json",
                "--max-examples", "25", "--max-time", seconds, "--seed", "1",
                # A refusal of a method closes the connection, which is in a pool meanwhile.
                "--request-timeout", "40", "--request-retries", "2", "--continue-on-failure", "--no-shrink",
                "--suppress-health-check", "all",
            ],
            cwd=folder,
        )
    sys.exit(1 if wrong or ran.returncode else 0)


main()
