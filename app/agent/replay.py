"""A run of the real loop whose model's replies are recorded: no key, no network, nothing paid.

    recorded rows ──> replies, views, messages, refusals ──> the loop ──> rows of the replay
                  └─> hash of each request ── compared with the replay's (strict)

Tools are the real ones, or (`tools: recorded`) what they told the model then. Approvals are asked for anew: a
transcript is text that anyone may write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.agent.agent_tools import ASK_USER, LOOP_TOOLS
from app.agent.conversation import View, decode_reply
from app.agent.folding import asked_for, step_id, view_of
from app.agent.rows import AgentRows
from app.core.agent_records import CallRecord
from app.core.models import Run, StepRecord, StepStatus
from app.llm.model import Reply, ToolTurn, Turn, UserTurn
from app.llm.recorded import RecordedModel
from app.plan.transcript import Recording, prefix_hash, reply_hash, same_everywhere, text_hash
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Level

_SHOWN_CHARS = 120
_AS_RECORDED = frozenset({StepStatus.REFUSED, StepStatus.INTERRUPTED})


class RequestHash:
    """Hashes requests, without secrets and without what differs from run to run; knows what it has hashed."""

    def __init__(self, hide: Callable[[Any], Any]) -> None:
        self._hide = hide
        self._texts = dict[str, str]()
        self._replies = dict[int, tuple[Reply, str]]()
        self._prefix: tuple[dict[str, Any], str] | None = None

    def of(self, prefix: dict[str, Any], turns: Sequence[Turn]) -> str:
        """Return the hash of a request: what it begins with, and its conversation without notes."""
        if self._prefix is None or self._prefix[0] != prefix:
            self._prefix = prefix, prefix_hash(self._hide(prefix))
        parts = [self._prefix[1], *map(self.turn, turns)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def turn(self, turn: Turn) -> str:
        """Return the hash of one message."""
        if isinstance(turn, Reply):
            known = self._replies.get(id(turn))
            if known is None or known[0] is not turn:
                known = self._replies[id(turn)] = (turn, reply_hash(self._hide(asdict(turn))))
            return known[1]
        if turn.text not in self._texts:
            self._texts[turn.text] = text_hash(self._hide(turn.text))
        return f"{'tool' if isinstance(turn, ToolTurn) else 'user'} {self._texts[turn.text]}"


@dataclass(slots=True)
class ReplayRows(AgentRows):
    """The rows of a replay: what the user wrote then comes where it came then, and no one else is heard."""

    recording: Recording | None = None

    async def read_messages(self) -> None:
        """Read what the next recorded call had seen."""
        if self.recording is None:
            return
        following = _following(self, self.recording)
        upto = self.read_upto if following is None else following.inbox_upto
        new = [each for each in self.recording.messages if self.read_upto < each.k <= upto]
        self.messages += [replace(each, run_id=self.run.run_id) for each in new]

    def user_interrupts_after(self, k: int) -> bool:
        """Whether a message does not wait: what it stopped then is recorded as refused."""
        del k
        return False


def _following(rows: AgentRows, recording: Recording) -> CallRecord | None:
    with_reply = [call for call in recording.calls if call.reply]
    done = len(rows.answered)
    return with_reply[done] if done < len(with_reply) else None


@dataclass(slots=True)
class RecordedRun:
    """What a replay takes from its recording. `strict`: a request that differs ends it."""

    rows: AgentRows
    recording: Recording
    strict: bool = True
    tools_recorded: bool = False
    warned: bool = False

    @classmethod
    def of(cls, run: Run, rows: AgentRows, recording: Recording) -> RecordedRun:
        """Begin, or go on with, what the run asks for."""
        asked: dict[str, Any] = (run.agent or {}).get("replay") or {}
        return cls(rows, recording, asked.get("strict") is not False, asked.get("tools") == "recorded")

    # -- the model --------------------------------------------------------------------------

    @property
    def model(self) -> RecordedModel:
        """The model that gives the recorded replies."""
        name = self.recording.calls[0].model if self.recording.calls else ""
        return RecordedModel(name, self._reply)

    @property
    def view(self) -> View:
        """What the next recorded request left out of the conversation."""
        following = _following(self.rows, self.recording)
        return View() if following is None else view_of(following.view)

    @property
    def number(self) -> int:
        """The number of the next call: the recorded one, so that its steps have the same names."""
        last = self.rows.calls[-1].n if self.rows.calls else 0
        following = _following(self.rows, self.recording)
        return max(last + 1, following.n if following else 0)

    def _reply(self) -> Reply:
        following = _following(self.rows, self.recording)
        if following is None or following.reply is None:
            raise self._over()
        return decode_reply(following.reply)

    def _over(self) -> RunFailure:
        count = len(self.rows.answered)
        return _diverged(
            f"the recording has no more than {count} replies; its run ended there: {self.recording.end}"
        )

    async def compare(self, found: str, prefix: dict[str, Any], turns: Sequence[Turn]) -> None:
        """Hold the next request to the recorded one.

        Raises:
            RunFailure: it is another (unless not strict), or none was recorded (`replay_diverged`).
        """
        following = _following(self.rows, self.recording)
        if following is None:
            raise self._over()
        if found == following.request_hash:
            return
        text = f"the request of call {following.n} is not the recorded one: "
        text += self._difference(following, prefix, turns)
        if self.strict:
            raise _diverged(text)
        if not self.warned:
            self.warned = True
            await self.rows.log.say(Level.WARNING, f"{text} (not strict: the recorded reply is taken)")

    def _difference(self, call: CallRecord, prefix: dict[str, Any], turns: Sequence[Turn]) -> str:
        """Name the first message that differs."""
        hide, recording = self.rows.log.hide, self.recording
        hashes = RequestHash(hide)
        if prefix_hash(hide(prefix)) != prefix_hash(hide(recording.prefix or {})):
            return "the system text or the tools differ"
        steps, messages = recording.steps, recording.messages
        prompt, agent = recording.prompt, recording.agent
        before = () if view_of(call.view).forgotten else self.rows.before
        then = (*before, *asked_for(prompt, agent, recording.calls, steps, messages, n=call.n))
        for at, (old, new) in enumerate(zip(then, turns, strict=False), 1):
            if hashes.turn(old) != hashes.turn(new):
                return (
                    f"message {at} ({_role(new)}) differs: {_differing(hide(_text(old)), hide(_text(new)))}"
                )
        if len(then) != len(turns):
            return f"it has {len(turns)} messages, and {len(then)} were recorded"
        if recording.edited:
            return f"{recording.edited[0]} was changed in the transcript"
        return "no message differs, but its hash: the transcript was changed, or is of another release"

    # -- tools ------------------------------------------------------------------------------

    def outcome(self, record: StepRecord) -> StepRecord | None:
        """Return what is recorded of a step, where it is to be taken; None: it is carried out."""
        then = self.recording.steps.get(self._then(record))
        if then is None or then.tool != record.tool:
            return None
        if then.status in _AS_RECORDED:
            return then
        if record.tool == ASK_USER or (self.tools_recorded and record.tool not in LOOP_TOOLS):
            if then.status.finished:
                return then
            raise _diverged(
                f"the recording has no end of {then.step_id}; its run ended: {self.recording.end}"
            )
        return None

    def _then(self, record: StepRecord) -> str:
        """Return the recorded name of a step: they differ once a worker of the replay was lost."""
        place = self.rows.answered.index(record.call) if record.call in self.rows.answered else None
        with_reply = [call.n for call in self.recording.calls if call.reply]
        if place is None or place >= len(with_reply):
            return record.step_id
        return step_id(with_reply[place], int(record.step_id.rpartition("-")[2]) - 1)


def _role(turn: Turn) -> str:
    if isinstance(turn, ToolTurn):
        return f"what the call {turn.call_id[:60]} returned"
    return "the user's" if isinstance(turn, UserTurn) else "a reply of the model"


def _text(turn: Turn) -> str:
    return turn.text


def _differing(old: str, new: str) -> str:
    """Show two texts where they begin to differ."""
    old, new = same_everywhere(old), same_everywhere(new)
    pairs = enumerate(zip(old, new, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(old), len(new)))
    start = max(0, at - _SHOWN_CHARS // 4)
    return f"{old[start : start + _SHOWN_CHARS]!r} was recorded, {new[start : start + _SHOWN_CHARS]!r} is now"


def _diverged(text: str) -> RunFailure:
    return RunFailure(ErrorCode.REPLAY_DIVERGED, f"{text[0].upper()}{text[1:]}.")
