"""The address and the token that a client takes, and what it says of those that it does not."""

from __future__ import annotations

import pytest

from tailrun import Client, Unusable
from tailrun.bodies import authorization, base_url


@pytest.mark.parametrize("around", ["{}", "{}\n", "{}\r\n", " {} ", "\ufeff{}", "{}/", "\t{}//\r"])
def test_what_stands_around_an_address_is_left_out(around: str) -> None:
    assert base_url(around.format("http://127.0.0.1:8080")) == "http://127.0.0.1:8080"


@pytest.mark.parametrize("around", ["{}", "{}\n", "{}\r", " {}\t", "\ufeff{}"])
def test_what_stands_around_a_token_is_left_out(around: str) -> None:
    assert authorization(around.format("tr_x")) == "Bearer tr_x"


@pytest.mark.parametrize("url", ["", "localhost", "http://", "http://[::1", "http://h:0", "http://h:99999"])
@pytest.mark.parametrize("end", ["", "/p\x07", "/p q"])
def test_another_address_is_refused_before_anything_is_sent(url: str, end: str) -> None:
    with pytest.raises(Unusable, match="no address"):
        Client(url + end, "t")


@pytest.mark.parametrize("token", ["", "\r\n", "secret\nx", "sécret", "secret\x00", "\udcffsecret"])
def test_another_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(Unusable) as caught:
        Client("http://h", token)
    assert "cret" not in str(caught.value)
