"""DNS with nothing but Python's standard library, for the checks: a server that gives every name one address, and a client."""

import socket
import struct
import sys

ADDRESS = bytes([192, 0, 2, 1])
TTL = 300


def serve():
    """Prints the port once it is bound, then answers until it is ended."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    print(server.getsockname()[1], flush=True)
    while True:
        query, client = server.recvfrom(4096)
        end = question_end(query)
        header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
        record = struct.pack(">HHHIH", 0xC00C, 1, 1, TTL, len(ADDRESS)) + ADDRESS
        server.sendto(header + query[12:end] + record, client)


def ask(host, port, name):
    """Prints rcode and number of answers."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    query = struct.pack(">HHHHHH", 0x2A2A, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(5)
    client.sendto(query, (host, int(port)))
    reply = client.recv(4096)
    ident, flags, _, answers = struct.unpack(">HHHH", reply[:8])
    assert ident == 0x2A2A and flags & 0x8000, reply
    print(f"rcode {flags & 15}, {answers} answers")


def question_end(query):
    at = 12
    while query[at]:
        at += query[at] + 1
    return at + 5


if __name__ == "__main__":
    {"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
