"""Serves a checkpoint by a real vLLM with the resolver, and compares every answer with `model.generate`'s.

    python tests/engines/vllm_resolver.py FOLDER [--checkpoint …] [--requests 2000] [--clients 64]

It runs where vLLM and this package are installed, on a CPU for an hour or so. FOLDER keeps what was found, part by
part, so that the same command goes on; result.json in it has it all.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
from asked import INPUTS, INSTRUCTIONS
from openai import AsyncOpenAI

ROOT = Path(__file__).parents[2]
NUMBERS = ["third", "fifth", "sixth", "seventh", "eighth"]
FIRST = [f"Write the {number} word of the input." for number in NUMBERS]  # each asked for alone, to time it
ONE = "Write the fourth word of the input."  # asked for by all clients at once
SHARED = "Write the ninth word of the input."  # asked for at two servers at once
KILLED = "Write every second word of the input."  # whose adapter is being written when the server is killed
NAMED = ("last-word", INSTRUCTIONS[1])
UNSEEN = [text for text in INSTRUCTIONS if text != NAMED[1]][:16]
MADE = re.compile(r"adapter (\w{12}) was made in ([\d.]+) s \(waiting ([\d.]+) s, the generator ([\d.]+) s, the disk "
                  r"([\d.]+) s\)")  # fmt: skip


def ours(checkpoint: str, tokens: int, file: Path) -> dict[str, list[list[int]]]:
    """Returns the tokens that `model.generate` writes for each input with each instruction's adapter, greedily."""
    found = json.loads(file.read_text()) if file.exists() else {}
    missing = [text for text in (*INSTRUCTIONS, *FIRST, ONE, SHARED, KILLED) if text not in found]
    if missing:
        from modeling_tagi import TagiModel
        from modeling_tagi.tokens import OUTPUT_HEAD

        model = TagiModel.from_pretrained(checkpoint).eval()
        batch = model.encode_inputs(INPUTS)
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(*batch.values())]  # without padding
        if rows != [model.tokenizer(text + OUTPUT_HEAD)["input_ids"] for text in INPUTS]:
            raise SystemExit("an input's text with the line that asks for its output is read otherwise than by us")
        end = model.generation_config.eos_token_id
        for instruction in missing:
            adapter = model.generate_adapter(instruction)
            output = model.generate(**batch, adapter=adapter, max_new_tokens=tokens, do_sample=False)
            found[instruction] = [until(row, end) for row in output[:, batch["input_ids"].shape[1]:].tolist()]
        file.write_text(json.dumps(found))
    return found


def until(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row


class Server:
    """Runs `tagi vllm` inside a `with`; its log is appended to a file."""

    def __init__(self, options, folder: Path, kept: str = "kept", replica: int = 0):
        names = folder / "names.yaml"
        names.write_text(f"{NAMED[0]}: {NAMED[1]}\n")
        port = options.port + replica
        self.url, self.log, self.adapters = f"http://127.0.0.1:{port}", folder / f"server-{port}.log", folder / kept
        self.command = [
            sys.executable, "-m", "modeling_tagi.commands.main", "vllm", options.checkpoint, "--adapters",
            str(self.adapters), "--names", str(names), "--host", "127.0.0.1", "--port", str(port), "--dtype",
            "float32", "--enforce-eager", "--max-model-len", "256", "--max-loras", str(options.loras),
        ]  # fmt: skip

    def __enter__(self):
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", **os.environ}
        began = time.monotonic()
        with open(self.log, "a") as log:
            self.begins = log.tell()
            self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log, env=environment,
                                            start_new_session=True)  # fmt: skip
        try:
            while not self.answers():
                if self.process.poll() is not None:
                    raise SystemExit(f"the server ended with {self.process.returncode}; {self.log} says why")
                time.sleep(1)
            while "was loaded in" not in self.said():  # else the first request would wait for it
                time.sleep(1)
        except BaseException:
            self.kill()
            raise
        self.seconds = time.monotonic() - began
        return self

    def __exit__(self, *_):
        self.kill()

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health").status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self):
        """Ends the server and its engine at once, with no chance to clean up."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace")[self.begins:]

    def made(self) -> list[tuple[str, ...]]:
        """Returns the adapters that this server has computed: the name, and seconds in all, waiting, of the generator
        and of the disk."""
        return MADE.findall(self.said())

    def folders(self) -> list[Path]:
        return sorted(path for path in self.adapters.glob("*/*") if not path.name.startswith("."))

    def half_written(self) -> list[Path]:
        return [path for path in self.adapters.glob("*/.*-*") if path.is_dir()]


class Client:
    """Asks for completions as users do, and counts what differs from ours."""

    def __init__(self, server: Server, expected: dict, tokens: int):
        self.api = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=3600, max_retries=0)
        self.expected, self.tokens, self.different, self.asked = expected, tokens, [], 0

    async def ask(self, instruction: str, number: int, model: str | None = None) -> float:
        """Returns the seconds until the answer was there."""
        began = time.perf_counter()
        answer = await self.api.completions.create(
            model=model or f"tagi:{instruction}", prompt=f"{INPUTS[number]}\n\nOutput:\n", max_tokens=self.tokens,
            temperature=0, extra_body={"return_token_ids": True},
        )  # fmt: skip
        took = time.perf_counter() - began
        self.asked += 1
        found, wanted = until(answer.choices[0].token_ids, 2), self.expected[instruction][number][: self.tokens]
        if found != wanted:
            self.different.append({"instruction": instruction, "input": INPUTS[number], "ours": wanted, "vLLM": found})
        return took

    async def load(self, requests: int, clients: int, instructions: list[str]) -> dict:
        """Has many clients ask at once, the first ones for the same few instructions, and returns what came of it."""
        left, times = iter(range(requests)), []

        async def one():
            for number in left:
                times.append(await self.ask(instructions[number % len(instructions)], number * 7 % len(INPUTS)))

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        took = time.perf_counter() - began
        ordered = sorted(times)
        return {"requests": len(times), "seconds": round(took, 1), "per_second": round(len(times) / took, 2),
                "median_seconds": round(ordered[len(ordered) // 2], 2), "slowest_seconds": round(ordered[-1], 2),
                "different": len(self.different)}  # fmt: skip


def refusals(server: Server) -> dict[str, tuple[int, str]]:
    """Returns the status and the message that bad model names get."""
    found = {}
    for what, model in {
        "empty": '"tagi:"', "blank": '"tagi:   "', "too long": json.dumps("tagi:" + "very long " * 600),
        "half a character": r'"tagi:Say \ud800"', "unknown name": '"first-word"', "a number": "3",
    }.items():  # fmt: skip
        body = f'{{"model": {model}, "prompt": "one", "max_tokens": 2}}'
        answer = httpx.post(f"{server.url}/v1/completions", content=body, timeout=600,
                            headers={"content-type": "application/json"})  # fmt: skip
        try:
            message = answer.json()["error"]["message"]
        except (ValueError, LookupError):
            message = answer.text
        found[what] = answer.status_code, message[:300]
    return found


async def killed_while_writing(server: Server, client: Client) -> bool:
    """Kills the server when an adapter's files begin to be written; tells whether it came in time."""
    request = asyncio.ensure_future(client.ask(KILLED, 0))
    while not request.done():
        if server.half_written():
            server.kill()
            break
        await asyncio.sleep(0.0005)
    in_time = not request.done()
    await asyncio.gather(request, return_exceptions=True)
    return in_time


def require(held: bool, what: str):
    if not held:
        raise SystemExit(f"NOT SO: {what}")


async def requests(options, folder: Path, expected: dict) -> dict:
    """Shows what becomes of instructions never seen, of bad ones, and of a kill while an adapter is written."""
    result: dict = {}
    with Server(options, folder) as server:
        require(not server.folders(), f"{server.adapters} is empty; give a new FOLDER")
        client = Client(server, expected, 2)
        await client.ask(NAMED[1], 0)
        await client.ask(NAMED[1], 1, model=NAMED[0])
        require(len(server.made()) == 1, "a short name has the adapter of its instruction")
        await asyncio.gather(*(client.ask(ONE, 0) for _ in range(options.clients)))
        require(len(server.made()) == 2, f"{options.clients} first requests at once compute one adapter")
        result["first_at_once"] = {"clients": options.clients, "computed": 1, "different": len(client.different)}
        client = Client(server, expected, min(options.tokens, options.load_tokens))
        result["load"] = await client.load(options.requests, options.clients, UNSEEN)
        result["load"]["differences"] = client.different[:5]
        made = [name for name, *_ in server.made()]
        result["adapters_computed"], result["adapters_kept"] = len(made), len(server.folders())
        require(len(made) == len(set(made)) == len(server.folders()) == 18, f"18 adapters were made once each: {made}")
        result["generator_seconds"] = [float(one[3]) for one in server.made()]
        result["refused"] = refusals(server)
        require(all(400 <= status < 500 for status, _ in result["refused"].values()), f"4xx: {result['refused']}")
        result["killed_while_writing"] = await killed_while_writing(server, client)
        result["begun_before_the_kill"] = len(server.half_written())
    return result


async def restart(options, folder: Path, expected: dict) -> dict:
    """Shows that what the killed server left is whole and found again, and compares adapters and inputs with ours."""
    from modeling_tagi import TagiAdapter

    with Server(options, folder) as server:
        for kept in server.folders():
            TagiAdapter.from_pretrained(kept)
        result: dict = {"whole": len(server.folders())}
        client = Client(server, expected, options.tokens)
        for number, instruction in enumerate((*UNSEEN, ONE)):
            await client.ask(instruction, number % len(INPUTS))
        require(not server.made(), "a restarted server finds the adapters")
        result["asked"], result["computed"], result["different"] = client.asked, 0, len(client.different)
        await client.ask(KILLED, 0)
        result["left_by_the_kill"] = len(server.half_written())
        client = Client(server, expected, options.tokens)
        await asyncio.gather(*(client.ask(text, number) for text in INSTRUCTIONS for number in range(len(INPUTS))))
        result["equal"] = {"adapters": len(INSTRUCTIONS), "inputs": len(INPUTS), "tokens": options.tokens,
                           "asked": client.asked, "different": client.different}  # fmt: skip
    return result


async def replicas(options, folder: Path, expected: dict) -> dict:
    """Times first requests, and has two servers with one folder asked for one instruction at once."""
    with Server(options, folder, "shared") as server, Server(options, folder, "shared", 1) as other:
        clients = [Client(one, expected, options.load_tokens) for one in (server, other)]
        for client in clients:
            await client.ask(NAMED[1], 0)  # what a server does once
        require(len(server.made()) + len(other.made()) == 1, "the second server found the first one's adapter")
        first = []
        for instruction in FIRST:
            times = [await clients[0].ask(instruction, 2) for _ in range(3)]
            first.append({"seconds": round(times[0], 3), "later": round(min(times[1:]), 3),
                          "adapter": float(server.made()[-1][1]),
                          "generator": float(server.made()[-1][3])})  # fmt: skip
        before = len(server.made()) + len(other.made())
        await asyncio.gather(*(clients[n % 2].ask(SHARED, n % len(INPUTS)) for n in range(options.clients)))
        computed = len(server.made()) + len(other.made()) - before
        require(computed == 1, f"two servers compute an adapter once, and not {computed} times")
        return {"first_requests": first, "shared": {"clients": options.clients, "servers": 2, "computed": computed,
                "different": sum(len(client.different) for client in clients)}}  # fmt: skip


def main(options):
    folder = Path(options.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    expected = ours(options.checkpoint, options.tokens, folder / "ours.json")
    distinct = {str([row[: options.load_tokens] for row in expected[text]]) for text in INSTRUCTIONS}
    file = folder / "result.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    result["different_in_ours"] = f"{len(distinct)} of {len(INSTRUCTIONS)}, by {options.load_tokens} tokens"
    for part in (requests, restart, replicas):
        if part.__name__ not in result:
            result[part.__name__] = asyncio.run(part(options, folder, expected))
            file.write_text(json.dumps(result, indent=1, ensure_ascii=False))
            print(f"{part.__name__}: {json.dumps(result[part.__name__], ensure_ascii=False)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints" / "smollm2-135m"))
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16, help="of an answer")
    parser.add_argument("--load-tokens", type=int, default=4, help="of an answer to one of many clients")
    parser.add_argument("--loras", type=int, default=16, help="--max-loras")
    parser.add_argument("--port", type=int, default=8137)
    main(parser.parse_args())
