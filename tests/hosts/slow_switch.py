#!/usr/bin/env python3
"""slow_switch.py - a network switch that delays every packet and loses some, for kernels without netem.

usage: slow_switch.py MILLISECONDS PERCENT REPORT NAMESPACE...
Makes a tap interface for every namespace (eth0 there, br0 in the first), prints "ready", then passes frames on: to all others
when the destination is unknown, each after MILLISECONDS, PERCENT of them lost at random (a fixed seed). Writes to REPORT how many
frames were passed on and how many were lost; ends on SIGTERM.
"""
import fcntl
import heapq
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000


def make_port(i, namespace):
    """A tap interface whose other end is the file descriptor that comes back. The first namespace is the one this runs in."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = "br0" if i == 0 else f"slow{i}"
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    if i > 0:
        subprocess.run(["ip", "link", "set", name, "netns", namespace, "name", "eth0"], check=True)
    return fd


def main():
    delay, loss = float(sys.argv[1]) / 1000, float(sys.argv[2]) / 100
    report, namespaces = sys.argv[3], sys.argv[4:]
    ports = [make_port(i, n) for i, n in enumerate(namespaces)]
    dice = random.Random(1)
    port_of, queue, counts, number = {}, [], {"passed": 0, "lost": 0}, 0

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("ready", flush=True)
    try:
        while True:
            wait = max(0, queue[0][0] - time.monotonic()) if queue else None
            for fd in select.select(ports, [], [], wait)[0]:
                try:
                    frame = os.read(fd, 65536)
                except BlockingIOError:
                    continue
                port_of[frame[6:12]] = fd
                if dice.random() < loss:
                    counts["lost"] += 1
                    continue
                to = port_of.get(frame[:6])
                heapq.heappush(queue, (time.monotonic() + delay, number, fd, to, frame))
                number += 1
            while queue and queue[0][0] <= time.monotonic():
                _, _, source, to, frame = heapq.heappop(queue)
                for fd in [to] if to is not None else ports:
                    if fd != source:
                        try:
                            os.write(fd, frame)
                        except OSError:
                            pass  # a full queue or an interface that is down loses packets
                counts["passed"] += 1
    finally:
        with open(report, "w", encoding="ascii") as f:
            f.write(f"{counts['passed']} passed, {counts['lost']} lost\n")


if __name__ == "__main__":
    main()
