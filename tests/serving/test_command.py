"""`tagi serve` as a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from modeling_tagi.commands.main import main


@pytest.fixture(scope="module")
def checkpoint(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    models("t5").save_pretrained(folder)
    return str(folder)


def test_a_signal_under_load_ends_it_with_every_accepted_request_answered(checkpoint, models, alone, tmp_path):
    (tmp_path / "names.yaml").write_text("'nay': say no\n")
    command = [sys.executable, "-m", "modeling_tagi.commands.main", "serve", checkpoint, "--port", "0", "--json",
               "--adapters", str(tmp_path / "adapters"), "--names", str(tmp_path / "names.yaml")]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "TAGI_API_KEY": "a-secret"}) as process:  # fmt: skip
        ready = json.loads(process.stdout.readline())
        asked = {"model": "nay", "prompt": "red green", "max_tokens": 12}
        key = {"Authorization": "Bearer a-secret"}

        def ask(number):
            with httpx.Client(timeout=120) as client:
                return client.post(f"{ready['url']}/v1/completions", json=asked, headers=key)

        assert httpx.post(f"{ready['url']}/v1/completions", json=asked).status_code == 401
        assert ask(0).status_code == 200
        with ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(ask, number) for number in range(16)]
            while httpx.get(f"{ready['url']}/health").json()["waiting"] + sum(one.done() for one in answers) < 8:
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            answers = [answer.exception() or answer.result() for answer in answers]
        out, error = process.communicate(timeout=60)
    assert process.returncode == 0 and "a-secret" not in out + error and "Traceback" not in error
    got = [answer for answer in answers if not isinstance(answer, httpx.ConnectError)]  # the others were not accepted
    assert len(got) >= 8 and {answer.status_code for answer in got} == {200}
    expected = alone(models("t5"), "say no", "red green")
    assert {answer.json()["choices"][0]["text"] for answer in got} == {expected}


@pytest.mark.parametrize("options, said", [
    (["--names", "nowhere.yaml"], "there is no configuration nowhere.yaml"),
    (["--api_key_file", "nowhere.txt"], "nowhere.txt: there is no such file or folder"),
    (["--port", "TAKEN"], "127.0.0.1:TAKEN cannot be served"),
])  # fmt: skip
def test_what_cannot_be_served_is_one_line(options, said, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = [option.replace("TAKEN", port) for option in options]
        assert main(["serve", checkpoint, "--adapters", "adapters", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tagi serve: ") and said.replace("TAKEN", port) in line


@pytest.mark.parametrize("options, said", [
    (["--port", "70000"], "'70000' is no port, a whole number from 0 to 65535"),
    (["--max_batch", "0"], "'0' is no whole number of at least 1"),
    (["--api_key_file", os.devnull], "holds no key; give printable ASCII characters"),
])  # fmt: skip
def test_wrong_options_are_one_line(options, said, checkpoint, capsys):
    with pytest.raises(SystemExit):
        main(["serve", checkpoint, *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tagi serve: ") and said in line
