"""Tags from the metadata service of the cloud that a machine runs in.

Amazon, Google and Microsoft answer at the same link-local address, each in its own way and to its own header:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html,
https://cloud.google.com/compute/docs/metadata/querying-metadata,
https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service. All are asked at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from shunter_work_pools.daemon_log import get_logger

log = get_logger()

ADDRESS = "http://169.254.169.254"
#: Seconds that all of it may take.
LIMIT = 1.0


async def cloud_tags(address: str = ADDRESS) -> list[str]:
    """Which cloud, region, zone and type of instance; nothing if no cloud answers in time.

    Args:
        address: of the metadata service.
    """
    # No proxy: the address means this machine.
    async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=LIMIT) as client:
        asked = [asyncio.create_task(_asked(ask, client)) for ask in (_aws, _gcp, _azure)]
        try:
            async with asyncio.timeout(LIMIT):
                for next_answer in asyncio.as_completed(asked):
                    if tags := await next_answer:
                        return [f"{key}={value}" for key, value in tags.items() if value]
        except TimeoutError:
            pass
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
    log.warning("no cloud answers: this agent has no tags of one", address=address)
    return []


Ask = Callable[[httpx.AsyncClient], Awaitable[dict[str, str]]]


async def _asked(ask: Ask, client: httpx.AsyncClient) -> dict[str, str]:
    try:
        return await ask(client)
    except (httpx.HTTPError, ValueError, TypeError, AttributeError, LookupError):
        return {}  # somebody else's service, or nobody's


async def _aws(client: httpx.AsyncClient) -> dict[str, str]:
    token = await client.put("/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    about = await _json(
        client, "/latest/dynamic/instance-identity/document", {"X-aws-ec2-metadata-token": _text(token)}
    )
    return {
        "cloud": "aws",
        "region": str(about["region"]),
        "zone": str(about["availabilityZone"]),
        "instance-type": str(about["instanceType"]),
    }


async def _gcp(client: httpx.AsyncClient) -> dict[str, str]:
    flavor = {"Metadata-Flavor": "Google"}
    zone, kind = await asyncio.gather(
        client.get("/computeMetadata/v1/instance/zone", headers=flavor),
        client.get("/computeMetadata/v1/instance/machine-type", headers=flavor),
    )
    if zone.headers.get("Metadata-Flavor") != "Google":
        return {}
    # projects/123/zones/europe-west1-b
    name = _text(zone).rpartition("/")[2]
    return {
        "cloud": "gcp",
        "region": name.rpartition("-")[0],
        "zone": name,
        "instance-type": _text(kind).rpartition("/")[2],
    }


async def _azure(client: httpx.AsyncClient) -> dict[str, str]:
    about = await _json(
        client, "/metadata/instance/compute?api-version=2021-02-01&format=json", {"Metadata": "true"}
    )
    return {
        "cloud": "azure",
        "region": str(about["location"]),
        "zone": str(about.get("zone") or ""),
        "instance-type": str(about["vmSize"]),
    }


async def _json(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> Any:
    return json.loads(_text(await client.get(path, headers=headers)))


def _text(response: httpx.Response) -> str:
    response.raise_for_status()
    return response.text.strip()
