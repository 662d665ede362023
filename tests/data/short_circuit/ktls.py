"""`ktls.py serve <port>` and `ktls.py <address>`: TLS records made and read by the kernel, with a key that both know."""
import errno
import socket
import struct
import sys

TCP_ULP, SOL_TLS, TLS_TX, TLS_RX = 31, 282, 1, 2
# struct tls12_crypto_info_aes_gcm_128: version, cipher, iv, key, salt, sequence.
SECRET = struct.pack("=HH", 0x0303, 51) + b"i" * 8 + b"k" * 16 + b"salt" + bytes(8)


def hand_over(connection, direction):
    connection.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    connection.setsockopt(SOL_TLS, direction, SECRET)


def serve(port):
    listener = socket.create_server(("", port))
    while True:
        connection, _ = listener.accept()
        try:
            hand_over(connection, TLS_RX)
            said = connection.recv(100)
        except OSError as error:
            said = errno.errorcode[error.errno].encode()
        connection.sendall(b"heard " + said)
        connection.close()


def ask(address):
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    except OSError as error:
        # Without a connection there is no TLS, but a kernel that has none says something else.
        if error.errno == errno.ENOENT:
            print("no TLS in this kernel")
            return
    connection = socket.create_connection((address, 80), 10)
    try:
        hand_over(connection, TLS_TX)
    except OSError as error:
        print("refused", errno.errorcode[error.errno])
        return
    connection.sendall(b"by the kernel")
    print(connection.recv(100).decode())


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    ask(sys.argv[1])
