"""peer_grpc: the Python SDK over gRPC (nacos-sdk-python 3.x) doing what client.lua does.

  peer_grpc.py watch ADDRESS GROUP KEYS
"""
import asyncio
import logging
import re
import sys
import time

from v2.nacos import ClientConfigBuilder, NacosConfigService

CONTENT = re.compile(r"^(\d+)\.([^.]*)")


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def watch(address, group, keys):
    known = set()

    async def on_change(*names_and_content):
        seen = time.monotonic_ns()
        *names, content = names_and_content
        names = tuple(names)
        if names in known:
            sent, tag = CONTENT.match(content).groups()
            say("change %s %s %d" % (tag, sent, seen))
            return
        known.add(names)
        if len(known) == keys:
            say("ready %d" % seen)

    config = ClientConfigBuilder().server_address(address).log_level(logging.ERROR).log_dir(".").cache_dir(".").build()
    client = await NacosConfigService.create_config_service(config)
    for i in range(keys):
        await client.add_listener("cfg-%d" % i, group, on_change)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(watch(sys.argv[2], sys.argv[3], int(sys.argv[4])))
