"""Who may ask, how often, for how much, and what may be in it.

::

    request ──▶ doorkeeper.py  key or token → who it is, scope, rate          before a byte of the body is read
            ──▶ bodies.py      size after decompression, depth of JSON        before it is parsed
            ──▶ bounds.py      names, batch, sequence, parameters, control characters
            ──▶ privacy.py     personal data in prompts: off, redact, reject
            ──▶ budgets.py     tokens of the key, reserved before and settled after

Everything that is refused is a :class:`~optimizer.serving.problems.Problem`.
"""
