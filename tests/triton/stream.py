"""`python stream.py PORT FOLDER RATE`: POST /detect with the folder's images in turn until standard input ends.

Open loop: each request goes out at its own time, whatever became of the others, and its latency runs from that time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp


async def main(port: int, folder: Path, rate_per_s: float) -> None:
    images = [path.read_bytes() for path in sorted(folder.iterdir(), key=lambda path: int(path.stem))]
    url, answers, running = f"http://127.0.0.1:{port}/detect", [], set()
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session:

        async def ask(image: int, due_s: float) -> None:
            status, headers, body = 0, {}, None
            try:
                async with session.post(url, data=images[image], headers={"Content-Type": "image/jpeg"}) as response:
                    body, status, headers = await response.json(), response.status, dict(response.headers)
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
                body = repr(error)
            now = time.monotonic()
            answers.append(
                {
                    "image": image,
                    "at_s": due_s - start_s,
                    "latency_s": now - due_s,
                    "status": status,
                    "headers": headers,
                    "body": body,
                    "clock_s": now,
                }
            )

        print("ready", flush=True)
        start_s, number = time.monotonic(), 0
        while not ended.done():
            due_s = start_s + number / rate_per_s
            await asyncio.sleep(due_s - time.monotonic())
            task = asyncio.get_running_loop().create_task(ask(number % len(images), due_s))
            running.add(task)
            task.add_done_callback(running.discard)
            number += 1
        await asyncio.gather(*running)
    print("\n".join(json.dumps(answer) for answer in answers))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
