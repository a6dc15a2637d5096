"""peer: the Python SDK (nacos-sdk-python 1.0.0) doing what client.lua does.

  peer.py watch ADDRESS GROUP KEYS [PULLING_TIMEOUT]
  peer.py add ADDRESS GROUP KEYS
  peer.py read ADDRESS GROUP KEYS WAYS
"""
import re
import sys
import threading
import time

import nacos

CONTENT = re.compile(r"^(\d+)\.([^.]*)")


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def watch(client, group, keys):
    """The SDK reads the present value while a watcher is added and calls back only at changes."""
    counts, last, lock = {}, {}, threading.Lock()

    def on_change(change):
        seen = time.monotonic_ns()
        sent, tag = CONTENT.match(change["content"]).groups()
        if not tag.startswith("all"):
            say("change %s %s %d" % (tag, sent, seen))
            return
        with lock:
            if last.get(change["data_id"]) != tag:
                last[change["data_id"]] = tag
                counts[tag] = counts.get(tag, 0) + 1
                if counts[tag] == keys:
                    say("all %s %d" % (tag, seen))

    for i in range(keys):
        client.add_config_watcher("cfg-%d" % i, group, on_change)
    if keys == 0:
        client.get_config("cfg-0", group)
    say("ready %d" % time.monotonic_ns())
    time.sleep(3600)


def add(client, group, keys):
    for i in range(keys + 1):
        arrived = threading.Event()

        def on_change(change):
            sent, tag = CONTENT.match(change["content"]).groups()
            say("change %s %s %d" % (tag, sent, time.monotonic_ns()))
            arrived.set()

        client.add_config_watcher("cfg-%d" % i, group, on_change)
        say("added %d" % i)
        if i > 0:
            arrived.wait(60)
        time.sleep(1)


def read(client, group, keys, ways):
    for line in sys.stdin:
        count = int(line)
        wall, cpu = time.monotonic_ns(), time.process_time_ns()

        def reader(first):
            for i in range(first, count, ways):
                client.get_config("cfg-%d" % (i % keys), group)

        threads = [threading.Thread(target=reader, args=(i,)) for i in range(ways)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        say("done %d %d" % (time.monotonic_ns() - wall, time.process_time_ns() - cpu))


if __name__ == "__main__":
    mode, address, group, keys = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    client = nacos.NacosClient(address)
    if mode == "watch":
        if len(sys.argv) > 5:
            client.set_options(pulling_timeout=int(sys.argv[5]))
        watch(client, group, keys)
    elif mode == "add":
        add(client, group, keys)
    else:
        read(client, group, keys, int(sys.argv[5]))
