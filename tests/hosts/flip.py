#!/usr/bin/env python3
"""A bad cable: hands TCP connections on to a host, and flips one bit of what it carries, once.

usage: flip.py PORT HOST up|down AFTER

Listens on PORT; `up` is what goes to port 22 of HOST, `down` what comes from there. The bit is the lowest one of byte number AFTER of
the first connection that carries so many. Says "ready" when it listens, and "flipped" when it has done that.
"""
import socket
import sys
import threading

port, host, way, after = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
once = threading.Lock()


def carry(source, target, flips):
    carried = 0
    try:
        while piece := source.recv(65536):
            if flips and carried <= after < carried + len(piece) and once.acquire(blocking=False):
                piece = bytearray(piece)
                piece[after - carried] ^= 1
                print("flipped", flush=True)
            carried += len(piece)
            target.sendall(piece)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


server = socket.create_server(("", port), backlog=16)
print("ready", flush=True)
while True:
    near, _ = server.accept()
    far = socket.create_connection((host, 22))
    threading.Thread(target=carry, args=(near, far, way == "up"), daemon=True).start()
    threading.Thread(target=carry, args=(far, near, way == "down"), daemon=True).start()
