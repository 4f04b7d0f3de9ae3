"""Which paths name a file of a workspace, and in which one form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import Unprocessable
from app.core.names import MAX_PATH_BYTES, is_normal, normalise, normalise_prefix, parents, run_key


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("a.txt", "a.txt"),
        ("a//b/./c", "a/b/c"),
        ("./a", "a"),
        ("a/...", "a/..."),
        ("..a/b..", "..a/b.."),
        (".hidden", ".hidden"),
        ("with space/ä ö/日本.txt", "with space/ä ö/日本.txt"),
        ("a%2e%2e", "a%2e%2e"),
        ("x" * 255, "x" * 255),
    ],
)
def test_a_path_has_one_form(path: str, normal: str) -> None:
    assert normalise(path) == normal
    assert is_normal(normal)


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "./",
        "/",
        "/etc/passwd",
        "//a",
        "..",
        "../a",
        "a/../b",
        "a/..",
        "a\0b",
        "a\\b",
        "..\\a",
        "C:\\a",
        "a\nb",
        "a\x7f",
        "a\x85b",
        "\udc80",
        "a/",
        "a/.",
        "x" * 256,
        "ä" * 128,
        "/".join(["x" * 100] * 9),
        "/".join(["x"] * 65),
    ],
)
def test_a_path_that_names_no_file_of_the_workspace_is_refused(path: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        normalise(path)
    assert caught.value.code == "invalid_path"
    assert not is_normal(path)


def test_the_longest_path_of_the_longest_ids_is_a_key_that_s3_takes() -> None:
    path = "/".join(["x" * 99] * 8) + "/" + "y" * (MAX_PATH_BYTES - 800)
    assert len(f"{run_key('u' * 64, 'r' * 64)}/{normalise(path)}") == 1024
    with pytest.raises(Unprocessable):
        normalise(path + "y")


@given(st.text(st.characters(codec=None), max_size=40) | st.text("./\\a\0", max_size=12))
def test_what_is_accepted_stays_inside_and_does_not_change_again(path: str) -> None:
    try:
        normal = normalise(path)
    except Unprocessable:
        return
    assert normalise(normal) == normal
    assert not normal.startswith("/")
    assert not {"", ".", ".."} & set(normal.split("/"))


@pytest.mark.parametrize(
    ("prefix", "normal"),
    [("", ""), (".", ""), ("./", ""), ("a", "a"), ("a/", "a/"), ("a//b/.", "a/b/"), ("./a/b", "a/b")],
)
def test_a_prefix_may_name_a_folder_or_the_start_of_a_name(prefix: str, normal: str) -> None:
    assert normalise_prefix(prefix) == normal


@pytest.mark.parametrize("prefix", ["/", "..", "../", "a/../b", "a\0", "a\\"])
def test_a_prefix_can_not_leave_the_workspace(prefix: str) -> None:
    with pytest.raises(Unprocessable):
        normalise_prefix(prefix)


def test_files_of_a_run_are_below_its_user() -> None:
    assert run_key("ann_1.x-2", "0b5c") == "users/ann_1.x-2/runs/0b5c"


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "../b", "a b", "a\0", "ä", "x" * 65, "a\n"])
def test_an_id_that_is_no_plain_name_owns_no_files(bad: str) -> None:
    with pytest.raises(Unprocessable):
        run_key(bad, "run")
    with pytest.raises(Unprocessable):
        run_key("user", bad)


def test_parents_are_the_folders_above_outermost_first() -> None:
    assert parents("a/b/c") == ["a", "a/b"]
    assert parents("a") == []
