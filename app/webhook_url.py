"""Which addresses a webhook may go to: checked at the POST as far as a URL tells, and again at each delivery.

Whoever may make a run could otherwise make a worker talk to what only the worker can reach: its own
machine, its network, the metadata service of its cloud. A name is judged by what it resolves to, at
the moment of connecting, for it may resolve to something else than before.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, urlsplit

from app.errors import Unprocessable

MAX_URL = 2000
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_CLOUD = (IPv4Network("168.63.129.16/32"),)
"""Public by its number, but a cloud's own: Azure's wire server."""


def checked(url: str, *, allow_private: bool) -> str:
    """Return the URL if a webhook may be asked for with it.

    Raises:
        Unprocessable: it is no http(s) URL, holds a password, or names an address that is refused.
    """
    parts = _split(url)
    host = parts.hostname or ""
    if parts.username is not None or parts.password is not None:
        raise Unprocessable("webhook_url must not hold a name or password.")
    try:
        address = ip_address(host)
    except ValueError:
        local = host == "localhost" or host.endswith(".localhost")
    else:
        local = refused(address)
    if local and not allow_private:
        raise Unprocessable(f"webhook_url: {host} is not a public address (WEBHOOK_ALLOW_PRIVATE).")
    return url


def _split(url: str) -> SplitResult:
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise Unprocessable(f"webhook_url must be a URL of at most {MAX_URL} ASCII characters.")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise Unprocessable("webhook_url must begin with https:// or http:// and name a host.")
    return urlsplit(url)


def refused(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is not of the public internet; one that is packed into another counts as well."""
    return any(_not_public(one) for one in (address, *_within(address)))


def _not_public(address: IPv4Address | IPv6Address) -> bool:
    old = isinstance(address, IPv4Address)
    special = old and (address.is_reserved or any(address in network for network in _CLOUD))
    return special or not address.is_global or address.is_multicast


def _within(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses that an IPv6 address leads to."""
    if not isinstance(address, IPv6Address):
        return
    for packed in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())):
        if packed is not None:
            yield packed
    if any(address in network for network in _NAT64):
        yield IPv4Address(int(address) & 0xFFFF_FFFF)
