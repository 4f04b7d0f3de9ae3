"""The one clock: Redis TIME as far as it is known, counted on by the monotonic clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.core.clock import Clock

HOUR = 3_600_000_000


class Hands:
    """The machine's two clocks, and that of Redis, moved by a test."""

    def __init__(self, wall: int = 7 * HOUR, redis: int = 7 * HOUR) -> None:
        self.wall, self.monotonic, self.redis = wall, 5_000_000, redis
        self.clock = Clock(lambda: self.wall, lambda: self.monotonic)

    def wait(self, us: int) -> None:
        self.wall, self.monotonic, self.redis = self.wall + us, self.monotonic + us, self.redis + us

    def ask(self, there: int = 0, back: int = 0) -> None:
        asked_at = self.clock.asking()
        self.wait(there)
        said = self.redis
        self.wait(back)
        self.clock.heard(said, asked_at)

    @property
    def error(self) -> int:
        return self.clock.now_us() - self.redis


def test_before_redis_answers_it_is_the_machines_time() -> None:
    hands = Hands(wall=3 * HOUR)
    hands.wait(10)
    assert hands.clock.now_us() == 3 * HOUR + 10


def test_a_machine_that_is_an_hour_off_goes_by_redis() -> None:
    """Also when somebody sets its clock meanwhile."""
    for wall in (6 * HOUR, 8 * HOUR):
        hands = Hands(wall=wall)
        hands.ask(there=200, back=300)
        assert hands.error == 200
        hands.wall += HOUR
        hands.wait(60_000_000)
        assert hands.error == 200


def test_an_answer_that_took_long_does_not_move_it() -> None:
    """A frozen Redis, a busy loop: the fastest of the last answers counts."""
    hands = Hands()
    hands.ask(there=100, back=100)
    hands.ask(there=2_900_000, back=10)
    hands.ask(there=10, back=2_900_000)
    assert hands.error == 10


def test_it_follows_a_redis_whose_clock_is_set() -> None:
    """Or another server after a fail-over; forwards and backwards, at the next answer."""
    hands = Hands()
    for jump in (HOUR, -HOUR):
        hands.ask(there=100, back=100)
        hands.redis += jump
        hands.ask(there=300, back=100)
        assert abs(hands.error) <= 300


def test_it_follows_after_the_machine_slept() -> None:
    """The monotonic clock stands still in a suspended machine."""
    hands = Hands()
    hands.ask()
    hands.redis += HOUR
    hands.ask(there=50, back=50)
    assert hands.error == 50


@given(st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(0, 3_000_000)), min_size=1))
def test_it_is_never_behind(answers: list[tuple[int, int]]) -> None:
    """What Redis has just made due must not seem early; and ahead by no more than an answer took."""
    hands = Hands()
    for there, back in answers:
        hands.ask(there, back)
        assert 0 <= hands.error <= there
