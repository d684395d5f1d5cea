#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: noise.py [RATE]
#
# What a machine that is in use does beside the tests: RATE times a second (default: 10) a fork with exec, TCP connects that succeed
# and that are refused, over IPv4 and IPv6, a DNS answer, and packets (UDP, and an ICMP error for each that finds a closed port).
# All of it on loopback, in the namespaces of whoever starts it. Ends at SIGTERM, with standard input, or after two hours.
import os
import select
import signal
import socket
import sys
import time

LONGEST = 2 * 3600
RATE = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
# An address of its own: at 127.0.0.53 there is systemd-resolved, and several of these may run.
DNS = (f"127.77.{os.getpid() >> 8 & 255}.{os.getpid() & 255 or 1}", 53)
# noise.example A 198.18.0.1, as an answer to a question of that name.
NAME = b"\5noise\7example\0"
ANSWER = (
    b"\x12\x34\x81\x80\0\1\0\1\0\0\0\0" + NAME + b"\0\1\0\1"
    + NAME + b"\0\1\0\1\0\0\0\x3c\0\4\xc6\x12\0\1"
)


def listener(family, host):
    server = socket.socket(family)
    server.bind((host, 0))
    server.listen()
    return server


def connect(family, address):
    """A connection that is made, or refused, and closed."""
    with socket.socket(family) as client:
        client.connect_ex(address)


def main():
    socket.setdefaulttimeout(5)
    servers = [listener(socket.AF_INET, "127.0.0.1")]
    closed = [(socket.AF_INET, "127.0.0.1")]
    try:
        servers.append(listener(socket.AF_INET6, "::1"))
        closed.append((socket.AF_INET6, "::1"))
    except OSError:
        pass  # a machine without IPv6
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        resolver.bind(DNS)
    except PermissionError:
        resolver.bind((DNS[0], 0))  # only root may answer from port 53
    asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asker.bind(("127.0.0.1", 0))

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Ctrl-C is for who started it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin = time.monotonic()
    rounds = 0
    while time.monotonic() - begin < LONGEST:
        child = os.posix_spawn("/bin/true", ["true"], {})
        try:
            for server in servers:
                connect(server.family, server.getsockname())
                server.accept()[0].close()
            for family, host in closed:
                # Port 1, tcpmux: nobody listens there.
                connect(family, (host, 1))
            asker.sendto(b"?", resolver.getsockname())
            resolver.recvfrom(16)
            resolver.sendto(ANSWER, asker.getsockname())
            asker.recv(512)
            asker.sendto(b"a packet", ("127.0.0.1", 1))
        except OSError:
            pass  # a test may be short of memory, or drop packets
        os.waitpid(child, 0)
        rounds += 1
        pause = max(begin + rounds / RATE - time.monotonic(), 0)
        # Whoever started it closes its end, however it ends.
        if select.select([sys.stdin], [], [], pause)[0] and not os.read(0, 1):
            return


main()
