# SPDX-License-Identifier: MIT OR Apache-2.0
"""usage: echo.py server PORT | echo.py client PORT SEED TRANSFERS MOST

Streams of asyncio. The server sends back what it gets until the end. The client sends and reads at once, and compares.
"""
import asyncio
import random
import sys


async def echo(reader, writer):
    while data := await reader.read(random.randint(1, 300_000)):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def server(port):
    async with await asyncio.start_server(echo, "127.0.0.1", port) as listener:
        await listener.serve_forever()


async def transfer(port, chance, size):
    data = chance.randbytes(size)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send():
        at = 0
        while at < size:
            many = int(300_000 ** chance.random())
            writer.write(data[at : at + many])
            await writer.drain()
            at += many
        writer.write_eof()

    sending = asyncio.create_task(send())
    got = await reader.read(-1)
    await sending
    writer.close()
    if got != data:
        sys.exit(f"{len(got)} bytes of {size} came back, or others")


async def client(port, seed, transfers, most):
    chance = random.Random(seed)
    sizes = [1024, most] + [int(1024 * (most / 1024) ** chance.random()) for _ in range(transfers - 2)]
    chance.shuffle(sizes)
    while sizes:
        some = [asyncio.wait_for(transfer(port, chance, sizes.pop()), 30) for _ in range(min(4, len(sizes)))]
        await asyncio.gather(*some)
    print("ok", transfers)


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    asyncio.run({"server": server, "client": client}[what](*map(int, numbers)))
