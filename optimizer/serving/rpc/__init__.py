"""The Open Inference Protocol V2 over gRPC: another wire in front of the same doors.

::

    message ──▶ translation.py   into what the HTTP route of the same meaning takes
            ──▶ that route's own door and endpoint (guard, limits, queue, metrics, log)
    answer  ──▶ translation.py   into a message, or statuses.py: into a status of gRPC

``streams.py`` does so for many messages of one stream, and ``texts.py`` for those of models that write. ``methods.py``
says which method is which route, ``messages.py`` has the classes of ``open_inference.proto``.
"""
