"""Which addresses webhooks go to, and how messages are signed."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest
from webhook_receiver import SECRET, verify

from app.errors import Unprocessable
from app.webhook_url import checked, refused
from app.worker.webhook_sender import WebhookSender, signatures

PRIVATE = [
    *("127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
    *("100.100.100.200", "168.63.129.16", "224.0.0.1", "255.255.255.255", "192.0.2.1"),
    *("::1", "::", "fe80::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "2002:a9fe:a9fe::"),
    *("64:ff9b::7f00:1", "64:ff9b::a00:1", "2001:0:4136:e378:8000:63bf:f5ff:fffe"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_of_the_public_internet_is_refused(address: str) -> None:
    assert refused(ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are_not(address: str) -> None:
    assert not refused(ip_address(address))


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
