"""Long-running programs inside of your own: run one, keep its lines, stream them, stop it.

Needs neither Redis nor a database nor a server. Programs are started, read and ended by the same
code as in Tailrun's worker (`app.execution`); `docs/library.md` shows a complete use.
"""
