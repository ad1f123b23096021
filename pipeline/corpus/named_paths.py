"""What a manifest, a table or a Parquet file may name: nothing outside the store that it is in, unless it is local.

Whoever can write a manifest in a bucket chooses what a run reads with the rights of its user. So a manifest in a store
names objects of this store only. A local manifest is the user's own, and names what the user may read; but no manifest
leads to the address at which a cloud gives credentials to its machines.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from typing import Final
from urllib.parse import urlsplit

from pipeline.errors import AudioError, ErrorCode
from pipeline.storage.uris import store_of

_ALLOWED_BY: Final = "--allow-any-path reads it"
# Addresses of metadata services that are not link-local: of AWS by IPv6, Alibaba and Oracle.
_METADATA: Final = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192")))


def check_named(uri: str, source: str) -> None:
    """Check that the manifest, table or Parquet file at `source` may name the object at `uri`.

    Raises:
        AudioError: BAD_ROW: it may not.
    """
    store, own_store = store_of(uri), store_of(source)
    if not own_store:
        if store.startswith("http://") and _is_metadata_service(store):
            message = f"{uri} is at an address of the machine's own network, where clouds keep credentials"
            raise AudioError(ErrorCode.BAD_ROW, f"{message}: {_ALLOWED_BY}")
    elif store != own_store:
        where = f"in {store}" if store else "a local file"
        message = f"{uri} is {where}, and {source} may name what is in {own_store}"
        raise AudioError(ErrorCode.BAD_ROW, f"{message}: {_ALLOWED_BY}")
    elif ".." in uri.split("/"):  # relative paths have none left; a server may take it for the directory above
        raise AudioError(ErrorCode.BAD_ROW, f"{uri} has `..` in its path: {_ALLOWED_BY}")


@functools.lru_cache(maxsize=1000)
def _is_metadata_service(store: str) -> bool:
    """Whether a host has a link-local address, or another at which a cloud gives credentials to its machines."""
    try:
        host = urlsplit(store).hostname or ""
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)  # it reads 0xa9fea9fe too
    except (OSError, ValueError):  # there is no such host: opening the object says so
        return False
    addresses = (ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found)
    return any(_unmapped(address).is_link_local or address in _METADATA for address in addresses)


def _unmapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address in an IPv6 address that stands for one."""
    return (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address
