"""Requests on connections that stay open: ask.py ADDRESS PORT CONNECTIONS STOP_FILE

Ends when STOP_FILE is there, and prints one line of JSON: how many requests were answered with 200, when the
last of them was sent, and how many connections are left.
"""
import http.client, json, os, sys, threading, time

address, port, connections, stop_file = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
TIMEOUT_S = 30
lock = threading.Lock()
total = {"answered": 0, "last": 0.0, "left": 0}
begun = threading.Barrier(connections + 1)
stopping = False


def ask():
    connection = http.client.HTTPConnection(address, port, timeout=TIMEOUT_S)
    is_first = True
    try:
        while not stopping:
            sent = time.time()
            connection.request("GET", "/")
            reply = connection.getresponse()
            reply.read()
            if reply.status != 200 or reply.will_close:
                return
            with lock:
                total["answered"] += 1
                total["last"] = max(total["last"], sent)
            if is_first:
                # From now on a new connection would be another agent's.
                connection.auto_open = 0
                is_first = False
                begun.wait(TIMEOUT_S)
            time.sleep(0.002)
        with lock:
            total["left"] += 1
    except (OSError, http.client.HTTPException):
        pass


threads = [threading.Thread(target=ask) for _ in range(connections)]
for thread in threads:
    thread.start()
begun.wait(TIMEOUT_S)
print("asking", flush=True)
while not os.path.exists(stop_file):
    time.sleep(0.02)
stopping = True
for thread in threads:
    thread.join()
print(json.dumps(total), flush=True)
