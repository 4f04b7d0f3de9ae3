"""What is asked of the certificates of a cluster's API server."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from app.k8s.credentials import _tls


def test_old_authorities_are_trusted_as_kubectl_trusts_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Python 3.13 refuses authorities without key usage, which many clusters have, if it is let."""
    default = ssl.create_default_context

    def as_in_3_13(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        context = default(*args, **kwargs)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", as_in_3_13)
    context = _tls(tmp_path, {}, {})
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
