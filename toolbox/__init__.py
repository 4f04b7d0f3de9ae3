"""What runs inside of a tool pod: the wrapper around the tool, and the sync of its workspace.

Nothing but the standard library, and nothing of `app`: the image of a tool has no more. The
contract with the worker (frames, folders, exit codes) is docs/decisions/0014-tool-pods.md.
"""
