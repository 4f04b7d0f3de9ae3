"""Which variables hold secrets: by whole words of their names, and never what is plain."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.stream.secret_values import inside, is_plain, is_secret_name, secrets_in


def words(text: str) -> list[str]:
    return text.split()


VALUE = "zq9-s3cr3t-val"

SECRET = words(
    """
    DB_PASS SMTP_PASS MYSQL_PWD GITHUB_PAT SSH_PASSPHRASE ENCRYPTION_KEY STRIPE_KEY SIGNING_KEY PASSWD
    PASSPHRASE APIKEY ACCESS_KEY AUTH CREDENTIALS DSN COOKIE SESSION PRIVATE_KEY JWT BEARER apiKey
    dbPassword PGPASSWORD AUTHTOKEN aws_secret_access_key AWS_ACCESS_KEY_ID SECRET_KEY_BASE SESSION_ID
    TOKEN2 api-key authToken REDIS_AUTH OPENAI_API_KEY SECRET_PROD SIGNING_KEY_OLD Authorization
    client_secret SENTRY_DSN SLACK_WEBHOOK_URL AccountKey SharedAccessKey X-API-Key _auth refreshToken
    ENCRYPTION_KEY_B64 PASSWORD_1 clientSecret APIToken SSHPASS user.password KEY
    """,
)

OPEN = words(
    """
    TOKENIZER TOKENIZERS_PARALLELISM KEYBOARD MONKEY PASSENGERS AUTHOR AUTHORITY SECRETARY TOKEN_TTL
    PASSWORD_FILE PWD OLDPWD AUTH_MODE SESSION_TYPE PUBLIC_KEY PRIMARY_KEY KEY_ID COMPASS BYPASS PASSIVE
    PATH PATTERN KEYMAP HOCKEY PATIENT COOKIE_DOMAIN JWT_ISSUER SSH_AUTH_SOCK passThrough KEYWORDS
    SESSIONS_DIR CREDENTIALS_PATH PASSPORT_COUNTRY DATABASE_URL AUTH_URL TOKEN_LIMIT MAX_TOKENS_COUNT
    PRIVATE_IP SORT_KEY tokenizerModel
    """,
)

PLAIN = words(
    """
    true False 4096 0.7 -1 1_000_000 1e5 60s 10MiB 50% auto none basic redis postgres /etc/ssl/key.pem
    /run/secrets/db ~/.ssh/a.pem 2026-11-30 10.0.0.1:80
    """,
)


@pytest.mark.parametrize("name", SECRET)
def test_names_of_secrets_are_known_in_every_spelling(name: str) -> None:
    assert is_secret_name(name)
    assert VALUE in secrets_in({name: VALUE})


@pytest.mark.parametrize("name", OPEN)
def test_names_that_only_look_alike_hold_no_secret(name: str) -> None:
    assert list(secrets_in({name: VALUE})) == []


@pytest.mark.parametrize("value", PLAIN)
def test_plain_values_are_no_secrets_whatever_they_are_called(value: str) -> None:
    assert is_plain(value)
    assert list(secrets_in({"MAX_TOKENS": value, "PASSWORD": value})) == []


@pytest.mark.parametrize(
    "value", [VALUE, "hunter2", "correcthorse", "123456789012", "Zz9!", "/9j4AAQSkZJRg=="]
)
def test_what_may_be_a_password_is_not_plain(value: str) -> None:
    assert list(secrets_in({"DB_PASS": value})) == [value]


@pytest.mark.parametrize(
    ("value", "secrets"),
    [
        ("postgres://u:p%40ss-w0rd@db/x", ["p%40ss-w0rd", "p@ss-w0rd"]),
        ("postgres://u:p/w#1?x@db/x", ["p/w#1?x"]),
        ("redis://:pw-12345@h:1/0", ["pw-12345"]),
        ("https://0123456789abcdef0123@git.example/x", ["0123456789abcdef0123"]),
        ("https://joe-bot:v1.abc-123@git.example/x", ["v1.abc-123"]),
        ("host=db password=sup3rs3cr user=x", ["sup3rs3cr"]),
        ("host=db password='sup3r s3cr'", ["sup3r s3cr"]),
        ("Server=db;User Id=sa;Password=Pa55-w;", ["Pa55-w"]),
        ("AccountName=x;AccountKey=abcDEF123==;EndpointSuffix=a", ["abcDEF123=="]),
        ("user:pa55w0rd@tcp(h:3306)/db", ["pa55w0rd"]),
        ("https://h/y?token=abcdef123&z=1", ["abcdef123"]),
        ('{"a": {"password": "pw-123", "user": "x"}, "l": ["amqp://a:bbb-1@h"]}', ["bbb-1", "pw-123"]),
        ("postgres://localhost/db", []),
        ("https://example.com/a:b@c", []),
        ("key: value", []),
    ],
)
def test_secrets_inside_of_other_values_are_found_whatever_the_name(value: str, secrets: list[str]) -> None:
    assert set(secrets_in({"SOMETHING": value})) == set(secrets)


def test_parts_of_a_secret_that_are_printed_alone_are_secret_too() -> None:
    found = set(secrets_in({"AUTHORIZATION": "Bearer t0k3n-abc", "API_TOKENS": "first-0001,second-0002"}))
    assert {"t0k3n-abc", "first-0001", "second-0002"} < found
    assert "s3cr3t-pw" in secrets_in({"BASIC_AUTH": "joe:s3cr3t-pw"})


def test_what_looks_like_a_token_is_secret_whatever_its_name() -> None:
    token = "sk-" + "a1B2" * 8
    assert list(secrets_in({"X": token})) == [token]


def test_an_address_that_gives_nothing_away_is_shown() -> None:
    assert list(secrets_in({"DSN": "postgres://localhost:5432/db"})) == []


@given(st.dictionaries(st.text(), st.text()))
def test_no_environment_breaks_it(env: dict[str, str]) -> None:
    list(secrets_in(env))


HOSTILE = [
    "a={",
    'a="',
    "a://",
    "a://b:c@",
    "[",
    "a=b ",
    "Bearer ",
    "a.",
    "1",
    "@",
    ":",
    "a:b@",
    '{"a":',
    "a ",
    "=",
    "aA",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_grows_with_the_length_of_a_value(piece: str) -> None:
    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            list(inside(text))
            list(secrets_in({"TOKEN": text, text: text}))
            best = min(best, time.process_time() - began)
        return max(best, 0.002)

    times = [seconds(size) for size in (8_000, 32_000, 128_000)]
    assert all(after < 10 * before for before, after in pairwise(times)), times
