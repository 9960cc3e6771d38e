"""Who may ask, how often, for how much, and what may be in it.

::

    request ──▶ connection.py  bytes and time for its head
            ──▶ doorkeeper.py  who asks, by keys.py or jwt_tokens.py, and its scope   before the body is read
            ──▶ budgets.py     its rate; its tokens are reserved before a run and settled after
            ──▶ depth.py       how deep JSON is nested                                before it is parsed
            ──▶ screening.py   control characters, length; personal data: off, redact, reject
    answer  ──▶ redaction.py   personal data in what a model writes, streams too (what there is: personal.py, ibans.py)

Everything that is refused is a :class:`~optimizer.serving.problems.Problem`.
"""
