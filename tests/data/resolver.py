"""A resolver that keeps its socket: resolver.py SERVER NAME

Asks for the address of NAME at each line of its standard input, over one UDP socket that is connected to SERVER
from the start. Says what came of it, and whom the socket takes for its peer.
"""
import errno, socket, struct, sys

server, name = sys.argv[1:3]
labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
s = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(3)
s.connect((server, 53))
print("connected", flush=True)
for number, _ in enumerate(sys.stdin):
    question = struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)
    try:
        s.send(question)
        answer = s.recv(2048)
        asked, flags, _, count = struct.unpack("!4H", answer[:8])
        right = asked == number and flags & 0x800F == 0x8000 and count > 0
        said = "%s from %s" % (socket.inet_ntoa(answer[-4:]) if right else "wrong", s.getpeername()[0])
    except OSError as error:
        said = errno.errorcode.get(error.errno, type(error).__name__)
    print(number, said, flush=True)
