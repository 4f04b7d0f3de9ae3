"""Which addresses are not of the public internet: one list, for whoever must not be led elsewhere.

A list of our own and not `ipaddress.is_global`, whose answers changed between patch releases of
Python. It holds the IANA special-purpose registries (RFC 6890 and its successors) of both families,
multicast, what is reserved or was never allocated, and what clouds use for themselves. The chart's
`tools.network.blockedRanges` and `blockedRanges6` are the same list; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

BLOCKED_4 = tuple(
    IPv4Network(each)
    for each in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared, of carriers and clouds
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # public by its number, but Azure's own
        "169.254.0.0/16",  # link-local, with the metadata services of clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)

_NAT64 = IPv6Network("64:ff9b::/96")


def _translated(network: IPv4Network) -> IPv6Network:
    """Return where NAT64's well-known prefix leads to `network` (RFC 6052)."""
    packed = int(_NAT64.network_address) | int(network.network_address)
    return IPv6Network((packed, _NAT64.prefixlen + network.prefixlen))


BLOCKED_6 = (
    *(
        IPv6Network(each)
        for each in (
            "::/10",  # unspecified, loopback, and IPv4 addresses that are mapped, translated or compatible
            "64:ff9b:1::/48",  # NAT64 of a network's own
            "100::/8",  # discard-only, dummy
            "200::/7",  # reserved
            "400::/6",  # never allocated
            "800::/5",  # never allocated
            "1000::/4",  # never allocated
            "2001::/23",  # IETF protocol assignments: Teredo, benchmarks, ORCHID
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
            "4000::/2",  # never allocated, but for 5f00::/16: segment routing
            "8000::/2",  # never allocated
            "c000::/3",  # never allocated
            "e000::/4",  # never allocated
            "f000::/5",  # never allocated
            "f800::/6",  # never allocated
            "fc00::/7",  # unique local
            "fe00::/9",  # never allocated
            "fe80::/10",  # link-local
            "fec0::/10",  # site-local
            "ff00::/8",  # multicast
        )
    ),
    *(_translated(each) for each in BLOCKED_4),
)


def is_public(address: Address) -> bool:
    """Whether an address is of the public internet; a scope (`fe80::1%eth0`) plays no part."""
    blocked: Iterable[Network] = BLOCKED_4 if isinstance(address, IPv4Address) else BLOCKED_6
    return not any(address in network for network in blocked)


def literal(host: str) -> Address | None:
    """Return the address that `host` spells in full, None for a name.

    Raises:
        ValueError: it is one of the short, hexadecimal or octal spellings that resolvers take for an
            address (`127.1`, `2130706433`, `0x7f.1`), or an address with a scope.
    """
    bare = host.removesuffix(".")
    if ":" in bare:
        address = ip_address(bare)
        if isinstance(address, IPv6Address) and address.scope_id:
            raise ValueError("a scope is of one machine")
        return address
    if not _ends_in_a_number(bare):
        return None
    return IPv4Address(bare)  # four decimal numbers without leading zeros; anything else is refused


def _ends_in_a_number(host: str) -> bool:
    """Whether resolvers may read `host` as an IPv4 address (the URL standard's rule)."""
    last = host.rpartition(".")[2].lower()
    if last.startswith("0x"):
        return all(each in "0123456789abcdef" for each in last[2:])
    return last.isdecimal()
