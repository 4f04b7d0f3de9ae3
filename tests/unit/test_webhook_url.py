"""Which addresses webhooks go to, and how messages are signed."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest
from support.webhook_receiver import SECRET, verify

from app.core.address_ranges import BLOCKED_4, BLOCKED_6, Network, is_public
from app.core.errors import Unprocessable
from app.maintenance.webhooks import WebhookSender, signatures
from app.plan.webhook_url import checked

PRIVATE = [
    *("127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
    *("100.100.100.200", "168.63.129.16", "224.0.0.1", "255.255.255.255", "192.0.2.1"),
    *("::1", "::", "fe80::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "2002:a9fe:a9fe::"),
    *("64:ff9b::7f00:1", "64:ff9b::a00:1", "2001:0:4136:e378:8000:63bf:f5ff:fffe"),
    *("192.0.0.9", "192.0.0.170", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "250.1.1.1"),
    *("::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b:1::1", "100::1", "100:0:0:1::1", "3fff::1", "5f00::1"),
    *("2001:2::1", "2001:20::1", "fec0::1", "fd20:ce::254", "64:ff9b::a9fe:a9fe", "fe80::1%eth0", "4000::1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_of_the_public_internet_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are_not(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://example.com/",
            "example.com",
            "http://",
            "http:///x",
            "https://u:p@example.com/",
            "http://a b/",
        ),
        *("http://127.0.0.1/", "http://[::1]:80/", "http://[::ffff:10.0.0.1]/", "http://localhost:8080/"),
        *(
            "http://x.localhost/",
            "https://169.254.169.254/latest/meta-data",
            "http://exämple.com",
            "http://e:x/",
        ),
    ],
)
def test_a_url_that_cannot_be_is_refused_at_the_post(url: str) -> None:
    with pytest.raises(Unprocessable, match="webhook_url"):
        checked(url, allow_private=False)


ODD_HOSTS = [
    *("127.1", "127.0.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.0.0.01", "127.0.0.0x1"),
    *("1.1", "0x", "0X7F.1", "1.1.1.256", "127.1.", "2130706433.", "1.2.3.4.5", "8.8.8.010", "017700000001"),
    *("%31%32%37.0.0.1", "127.0.0.1%2f", "local%68ost", "[fe80::1%25eth0]", "[fe80::1%eth0]", "[v1.x]"),
    *("a..b", "a_b..", "ex!mple.com", "x$.com", "-x.com", "[::1", "127.0.0.1\\.example.com", "::1"),
    *("\uff11\uff12\uff17.0.0.1", "127\u30020.0.1", "\u24db\u24de\u24d2\u24d0\u24db\u24d7ost"),
]
NEAR_HOSTS = [
    *("127.0.0.1.", "localhost", "LOCALHOST", "localhost.", "a.localhost.", "localhost.localdomain"),
    *("ip6-localhost", "[::1]", "[::ffff:1.1.1.1]", "[::127.0.0.1]", "0.0.0.0", "[::]", "[::ffff:7f00:1]"),
]


@pytest.mark.parametrize("host", ODD_HOSTS)
@pytest.mark.parametrize("allowed", [False, True])
def test_spellings_that_only_a_resolver_reads_are_refused_wherever_it_may_go(
    host: str, *, allowed: bool
) -> None:
    for url in (f"http://{host}/", f"https://{host}:8080/x"):
        with pytest.raises(Unprocessable, match="webhook_url"):
            checked(url, allow_private=allowed)


@pytest.mark.parametrize("host", NEAR_HOSTS)
def test_this_machine_is_known_by_all_its_names(host: str) -> None:
    with pytest.raises(Unprocessable, match="not a public address"):
        checked(f"http://{host}/", allow_private=False)
    assert checked(f"http://{host}/", allow_private=True)


@pytest.mark.parametrize("at", ["u@", "u:p@", ":p@", "@", "example.com@", "1.1.1.1:80@"])
def test_a_url_with_a_name_before_its_host_is_refused(at: str) -> None:
    with pytest.raises(Unprocessable, match="name or password"):
        checked(f"http://{at}example.com/", allow_private=True)


@pytest.mark.parametrize(
    "host",
    [
        *("example.com", "example.com.", "8.8.8.8", "8.8.8.8.", "[2606:4700::1111]", "1und1.de", "x.0xyz"),
        *("a_b.c", "xn--exmple-cua.com", "3com.com", "localhost.example.com", "1.2.3.4.example.com"),
    ],
)
def test_ordinary_names_and_addresses_stay_usable(host: str) -> None:
    assert checked(f"https://{host}:8443/hook", allow_private=False)


@pytest.mark.parametrize("network", [*BLOCKED_4, *BLOCKED_6])
def test_a_range_is_blocked_from_its_first_to_its_last_address(network: Network) -> None:
    assert not is_public(network[0])
    assert not is_public(network[-1])


def test_a_private_network_can_be_allowed_and_names_are_looked_at_later() -> None:
    assert checked("http://10.0.0.1/x", allow_private=True)
    assert checked("https://internal.example.com/x?y=1", allow_private=False)


@pytest.mark.parametrize("address", PRIVATE)
async def test_a_name_that_resolves_to_one_is_refused_at_the_try(address: str) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return ["1.1.1.1", address]

    sender = WebhookSender("s", timeout_s=30, allow_private=False, resolver=resolver)
    sent = await sender.send("https://rebind.example.com/", "msg_1", b"{}")
    assert sent.status is None
    assert "not a public address" in (sent.error or "")


@pytest.mark.parametrize("secret", [SECRET, "any-text-at-all"])
def test_the_documented_way_verifies_what_is_sent_and_nothing_else(secret: str) -> None:
    """Also while two secrets are set, for one is to go."""
    now, body = int(time.time()), b'{"type":"run.succeeded"}'
    signature = signatures(f"another {secret}", "msg_1", now, body)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(now), "webhook-signature": signature}
    verify(secret, headers, body)
    verify("another", headers, body)
    with pytest.raises(ValueError, match="not signed"):
        verify(secret, headers, body + b" ")
    with pytest.raises(ValueError, match="too old"):
        verify(secret, headers | {"webhook-timestamp": str(now - 1000)}, body)


def test_a_signature_is_that_of_the_specification() -> None:
    """The example of the Standard Webhooks specification's reference implementations."""
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    assert signatures(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )
