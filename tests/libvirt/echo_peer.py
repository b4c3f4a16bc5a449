"""The peer of the guest's TCP echo, run on a host: `echo_peer.py ADDRESS PORT`. Sends numbers without end,
compares what comes back, and when its standard input ends says how much that was, or what was wrong.
"""

import socket
import struct
import sys
import threading

CHUNK = 16 << 10


def numbers(offset: int, length: int) -> bytes:
    return struct.pack(f"<{length // 8}Q", *range(offset // 8, (offset + length) // 8))


def wait_for_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main(address: str, port: str) -> None:
    stop = threading.Event()
    with socket.create_server((address, int(port))) as listener:
        print("listening", flush=True)
        connection, _ = listener.accept()
    with connection:
        sent = [0]

        def send() -> None:
            while not stop.is_set():
                connection.sendall(numbers(sent[0], CHUNK))
                sent[0] += CHUNK
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        threading.Thread(target=wait_for_end, args=(stop,), daemon=True).start()
        received, wrong = 0, 0
        with connection.makefile("rb") as stream:
            while data := stream.read(CHUNK):
                wrong += data != numbers(received, len(data))
                received += len(data)
        sender.join()
    print(f"sent {sent[0]} received {received} wrong {wrong}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
